"""The retired SDK against the same server: what differs from google-genai, and that the answers don't."""

import traceback
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.teachers.gemini.legacy_teacher import open_gemini_legacy
from bitnet_providers.teachers.gemini.options import GeminiLegacyTeacherConfig, GeminiTeacherConfig
from bitnet_providers.teachers.gemini.teacher import open_gemini
from loopback.faults import (
    CUT_BEFORE,
    CUT_BODY,
    INVALID_JSON,
    WRONG_CONTENT_TYPE,
    damaged,
    failing,
    rate_limited,
    script,
    serving,
    slow,
)
from loopback.gemini_server import KEY, GeminiServer, error_body, logprobs_result, response, retry_info

Ask = Callable[..., Any]
pytestmark = pytest.mark.filterwarnings('ignore:teacher.kind = "gemini-legacy":FutureWarning')


@pytest.fixture
def server() -> GeminiServer:
    return GeminiServer()


@pytest.fixture
def url(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    with serving(server.app()) as url:
        yield url


@pytest.fixture
def legacy(url: str) -> Callable[..., Any]:
    return lambda **options: open_gemini_legacy(
        GeminiLegacyTeacherConfig(**({"model": "gemini-loopback", "base_url": url} | options))
    )


def test_it_says_that_it_is_deprecated_in_one_line(legacy: Any) -> None:
    with pytest.warns(FutureWarning, match='retired in 2025: use "gemini"') as warned:
        legacy()
    assert len(warned) == 1


def test_it_gives_what_the_new_sdk_gives(legacy: Any, url: str, server: GeminiServer, ask: Ask) -> None:
    tokens = ["Hi", " naïve", " ", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    server.answer = lambda request: response("Hi naïve 🙂", logprobs_result(tokens, 5), finish="MAX_TOKENS")
    turns = {"system": "Be brief.", "top": 5, "temperature": 0.5, "top_p": 0.9, "max_new_tokens": 9}
    old = ask(legacy, "one", "two", "three", **turns)
    new = ask(
        lambda: open_gemini(GeminiTeacherConfig(model="gemini-loopback", base_url=url)), "one", "two", "three", **turns
    )
    assert (old.text, old.token_bytes, old.candidate_bytes) == (new.text, new.token_bytes, new.candidate_bytes)
    np.testing.assert_array_equal(old.candidate_logprobs, new.candidate_logprobs)
    np.testing.assert_array_equal(old.token_logprobs, new.token_logprobs)
    assert (old.finish_reason, old.model, old.usage["prompt_tokens"]) == ("length", "gemini-loopback-001", 9)
    assert old.usage == new.usage
    first, second = server.seen
    assert first["contents"] == second["contents"]
    assert first["generationConfig"] | {"seed": 0} == second["generationConfig"]
    assert [part["text"] for part in first["systemInstruction"]["parts"]] == ["Be brief."]


def test_half_a_surrogate_pair_is_refused_once(legacy: Any, server: GeminiServer, ask: Ask) -> None:
    server.answer = lambda request: response("Well \ud83d")
    assert isinstance(ask(legacy), RequestRefusedError)


@pytest.mark.parametrize(
    ("reason", "finish"), [("STOP", "stop"), ("SAFETY", "content_filter"), ("SOMETHING_NEW", "length")]
)
def test_finish_reasons_come_as_numbers(legacy: Any, server: GeminiServer, ask: Ask, reason: str, finish: str) -> None:
    server.answer = lambda request: response("x", finish=reason)
    completion = ask(legacy)
    assert completion.finish_reason == finish
    assert ("finish_unknown" in completion.repairs) == (reason == "SOMETHING_NEW")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, error_body(400, "contents"), RequestRefusedError, "INVALID_ARGUMENT"),
        (400, error_body(400, "API key not valid"), ProviderError, "GEMINI_API_KEY"),
        (400, error_body(400, "Logprobs is not enabled"), ProviderError, "top_k = 0"),
        (404, error_body(404), ProviderError, r"teacher\.model"),
        (429, error_body(429, "", retry_info("4s")), RetryableError, "RESOURCE_EXHAUSTED"),
        (503, error_body(503), RetryableError, "503"),
    ],
)
def test_errors_have_their_kinds(
    legacy: Any, server: GeminiServer, ask: Ask, status: int, body: Any, kind: type, words: str
) -> None:
    server.refuse = (status, body)
    error = ask(legacy)
    assert type(error) is kind, repr(error)
    with pytest.raises(kind, match=words):
        raise error
    assert len(server.seen) == 1, "the SDK's own retries are off"
    if status == 429:
        assert (error.retry_after_s, error.overloaded) == (4.0, True)


def test_lost_answers_and_a_server_that_is_not_there(
    legacy: Any, server: GeminiServer, ask: Ask, ask_too_slow: Ask
) -> None:
    faults = (CUT_BEFORE, CUT_BODY, INVALID_JSON, WRONG_CONTENT_TYPE, slow(100.0))
    server.player.reset(script(*faults))
    for fault in faults:
        error = (ask_too_slow if fault.pause_s else ask)(legacy)
        assert isinstance(error, RetryableError), (fault.name, error)
        assert error.possibly_paid, fault.name
    assert len(server.player.played) == len(faults)
    server.player.reset(script(damaged("no list", lambda answer: {"candidates": 3})))
    assert isinstance(ask(legacy), RequestRefusedError)
    gone = ask(lambda: legacy(base_url="http://127.0.0.1:9"))
    assert isinstance(gone, RetryableError)
    assert not gone.possibly_paid


def test_many_at_once_wait_for_a_thread(legacy: Any, ask: Ask) -> None:
    answers = ask(legacy, "hello", times=40)
    assert {each.text for each in answers} == {b"You said: hello"}


def test_the_key_is_nowhere_to_be_seen(
    legacy: Any, server: GeminiServer, ask: Ask, everything_logged: Callable[[], str]
) -> None:
    shown = [repr(legacy()), str(legacy().description)]
    for refusal in (None, (400, error_body(400, f"API key not valid {KEY}"))):
        server.refuse = refusal
        for fault in (None, CUT_BEFORE, CUT_BODY, INVALID_JSON, rate_limited("1"), failing(403)):
            server.player.reset(script(fault))
            answer = ask(legacy, top=1)
            shown.append(repr(answer))
            if isinstance(answer, Exception):
                assert answer.__cause__ is None
                assert answer.__context__ is None
                shown.append("".join(traceback.format_exception(answer)))
    shown += [everything_logged(), *server.urls]
    assert not [text for text in shown if "canary" in text.lower()]
