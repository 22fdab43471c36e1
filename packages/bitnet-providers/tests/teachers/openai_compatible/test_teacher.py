"""The adapters through their official SDKs against a loopback server, faults included."""

import asyncio
import json
import logging
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import numpy as np
import pytest

from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    Sampling,
    ScoreRequest,
)
from bitnet_providers.teachers.openai_compatible.answer import Response
from bitnet_providers.teachers.openai_compatible.model_url_key import capabilities_of, problems
from bitnet_providers.teachers.openai_compatible.options import (
    AimlapiConfig,
    GroqConfig,
    OpenAICompatibleConfig,
    OpenAIConfig,
)
from bitnet_providers.teachers.openai_compatible.scoring import scored
from bitnet_providers.teachers.openai_compatible.teacher import OpenAIShapedTeacher, open_with_groq, open_with_openai
from loopback.faults import (
    CUT_BEFORE,
    CUT_BODY,
    INVALID_JSON,
    WRONG_CONTENT_TYPE,
    Fault,
    FaultPlayer,
    damaged,
    failing,
    http_date,
    rate_limited,
    script,
    serving,
    slow,
)
from loopback.openai_server import KEY, OpenAIServer, error_body

KEYS = ("OPENAI_API_KEY", "AIMLAPI_API_KEY", "GROQ_API_KEY", "DEEPSEEK_API_KEY")


@pytest.fixture
def server() -> OpenAIServer:
    return OpenAIServer()


@pytest.fixture
def player() -> FaultPlayer:
    return FaultPlayer(error_body=error_body)


