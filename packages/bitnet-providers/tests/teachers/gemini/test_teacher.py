"""Gemini through google-genai against a server that speaks its wire format."""

import asyncio
import math
import traceback
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import numpy as np
import pytest

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError, ScoreRequest
from bitnet_providers.teachers.gemini.options import GeminiTeacherConfig
from bitnet_providers.teachers.gemini.teacher import open_gemini
from loopback.faults import (
    CUT_BEFORE,
    CUT_BODY,
    INVALID_JSON,
    WRONG_CONTENT_TYPE,
    damaged,
    failing,
    http_date,
    mix,
    rate_limited,
    script,
    serving,
    slow,
)
from loopback.gemini_server import (
    KEY,
    GeminiServer,
    entry,
    error_body,
    error_info,
    logprobs_result,
    quota_failure,
    response,
    retry_info,
)

Ask = Callable[..., Any]


@pytest.fixture
def server() -> GeminiServer:
    return GeminiServer()


@pytest.fixture
def gemini(server: GeminiServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    monkeypatch.setenv("GOOGLE_API_KEY", "another-key-that-the-sdk-would-prefer")
    with serving(server.app()) as url:
        yield lambda **options: open_gemini(
            GeminiTeacherConfig(**({"model": "gemini-loopback", "base_url": url} | options))
        )


def test_tokens_candidates_and_bytes_come_as_the_model_gave_them(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    completion = ask(gemini, "one", "two", "naïve 🙂", system="Be brief.", top=3, max_new_tokens=33, seed=5, top_p=0.9)
    assert completion.text == "You said: naïve 🙂".encode()
    assert completion.token_bytes == (b"You", b" said", b":", " naïve 🙂".encode())
    np.testing.assert_allclose(completion.token_logprobs, math.log(0.5), rtol=1e-6)
    assert list(completion.candidate_counts) == [3, 3, 3, 3]
    np.testing.assert_allclose(completion.candidate_logprobs.reshape(4, 3)[0], math.log(0.5) * np.arange(1, 4))
    assert completion.candidate_bytes[:3] == (b"You", b" other1", b" other2")
    assert completion.token_ids is None
    assert (completion.finish_reason, completion.model) == ("stop", "gemini-loopback-001")
    assert (completion.prompt_tokens, completion.latency_s > 0) == (9, True)
    assert completion.usage == {"prompt_tokens": 9, "completion_tokens": 4}
    assert set(completion.repairs) <= {"bytes_rebuilt"}
    (request,) = server.seen
    assert [(turn["role"], turn["parts"][0]["text"]) for turn in request["contents"]] == [
        ("user", "one"),
        ("model", "two"),
        ("user", "naïve 🙂"),
    ]
    assert request["systemInstruction"]["parts"] == [{"text": "Be brief."}]
    assert request["generationConfig"] == {
        "temperature": 1.0,
        "topP": 0.9,
        "maxOutputTokens": 33,
        "seed": 5,
        "responseLogprobs": True,
        "logprobs": 3,
    }
    assert server.urls == ["/v1beta/models/gemini-loopback:generateContent"]


def test_without_candidates_it_asks_for_none_and_the_text_is_one_token(
    gemini: Any, server: GeminiServer, ask: Ask
) -> None:
    completion = ask(gemini)
    assert completion.token_bytes == (b"You said: hello",)
    assert math.isnan(completion.token_logprobs[0])
    assert "responseLogprobs" not in server.seen[0]["generationConfig"]
    assert completion.repairs == {}


def test_half_a_surrogate_pair_is_kept_or_left_out_but_paid_once(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    said = response("Well \ud83d so \ud83d", {"chosenCandidates": [entry("Well \ud83d so \ud83d", -0.5, 1)]})
    server.answer = lambda request: said | {"modelVersion": "m\ud83d"}
    completion = ask(gemini, top=1)
    assert (completion.text.decode(), completion.model) == ("Well \ufffd so ", "m")


def test_a_block_that_is_not_there_is_told(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    for logprobs in (None, {}, {"chosenCandidates": [], "topCandidates": []}):
        server.answer = lambda request, logprobs=logprobs: response("Yes.", logprobs)
        completion = ask(gemini, top=5)
        assert completion.text == b"Yes."
        assert len(completion.token_logprobs) == 1
        assert completion.repairs == {"logprobs_missing": 1}


def test_what_is_wrong_with_the_candidates_is_mended_and_counted(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    chosen = [entry("A", -0.1, 1), entry(" b", -2.5, 2), entry(".", None, 3)]
    top = [
        {"candidates": [entry("A", -0.1, 1), entry("A", -0.1, 1), entry("�", -3.0, 4), entry("An", "-Infinity", 5)]},
        {"candidates": [entry(" x", -1.0, 6), entry(" y", -0.5, 7), entry(" z", -9999.0, 8)]},
    ]
    server.answer = lambda request: response("A b.", {"chosenCandidates": chosen, "topCandidates": top})
    completion = ask(gemini, top=4)
    assert completion.token_bytes == (b"A", b" b", b".")
    assert list(completion.candidate_counts) == [1, 2, 0]
    assert completion.candidate_bytes == (b"A", b" y", b" x")
    np.testing.assert_allclose(completion.candidate_logprobs, [-0.1, -0.5, -1.0])
    np.testing.assert_allclose(completion.token_logprobs[:2], [-0.1, -2.5])
    assert math.isnan(completion.token_logprobs[2])
    repairs = completion.repairs
    assert repairs["duplicates"] == 1
    assert repairs["bytes_unknown"] == 1
    assert repairs["sentinels"] == 2
    assert repairs["unsorted"] == 1
    assert repairs["sampled_outside"] == 1
    assert repairs["logprobs_missing"] == 1


def test_bytes_of_cut_characters_are_taken_only_where_the_text_proves_them(
    gemini: Any, server: GeminiServer, ask: Ask
) -> None:
    tokens = ["Hi", "<0xF0>", "<0x9F>", "<0x99>", "<0x82>"]
    server.answer = lambda request: response("Hi🙂", logprobs_result(tokens, 2))
    completion = ask(gemini, top=2)
    assert completion.token_bytes == (b"Hi", b"\xf0", b"\x9f", b"\x99", b"\x82")
    assert completion.candidate_bytes[2:4] == (b"\xf0", b" other1")

    server.answer = lambda request: response("Hi<0xF0>", logprobs_result(["Hi", "<0xF0>"], 2))
    assert ask(gemini, top=2).token_bytes == (b"Hi", b"<0xF0>")

    server.answer = lambda request: response("Hi there", logprobs_result(["Hi", "▁there"], 2))
    completion = ask(gemini, top=2)
    assert (completion.text, completion.token_bytes) == (b"Hi there", (b"Hi there",))
    assert math.isnan(completion.token_logprobs[0])
    assert completion.repairs == {"tokens_unproved": 2}


def test_thoughts_are_dropped_and_counted(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    thought = {"text": "Let me see.", "thought": True}
    server.answer = lambda request: response(
        "Yes.", logprobs_result(["Let", " me", " see.", "Yes", "."], 2), parts=[thought], thoughtsTokenCount=3
    )
    completion = ask(lambda: gemini(thinking_budget=64), top=2)
    assert (completion.text, completion.token_bytes) == (b"Yes.", (b"Yes", b"."))
    assert completion.repairs["reasoning_dropped"] == 4  # one part, three tokens
    assert completion.usage == {"prompt_tokens": 9, "completion_tokens": 7, "reasoning_tokens": 3}
    assert list(server.seen[0]["generationConfig"]["thinkingConfig"].values()) == [64]
    assert gemini(thinking_budget=0).description["thinking_budget"] == 0
    marks = [gemini(thinking_budget=each).description.get("fingerprint") for each in (None, 0, 64)]
    assert len(set(marks)) == 3  # else answers of one would be taken for another's


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        ("STOP", "stop"),
        ("MAX_TOKENS", "length"),
        ("SAFETY", "content_filter"),
        ("RECITATION", "content_filter"),
        ("PROHIBITED_CONTENT", "content_filter"),
        ("IMAGE_SAFETY", "content_filter"),
        ("MALFORMED_FUNCTION_CALL", "tool_calls"),
        ("OTHER", "length"),
        ("SOMETHING_NEW", "length"),
        (None, "length"),
    ],
)
def test_each_finish_reason_has_its_meaning(
    gemini: Any, server: GeminiServer, ask: Ask, reason: str | None, finish: str
) -> None:
    server.answer = lambda request: response(None, finish=reason)
    completion = ask(gemini, top=2)
    assert (completion.finish_reason, completion.text, len(completion.token_logprobs)) == (finish, b"", 0)
    assert ("finish_unknown" in completion.repairs) == (reason in ("OTHER", "SOMETHING_NEW", None))


def test_a_function_call_is_no_text(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    server.answer = lambda request: response("On it.", parts=[{"functionCall": {"name": "f", "args": {}}}])
    completion = ask(gemini)
    assert (completion.text, completion.finish_reason) == (b"On it.", "tool_calls")
    assert completion.repairs == {"parts_dropped": 1}


def test_a_blocked_prompt_is_refused_for_good(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    server.answer = lambda request: {"promptFeedback": {"blockReason": "SAFETY"}, "usageMetadata": {}}
    error = ask(gemini)
    assert isinstance(error, RequestRefusedError)
    assert "blocked the prompt (SAFETY)" in str(error)
    server.answer = lambda request: {"promptFeedback": {"safetyRatings": []}, "usageMetadata": {}}
    assert "blocked the prompt (no reason told)" in str(ask(gemini))
    server.answer = lambda request: {"usageMetadata": {}}
    error = ask(gemini)
    assert isinstance(error, RetryableError)
    assert error.possibly_paid


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, error_body(400, "* contents: is not specified"), RequestRefusedError, "INVALID_ARGUMENT"),
        (400, error_body(400, f"API key not valid {KEY}", error_info("API_KEY_INVALID")), ProviderError, "GEMINI_API"),
        (400, error_body(400, "Logprobs is not enabled for models/x"), ProviderError, r"collect\.top_k = 0"),
        (400, error_body(400, "Budget 0 is invalid. This model only works in thinking mode."), ProviderError, "budget"),
        (400, error_body(400, "User location", name="FAILED_PRECONDITION"), ProviderError, "the place"),
        (401, error_body(401), ProviderError, "GEMINI_API_KEY"),
        (403, error_body(403), ProviderError, "permissions"),
        (404, error_body(404, "models/x is not found"), ProviderError, r"teacher\.model"),
        (429, error_body(429, "", quota_failure("RequestsPerDayPerProject"), retry_info("9s")), ProviderError, "day's"),
        (429, error_body(429, "", quota_failure("PerMinute", "0")), ProviderError, "day's"),
        (429, error_body(429, "", error_info("X", quota_limit="ProRequestsPerDay")), ProviderError, "day's"),
        (429, [error_body(429, "", retry_info("34.5s"), quota_failure("PerMinutePerProject"))], RetryableError, "429"),
        (429, error_body(429), RetryableError, "RESOURCE_EXHAUSTED"),
        (500, error_body(500), RetryableError, "INTERNAL"),
        (503, error_body(503, "The model is overloaded."), RetryableError, "overloaded"),
        (504, error_body(504), RetryableError, "DEADLINE"),
        (502, "not an object", RetryableError, "502"),
    ],
)
def test_each_error_has_its_kind_and_its_fix(
    gemini: Any, server: GeminiServer, ask: Ask, status: int, body: Any, kind: type, words: str
) -> None:
    server.refuse = (status, body)
    error = ask(gemini, top=2)
    assert type(error) is kind, repr(error)
    with pytest.raises(kind, match=words):
        raise error
    assert "canary" not in str(error).lower()
    assert len(server.seen) == 1, "the SDK's own retries are off"
    if isinstance(error, RetryableError):
        assert error.overloaded == (status == 429)
        assert error.possibly_paid == (status == 504)
        assert error.retry_after_s == (34.5 if isinstance(body, list) else None)


def test_a_model_without_logprobs_still_answers_without(gemini: Any, ask: Ask) -> None:
    teacher = partial(gemini, model="gemini-nologprobs")
    assert "name another model" in str(ask(teacher, top=5))
    assert ask(teacher, top=0).text == b"You said: hello"


def test_waits_are_taken_from_the_header_first(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    server.player.error_body = lambda status: error_body(status, "", retry_info("7s"))
    server.player.reset(script(rate_limited("3"), rate_limited(http_date(600)), rate_limited()))
    waits = [ask(gemini).retry_after_s for _ in range(3)]
    assert (waits[0], waits[2]) == (3.0, 7.0)
    assert 500 < waits[1] <= 600


def test_a_lost_answer_may_have_been_paid(gemini: Any, server: GeminiServer, ask: Ask, ask_too_slow: Ask) -> None:
    empty = damaged("empty", lambda answer: {})
    faults = (CUT_BEFORE, CUT_BODY, INVALID_JSON, WRONG_CONTENT_TYPE, empty, slow(100.0))
    server.player.reset(script(*faults))
    for fault in faults:
        error = (ask_too_slow if fault.pause_s else ask)(gemini)
        assert isinstance(error, RetryableError), fault.name
        assert error.possibly_paid, fault.name
        assert "no whole answer" in str(error)
    assert len(server.player.played) == len(faults)
    assert ask(gemini).text == b"You said: hello"


def test_json_of_another_shape_is_not_asked_for_again(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    server.answer = lambda request: {"candidates": {}}
    error = ask(gemini)
    assert isinstance(error, RequestRefusedError)
    assert "another shape" in str(error)


def test_a_server_that_is_not_there_was_not_paid(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    error = ask(lambda: open_gemini(GeminiTeacherConfig(model="gemini-x", base_url="http://127.0.0.1:9")))
    assert isinstance(error, RetryableError)
    assert not error.possibly_paid


@pytest.mark.slow
def test_two_hundred_at_once_and_each_gets_its_own(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    server.player.reset(mix(4, 0.3, [rate_limited("1"), failing(500), CUT_BODY, INVALID_JSON]))
    answers = ask(gemini, "hello", times=220, top=2)
    good = [each for each in answers if not isinstance(each, Exception)]
    assert len(server.player.played) == 220
    assert len(good) == server.player.played.count("")
    assert all(isinstance(each, RetryableError) for each in answers if isinstance(each, Exception))


def test_what_it_can_not_do_is_said_before_anything_is_sent(gemini: Any, server: GeminiServer, ask: Ask) -> None:
    assert "collect.top_k = 20" in str(ask(gemini, top=21))
    with pytest.raises(ProviderError, match="does not score given text"):
        asyncio.run(gemini().score(ScoreRequest("x", 0)))
    assert server.seen == []


@pytest.mark.slow
def test_the_key_is_nowhere_to_be_seen(
    gemini: Any, server: GeminiServer, ask: Ask, everything_logged: Callable[[], str]
) -> None:
    teacher = gemini()
    shown = [repr(teacher), str(teacher.description), repr(vars(teacher)["_redact"])]
    for refusal in (None, (400, error_body(400, f"API key not valid {KEY}"))):
        server.refuse = refusal
        for fault in (None, CUT_BEFORE, CUT_BODY, INVALID_JSON, rate_limited("1")):
            server.player.reset(script(fault))
            answer = ask(gemini, top=1)
            shown.append(repr(answer))
            if isinstance(answer, Exception):
                assert answer.__cause__ is None
                assert answer.__context__ is None
                shown.append("".join(traceback.format_exception(answer)))
    shown += [everything_logged(), *server.urls]
    assert len(shown) > 10
    assert not [text for text in shown if "canary" in text.lower()]
    asyncio.run(teacher.aclose())
