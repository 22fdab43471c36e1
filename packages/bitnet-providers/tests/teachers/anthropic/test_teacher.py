"""Claude through its official SDK against a server that speaks its wire format."""

import asyncio
import gc
import math
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from bitnet_providers.contract import (
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    Sampling,
    ScoreRequest,
)
from bitnet_providers.teachers.anthropic.options import AnthropicTeacherConfig
from bitnet_providers.teachers.anthropic.teacher import open_anthropic
from loopback.anthropic_server import KEY, AnthropicServer, error_body, message, text
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

Ask = Callable[..., Any]


@pytest.fixture
def server() -> AnthropicServer:
    return AnthropicServer()


@pytest.fixture
def claude(server: AnthropicServer, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Any]]:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    with serving(server.app()) as url:
        yield lambda **options: open_anthropic(
            AnthropicTeacherConfig(**({"model": "claude-loopback-4", "base_url": url} | options))
        )


def test_an_answer_is_one_token_without_a_logprob(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.answer = lambda request: message(
        text("Grüße "), text("🙂"), input_tokens=7, cache_read_input_tokens=3, cache_creation_input_tokens=2
    )
    completion = ask(claude, "one", "two", "three", system="Be brief.", max_new_tokens=33)
    assert completion.text == "Grüße 🙂".encode()
    assert completion.token_bytes == (completion.text,)
    assert math.isnan(completion.token_logprobs[0])
    assert (list(completion.candidate_counts), completion.candidate_bytes) == ([0], ())
    assert (completion.finish_reason, completion.model) == ("stop", "claude-loopback-4-20260101")
    assert completion.usage == {"prompt_tokens": 12, "completion_tokens": 5, "cached_tokens": 3}
    assert completion.prompt_tokens == 12
    assert completion.repairs == {}
    assert completion.latency_s > 0
    assert server.seen == [
        {
            "model": "claude-loopback-4",
            "max_tokens": 33,
            "system": "Be brief.",
            "messages": [
                {"role": "user", "content": "one"},
                {"role": "assistant", "content": "two"},
                {"role": "user", "content": "three"},
            ],
        }
    ]


def test_thinking_and_tools_are_dropped_and_counted(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.answer = lambda request: message(
        {"type": "thinking", "thinking": "secretly", "signature": "x"},
        {"type": "redacted_thinking", "data": "x"},
        text("Yes."),
        {"type": "tool_use", "id": "t", "name": "f", "input": {}},
        stop_reason="tool_use",
        output_tokens_details={"thinking_tokens": 4},
    )
    completion = ask(claude)
    assert completion.text == b"Yes."
    assert completion.finish_reason == "tool_calls"
    assert completion.repairs == {"reasoning_dropped": 2, "parts_dropped": 1}
    assert completion.usage["reasoning_tokens"] == 4


def test_half_a_surrogate_pair_is_kept_or_left_out_but_paid_once(
    claude: Any, server: AnthropicServer, ask: Ask
) -> None:
    server.answer = lambda request: message(text("Well \ud83d so \ud83d")) | {"model": "m\ud83d"}
    completion = ask(claude)
    assert (completion.text.decode(), completion.model) == ("Well \ufffd so ", "m")


@pytest.mark.parametrize(
    ("stop_reason", "finish"),
    [
        ("end_turn", "stop"),
        ("stop_sequence", "stop"),
        ("max_tokens", "length"),
        ("model_context_window_exceeded", "length"),
        ("pause_turn", "length"),
        ("refusal", "content_filter"),
        ("a_new_one", "length"),
        (None, "length"),
    ],
)
def test_each_stop_reason_has_its_meaning(
    claude: Any, server: AnthropicServer, ask: Ask, stop_reason: str | None, finish: str
) -> None:
    server.answer = lambda request: message(stop_reason=stop_reason)
    completion = ask(claude)
    assert (completion.finish_reason, completion.text) == (finish, b"")
    assert completion.repairs == ({"finish_unknown": 1} if stop_reason in ("a_new_one", None) else {})


def test_sampling_goes_out_only_where_it_is_set_and_then_with_the_version_that_takes_it(
    claude: Any, server: AnthropicServer, ask: Ask
) -> None:
    for sampling in ({}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0, "top_p": 0.9}, {"top_p": 0.9}):
        assert not isinstance(ask(claude, **sampling), Exception)
    sent = [{key: each[key] for key in ("temperature", "top_p") if key in each} for each in server.seen]
    assert sent == [{}, {"temperature": 0.5, "top_p": 0.9}, {"temperature": 0.0}, {"top_p": 0.9}]
    assert [headers["anthropic-version"] for headers in server.headers][1:] == ["2023-06-01"] * 3
    error = ask(claude, temperature=1.5)
    assert type(error) is ProviderError
    assert "temperature of 1 at most" in str(error)


def test_an_address_that_has_moved_is_told(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.refuse = (301, {})
    error = ask(claude)
    assert type(error) is ProviderError
    assert error.fix == "write its new address"


def test_thinking_is_turned_off_where_asked(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    ask(lambda: claude(thinking="off"))
    ask(claude)
    assert [each.get("thinking") for each in server.seen] == [{"type": "disabled"}, None]
    assert claude(thinking="off").description["thinking"] == "off"
    # What it said after thoughts is no answer of one that had none.
    assert claude(thinking="off").description["fingerprint"] != claude().description.get("fingerprint")


@pytest.mark.parametrize(
    ("status", "body", "kind", "words"),
    [
        (400, error_body(400, "prompt is too long: 210000 tokens"), RequestRefusedError, "too long"),
        (400, error_body(400, "Your credit balance is too low"), ProviderError, "used up"),
        (400, error_body(400, "You have reached your specified API usage limits"), ProviderError, "used up"),
        (400, error_body(400, "`temperature` is deprecated for this model."), ProviderError, r"\[baseline\]"),
        (400, error_body(400, "thinking: can't be disabled"), ProviderError, "teacher.thinking"),
        (400, error_body(400, "max_tokens: 9000 > 8192"), ProviderError, "lower max_new_tokens"),
        (401, error_body(401, f"invalid x-api-key {KEY}"), ProviderError, "ANTHROPIC_API_KEY"),
        (402, error_body(402, "pay"), ProviderError, "credit"),
        (403, error_body(403), ProviderError, "permissions"),
        (404, error_body(404, "model: x"), ProviderError, "teacher.model"),
        (413, error_body(413), RequestRefusedError, "413"),
        (429, error_body(429, "", error_code="enforced_spend_limit_reached"), ProviderError, "used up"),
        (429, error_body(429, "", error_code="ramp_limit_exceeded"), RetryableError, "429"),
        (500, {"message": "not the usual shape"}, RetryableError, "500"),
        (529, error_body(529, "Overloaded"), RetryableError, "overloaded_error: Overloaded"),
    ],
)
def test_each_error_has_its_kind_and_its_fix(
    claude: Any, server: AnthropicServer, ask: Ask, status: int, body: Any, kind: type, words: str
) -> None:
    server.refuse = (status, body)
    error = ask(claude)
    assert type(error) is kind, error
    with pytest.raises(kind, match=words):
        raise error
    assert "canary" not in str(error)
    assert len(server.seen) == 1, "the SDK's own retries are off"
    if isinstance(error, RetryableError):
        assert error.overloaded == (status == 429)
        assert not error.possibly_paid


def test_waits_are_taken_from_the_header(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.player.reset(script(rate_limited("3"), rate_limited(http_date(600)), rate_limited(), failing(529, "2")))
    errors = [ask(claude) for _ in range(4)]
    waits = [error.retry_after_s for error in errors]
    assert (waits[0], waits[2], waits[3]) == (3.0, None, 2.0)
    assert 500 < waits[1] <= 600
    assert [error.overloaded for error in errors] == [True, True, True, False]


def test_a_lost_answer_may_have_been_paid(claude: Any, server: AnthropicServer, ask: Ask, ask_too_slow: Ask) -> None:
    faults = (CUT_BEFORE, CUT_BODY, INVALID_JSON, WRONG_CONTENT_TYPE, slow(100.0))
    server.player.reset(script(*faults))
    for fault in faults:
        error = (ask_too_slow if fault.pause_s else ask)(claude)
        assert isinstance(error, RetryableError), fault.name
        assert error.possibly_paid, fault.name
        assert not error.overloaded
        assert "no whole answer" in str(error)
    assert ask(claude).text == b"You said: hello"


def test_json_of_another_shape_is_not_asked_for_again(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    no_list = damaged("no content", lambda answer: {**answer, "content": None})
    server.player.reset(script(no_list, damaged("a list", lambda answer: [answer])))
    for _ in range(2):
        error = ask(claude)
        assert isinstance(error, RequestRefusedError)
        assert "another shape" in str(error)


def test_a_server_that_is_not_there_was_not_paid(ask: Ask, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANTHROPIC_API_KEY", KEY)
    options = AnthropicTeacherConfig(model="claude-x", base_url="http://127.0.0.1:9")
    error = ask(lambda: open_anthropic(options))
    assert isinstance(error, RetryableError)
    assert not error.possibly_paid
    assert "not reached" in str(error)


def test_slow_bytes_are_waited_for(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.player.reset(script(slow(0.002, 32)))
    assert ask(claude).text == b"You said: hello"


@pytest.mark.slow
def test_two_hundred_at_once_and_each_gets_its_own(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    server.player.reset(mix(3, 0.3, [rate_limited("1"), failing(500), CUT_BEFORE, INVALID_JSON]))
    answers = ask(claude, "hello", times=220)
    good = [each for each in answers if not isinstance(each, Exception)]
    assert len(answers) == len(server.player.played) == 220
    assert len(good) == server.player.played.count("")
    assert all(isinstance(each, RetryableError) for each in answers if isinstance(each, Exception))


def test_cancelling_leaves_the_teacher_usable(claude: Any, server: AnthropicServer) -> None:
    async def run() -> bytes:
        teacher = claude()
        request = GenerateRequest(({"role": "user", "content": "hi"},), Sampling(), 0)
        server.player.reset(script(slow(1.0)))
        task = asyncio.create_task(teacher.generate(request))
        await asyncio.sleep(0.1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        completion = await teacher.generate(request)
        await teacher.aclose()
        return bytes(completion.text)

    assert asyncio.run(run()) == b"You said: hi"


def test_what_it_can_not_do_is_said_before_anything_is_sent(claude: Any, server: AnthropicServer, ask: Ask) -> None:
    assert "collect.top_k = 0" in str(ask(claude, top=5))
    with pytest.raises(ProviderError, match="does not score given text"):
        asyncio.run(claude().score(ScoreRequest("x", 0)))
    late = ({"role": "user", "content": "a"}, {"role": "system", "content": "b"}, {"role": "user", "content": "c"})
    assert isinstance(ask(claude, messages=late), RequestRefusedError)
    assert server.seen == []


@pytest.mark.slow
def test_the_key_is_nowhere_to_be_seen(
    claude: Any, server: AnthropicServer, ask: Ask, everything_logged: Callable[[], str]
) -> None:
    refusals: list[Any] = [None, (401, error_body(401, f"invalid x-api-key {KEY}"))]
    teacher = claude()
    shown = [repr(teacher), str(teacher), str(teacher.description), repr(vars(teacher)["_redact"])]
    for refusal in refusals:
        server.refuse = refusal
        for fault in (None, CUT_BEFORE, CUT_BODY, INVALID_JSON, rate_limited("1")):
            server.player.reset(script(fault))
            answer = ask(claude)
            shown.append(repr(answer))
            if isinstance(answer, Exception):
                assert answer.__cause__ is None
                assert answer.__context__ is None
                shown.append("".join(traceback.format_exception(answer)))
    shown.append(everything_logged())
    assert len(shown) > 10
    assert not [text for text in shown if "canary" in text]
    asyncio.run(teacher.aclose())
    gc.collect()