@pytest.fixture
def url(server: OpenAIServer, player: FaultPlayer, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in KEYS:
        monkeypatch.setenv(name, KEY)
        monkeypatch.delenv(name.replace("API_KEY", "BASE_URL"), raising=False)
    with serving(server.app(player)) as address:
        yield address


def openai(url: str, **more: Any) -> OpenAIConfig:
    return OpenAIConfig(model="loopback-1", base_url=f"{url}/v1", **more)


def compatible(url: str, **more: Any) -> OpenAICompatibleConfig:
    options = {"model": "loopback-1", "base_url": f"{url}/v1", "api_key_env": "OPENAI_API_KEY", **more}
    return OpenAICompatibleConfig(**options)


def request(top_logprobs: int = 20, text: str = "Hello", **sampling: Any) -> GenerateRequest:
    settings = {"temperature": 1.0, "top_p": 1.0, "max_new_tokens": 12, "seed": 3, **sampling}
    return GenerateRequest(({"role": "user", "content": text},), Sampling(**settings), top_logprobs)


def ask(options: Any, *requests: GenerateRequest | ScoreRequest, open_: Callable[[Any], Any] = open_with_openai) -> Any:
    """The answers in turn; a ProviderError in its place."""

    async def run() -> list[Completion | ProviderError]:
        teacher: OpenAIShapedTeacher = open_(options)
        found: list[Completion | ProviderError] = []
        try:
            for each in requests:
                try:
                    put = teacher.generate if isinstance(each, GenerateRequest) else teacher.score
                    found.append(await put(each))  # type: ignore[operator]
                except ProviderError as error:
                    found.append(error)
        finally:
            await teacher.aclose()
        return found

    found = asyncio.run(run())
    return found[0] if len(found) == 1 else found


def same(a: Completion, b: Completion) -> bool:
    fields = set(attrs.fields_dict(Completion)) - {"latency_s"}
    pairs = [(getattr(a, name), getattr(b, name)) for name in fields]
    return all(np.array_equal(x, y) if isinstance(x, np.ndarray) else x == y for x, y in pairs)


@pytest.mark.parametrize("stream", [False, True])
def test_an_administrators_key_in_the_environment_goes_nowhere(
    url: str, server: OpenAIServer, monkeypatch: pytest.MonkeyPatch, stream: bool
) -> None:
    monkeypatch.setenv("OPENAI_ADMIN_KEY", "sk-admin-not-a-key")
    assert isinstance(ask(openai(url, stream=stream), request()), Completion)  # the server takes one key alone
    server.key = "none"
    keyless = OpenAICompatibleConfig(model="loopback-1", base_url=f"{url}/v1", stream=stream)
    assert isinstance(ask(keyless, request()), Completion)


# --- what is asked ---------------------------------------------------------------------------------------------------


def test_what_openai_is_asked(url: str, server: OpenAIServer) -> None:
    ask(openai(url), request(), request(5, temperature=0.0, top_p=0.9), request(0))
    shared = {"model": "loopback-1", "messages": [{"role": "user", "content": "Hello"}], "seed": 3,
              "max_completion_tokens": 12}  # fmt: skip
    assert server.seen == [
        {**shared, "logprobs": True, "top_logprobs": 20},  # reasoning models refuse temperature, even at 1
        {**shared, "logprobs": True, "top_logprobs": 5, "temperature": 0.0, "top_p": 0.9},
        shared,
    ]


def test_what_servers_of_one_s_own_are_asked(url: str, server: OpenAIServer) -> None:
    ask(compatible(url, preset="vllm", extra_body={"top_k": 50}, send_seed=False, reasoning_effort="low"), request(2))
    assert server.seen == [
        {
            "model": "loopback-1",
            "messages": [{"role": "user", "content": "Hello"}],
            "max_tokens": 12,
            "temperature": 1.0,
            "top_p": 1.0,
            "logprobs": True,
            "top_logprobs": 2,
            "reasoning_effort": "low",
            "top_k": 50,
            "min_p": 0.0,
            "repetition_penalty": 1.0,
        }
    ]
    ask(compatible(url, preset="together"), request(2))
    assert (server.seen[-1]["logprobs"], "top_logprobs" in server.seen[-1]) == (2, False)


@pytest.mark.parametrize("stream", [False, True])
def test_answers(url: str, stream: bool) -> None:
    found = ask(openai(url, stream=stream), request())
    assert b"".join(found.token_bytes) == found.text
    assert len(found.token_bytes) == 12
    assert found.candidate_counts.tolist() == [20] * 12
    assert np.isfinite(found.token_logprobs).all()
    assert (found.model, found.finish_reason, found.prompt_tokens) == ("loopback-1", "length", 9)
    assert found.usage["completion_tokens"] == 12
    assert found.latency_s > 0
    assert set(found.repairs) <= {"sampled_outside", "texts_differing"}


def test_a_stream_gives_the_same_completion(url: str) -> None:
    texts = [f"question {number}" for number in range(8)]
    whole = ask(openai(url), *(request(text=text) for text in texts))
    streamed = ask(openai(url, stream=True), *(request(text=text) for text in texts))
    assert all(same(a, b) for a, b in zip(whole, streamed, strict=True))


def test_aimlapi_and_groq(url: str, server: OpenAIServer) -> None:
    found = ask(AimlapiConfig(model="loopback-1", base_url=f"{url}/v1"), request())
    assert found.candidate_counts.tolist() == [20] * 12
    found = ask(GroqConfig(model="loopback-1", base_url=url), request(0), open_=open_with_groq)
    assert (found.token_bytes, found.candidate_bytes) == ((found.text,), ())
    assert "logprobs" not in server.seen[-1]
    assert server.seen[-1]["max_completion_tokens"] == 12
    assert capabilities_of(GroqConfig(model="m")).max_top_logprobs == 0


# --- what goes wrong -------------------------------------------------------------------------------------------------

CUT = "a connection that went"


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("open_", [open_with_openai, open_with_groq])
@pytest.mark.parametrize(
    ("fault", "wait", "overloaded", "paid"),
    [
        (rate_limited(), None, True, False),
        (rate_limited("7"), 7.0, True, False),
        (failing(500), None, False, False),
        (failing(503, "2"), 2.0, False, False),
        (failing(504), None, False, True),
        (CUT_BEFORE, None, False, True),
        (CUT_BODY, None, False, True),
        (INVALID_JSON, None, False, True),
        (WRONG_CONTENT_TYPE, None, False, True),
        (damaged("no choices", lambda body: {**body, "choices": None}), None, False, True),
        (damaged("an error with status 200", lambda body: error_body(500)), None, False, True),
    ],
    ids=lambda value: value.name if isinstance(value, Fault) else None,
)
def test_faults_that_pass(
    url: str,
    player: FaultPlayer,
    fault: Fault,
    wait: float | None,
    overloaded: bool,
    paid: bool,
    stream: bool,
    open_: Any,
) -> None:
    if stream and fault.damage is not None:
        pytest.skip("a stream's events are spoilt in tests of their own")
    player.reset(script(fault))
    if open_ is open_with_groq:
        options: Any = GroqConfig(model="loopback-1", base_url=url, stream=stream)
    else:
        options = openai(url, stream=stream)
    error, after = ask(options, request(0), request(0), open_=open_)
    assert type(error) is RetryableError, error
    assert (error.overloaded, error.possibly_paid) == (overloaded, paid)
    assert error.retry_after_s == (None if wait is None else pytest.approx(wait, abs=0.4 * wait))
    assert isinstance(after, Completion)  # the teacher goes on
    assert len(player.played) == 2  # and the SDK retried nothing by itself


@pytest.mark.parametrize("stream", [False, True])
def test_a_wait_until_a_date(url: str, player: FaultPlayer, stream: bool) -> None:
    player.reset(script(rate_limited(http_date(600))))  # made here: tests are collected long before they run
    error = ask(openai(url, stream=stream), request())
    assert isinstance(error, RetryableError)
    assert error.overloaded
    assert error.retry_after_s == pytest.approx(600, abs=60)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("status", [301, 302])
def test_an_address_that_has_moved_is_told(url: str, status: int, stream: bool) -> None:
    with answering(status, {}, location="https://user:fake@new.example:8443/v1/chat/completions?key=fake") as address:
        error = ask(openai(address, stream=stream), request())
    assert type(error) is ProviderError  # not a page, asked for with GET, that is no JSON
    assert f"answered {status} to https://new.example:8443/v1/chat/completions; teacher.base_url" in error.why
    assert error.fix == "write its new address"


@pytest.mark.parametrize("stream", [False, True])
def test_a_server_that_is_not_there_or_too_slow(url: str, player: FaultPlayer, stream: bool) -> None:
    gone = ask(openai("http://127.0.0.1:9", stream=stream), request())
    assert isinstance(gone, RetryableError)
    assert not gone.possibly_paid
    player.reset(script(slow(100.0, piece_bytes=1)))
    late = ask(openai(url, stream=stream, timeout_s=0.2), request())
    assert isinstance(late, RetryableError)
    assert late.possibly_paid
    assert "raise teacher.timeout_s" in late.fix


def test_slow_bytes_are_waited_for(url: str, player: FaultPlayer) -> None:
    player.reset(script(slow(0.001, piece_bytes=4096)))
    assert isinstance(ask(openai(url), request()), Completion)


def test_a_stream_that_ends_early(url: str, player: FaultPlayer) -> None:
    player.reset(script(Fault("half", body=b'data: {"choices": [{"index": 0, "delta": {"content": "Hi"}}]}\n\n')))
    error = ask(openai(url, stream=True), request())
    assert isinstance(error, RetryableError)
    assert error.possibly_paid
    player.reset(
        script(Fault("error", body=b': comment\n\ndata: {"error": {"code": 429, "message": "slow down"}}\n\n'))
    )
    error = ask(openai(url, stream=True), request())
    assert isinstance(error, RetryableError)
    assert error.overloaded


def refusing(status: int, error: dict[str, Any], **headers: str) -> Any:
    return answering(status, {"error": error}, **headers)


def answering(status: int, body: object, *, stream: bool = False, **headers: str) -> Any:
    """A server that always says the same: `body`, as the only event of a stream (None: no event) or as a whole."""
    from aiohttp import web

    app = web.Application()
    event = "" if body is None else f"data: {json.dumps(body)}\n\n"

    async def refuse(_: web.Request) -> web.Response:
        if stream:
            return web.Response(text=f"{event}data: [DONE]\n\n", content_type="text/event-stream")
        return web.json_response(body, status=status, headers=headers)

    app.router.add_post("/v1/chat/completions", refuse)
    return serving(app)


@pytest.mark.parametrize(
    ("status", "error", "kind", "message"),
    [
        (429, {"message": "You exceeded your current quota", "code": "insufficient_quota"}, ProviderError, "top it up"),
        (402, {"message": "Insufficient Balance"}, ProviderError, "top it up"),
        (403, {"message": "no access"}, ProviderError, "OPENAI_API_KEY may not use this model"),
        (404, {"message": "The model `x` does not exist", "code": "model_not_found"}, ProviderError, "teacher.model"),
        (400, {"message": "This model does not support logprobs", "param": "logprobs"}, ProviderError,
         "teacher.max_top_logprobs = 0"),
        (400, {"message": "`logprobs` is not supported here"}, ProviderError, "teacher.max_top_logprobs = 0"),
        (400, {"message": "too many", "param": "top_logprobs"}, ProviderError, "set teacher.max_top_logprobs to what"),
        (400, {"message": "Unsupported parameter: 'max_tokens' is not supported", "param": "max_tokens",
               "code": "unsupported_parameter"}, ProviderError, 'max_tokens_field = "max_completion_tokens"'),
        (400, {"message": "maximum context length is 10 tokens", "code": "context_length_exceeded",
               "param": "messages"}, RequestRefusedError, "maximum context length"),
        (400, {"message": "content management policy", "code": "content_filter"}, RequestRefusedError, "management"),
        (403, {"message": 'Your input was flagged for "violence"', "code": 403}, RequestRefusedError, "was flagged"),
        (200, {"message": "The response was filtered", "code": "content_filter"}, RequestRefusedError, "was filtered"),
        (500, {"message": "no", "type": "data_inspection_failed"}, RequestRefusedError, "answered 500: no"),
        (422, {"message": "no such role"}, RequestRefusedError, "no such role"),
        (413, {"message": "too large"}, RequestRefusedError, "too large"),
    ],
)  # fmt: skip
def test_refusals_say_what_to_do(
    url: str, status: int, error: dict[str, Any], kind: type[ProviderError], message: str
) -> None:
    with refusing(status, error) as address:
        found = ask(openai(address), request())
    assert type(found) is kind
    assert message in str(found)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("usage", [None, {"prompt_tokens": 9, "completion_tokens": 0}])
def test_an_answer_that_a_gateway_leaves_out_is_a_filtered_one(
    url: str, stream: bool, usage: dict[str, int] | None
) -> None:
    body = {"id": "x", "model": "m", "choices": [], "usage": usage}
    with answering(200, body, stream=stream) as address:
        found = ask(openai(address, stream=stream), request())
    assert (found.finish_reason, found.text, len(found.token_logprobs), found.repairs) == ("content_filter", b"", 0, {})
    assert found.usage == (usage or {})


@pytest.mark.parametrize("event", [None, {"model": "m"}])
def test_a_stream_without_any_choices_is_lost(url: str, event: dict[str, str] | None) -> None:
    with answering(200, event, stream=True) as address:
        found = ask(openai(address, stream=True), request())
    assert isinstance(found, RetryableError)
    assert found.answered


def test_limits_that_are_used_up_say_when_they_come_back(url: str) -> None:
    headers = {"x-ratelimit-remaining-tokens": "0", "x-ratelimit-reset-tokens": "1m2.5s",
               "x-ratelimit-remaining-requests": "5", "x-ratelimit-reset-requests": "1h"}  # fmt: skip
    with refusing(429, {"message": "slow"}, **headers) as address:
        found = ask(openai(address), request())
    assert (found.retry_after_s, found.overloaded) == (62.5, True)


# --- scoring ---------------------------------------------------------------------------------------------------------

TEXT = "The sea is calm and wide"


def test_a_text_that_a_filter_left_out_is_refused_for_good() -> None:
    server: Any = SimpleNamespace(base_url="http://x", scoring="echo")
    with pytest.raises(RequestRefusedError, match="a content filter left it out"):
        scored(Response(choices=[]), ScoreRequest(TEXT, top_logprobs=1), server, latency_s=0.1)


@pytest.mark.parametrize("method", ["echo", "prompt_logprobs"])
def test_scoring_a_plain_text(url: str, method: str) -> None:
    options = compatible(url, scoring=method)
    assert capabilities_of(options).scoring
    whole, cut = ask(options, ScoreRequest(TEXT, 5), ScoreRequest(TEXT, 5, max_tokens=3))
    assert (whole.text, whole.token_bytes[1], whole.finish_reason) == (TEXT.encode(), b" sea", "scored")
    assert np.isnan(whole.token_logprobs).tolist() == [True] + [False] * 5
    assert whole.candidate_counts.tolist() == [0, 5, 5, 5, 5, 5]
    assert (cut.text, len(cut.token_logprobs)) == (b"The sea is", 3)


def test_scoring_an_answer(url: str, server: OpenAIServer) -> None:
    options = compatible(url, preset="vllm")
    found = ask(options, ScoreRequest(TEXT, 5, ({"role": "user", "content": "Say it"},)))
    assert (found.text, found.token_bytes[0]) == (TEXT.encode(), b"The")
    assert np.isfinite(found.token_logprobs).all()
    assert {name: server.seen[-1][name] for name in ("add_generation_prompt", "continue_final_message")} == {
        "add_generation_prompt": False, "continue_final_message": True
    }  # fmt: skip
    refused = ask(compatible(url, scoring="echo"), ScoreRequest(TEXT, 5, ({"role": "user", "content": "Say it"},)))
    assert "scores plain texts only" in str(refused)


@pytest.mark.parametrize("method", ["echo", "prompt_logprobs"])
def test_a_server_that_ignores_it_is_found_out(url: str, server: OpenAIServer, method: str) -> None:
    server.scores = False
    refused = ask(compatible(url, scoring=method), ScoreRequest(TEXT, 5))
    assert type(refused) is ProviderError
    assert f"ignores {method}" in str(refused)
    assert 'teacher.scoring = "off"' in str(refused)


def test_a_server_that_scores_another_text(url: str, server: OpenAIServer) -> None:
    def spoil(body: dict[str, Any]) -> dict[str, Any]:
        block = body["choices"][0]["logprobs"]
        block["tokens"][1] = " lake"
        return body

    server.answer = spoil
    refused = ask(compatible(url, scoring="echo"), ScoreRequest(TEXT, 5))
    assert type(refused) is RequestRefusedError
    assert not capabilities_of(compatible(url)).scoring


# --- options ---------------------------------------------------------------------------------------------------------


def test_problems_are_told_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_MODEL", "OPENAI_BASE_URL"):
        monkeypatch.delenv(name, raising=False)
    assert [each.why.split(":")[0] for each in problems(OpenAIConfig())] == ["model", "api_key_env"]
    assert problems(OpenAIConfig())[1].fix == "export OPENAI_API_KEY=..., or put it in .env"
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake")
    monkeypatch.setenv("OPENAI_MODEL", "m")
    assert problems(OpenAIConfig()) == []
    assert [each.why.split(":")[0] for each in problems(OpenAICompatibleConfig(model="m"))] == ["base_url"]
    assert problems(OpenAICompatibleConfig(model="m", preset="vllm")) == []  # runs without a key
    assert problems(OpenAICompatibleConfig(model="m", preset="vllm", api_key_env="NO_SUCH_KEY")) != []
    for url in ("https://u:p@host/v1", "https://host/v1?api-key=fake-secret", "http://host:80oo/v1"):
        (problem,) = problems(OpenAIConfig(base_url=url))
        assert "without user, password and query" in problem.fix
        assert "fake-secret" not in str(problem)
        (problem,) = problems(OpenAIConfig(base_urls=(url,)))
        assert "fake-secret" not in str(problem)
    assert list(map(str, problems(OpenAIConfig(extra_body={"n": 2})))) == [
        "extra_body.n: this field is not set here  → take it out: it has an option of its own, or belongs to [collect]"
    ]
    (problem,) = problems(OpenAIConfig(extra_body={"api_key": "fake-secret", "top_k": 5}))  # LiteLLM takes one there
    assert problem.why == "extra_body.api_key: a secret here would go into reports and shards"
    with pytest.raises(ProviderError, match=r"teacher\.base_url"):
        open_with_openai(OpenAICompatibleConfig(model="m"))


@pytest.mark.parametrize(
    ("base_url", "external"),
    [("http://127.0.0.1:8000/v1", False), ("http://[::1]:1/v1", False), ("http://localhost/v1", False),
     ("http://10.0.0.2:8000/v1", True), ("https://127.0.0.1.example.com/v1", True), ("", True)],
)  # fmt: skip
def test_a_server_on_this_machine_is_not_external(base_url: str, external: bool) -> None:
    assert capabilities_of(OpenAIConfig(model="m", base_url=base_url)).external is external


# --- the key ---------------------------------------------------------------------------------------------------------

CANARY = "sk-canary-not-a-key-5f2c9d71"


@pytest.mark.slow
@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("open_", [open_with_openai, open_with_groq])
def test_a_key_appears_nowhere(
    url: str,
    player: FaultPlayer,
    server: OpenAIServer,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
    stream: bool,
    open_: Any,
) -> None:
    """The server says the key back in its errors; a collection runs into them, with every log on."""
    for name in KEYS:
        monkeypatch.setenv(name, CANARY)
    caplog.set_level(logging.DEBUG)
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"id": "1", "prompt": "Hello"}\n')
    config = CollectConfig(prompts=prompts, max_new_tokens=4, top_k=0)
    if open_ is open_with_groq:
        options: Any = GroqConfig(model="loopback-1", base_url=url, stream=stream)
    else:
        options = openai(url, stream=stream)
    shown = []

    async def run() -> None:
        teacher = open_(options)
        shown.extend([repr(teacher), str(teacher.description), repr(options)])
        try:
            await collect(teacher, config, tmp_path / "raw", "openai", 0)
        finally:
            await teacher.aclose()

    for fault in (None, CUT_BEFORE, CUT_BODY, INVALID_JSON, failing(401)):
        player.reset(script(*[fault] * 3))
        server.key = KEY  # the canary is a wrong key: 401 with the key in its message
        try:
            asyncio.run(run())
        except ProviderError as error:
            shown.append("".join(traceback.format_exception(error)))
    server.key = CANARY
    player.reset(script())
    asyncio.run(run())
    assert any("check the key in the environment variable" in each for each in shown)
    written = b"".join(path.read_bytes() for path in tmp_path.rglob("*") if path.is_file())
    assert b"loopback-1" in written
    assert CANARY.encode() not in written
    assert CANARY not in "".join([*shown, caplog.text, *capsys.readouterr()])
