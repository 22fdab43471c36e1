"""The server's routes with a runtime that says what it is told to: shapes, the line, leaving early, the end."""

import asyncio
import json
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import openai
import pytest
from aiohttp import ClientSession, web
from yarl import URL

from bitnet_cli.serving.access_control import Access
from bitnet_cli.serving.routes import Service
from bitnet_cli.serving.waiting_line import Turns
from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import (
    Candidate,
    Ending,
    Piece,
    Prompt,
    PromptError,
    RuntimeEndedError,
    Sampling,
    Token,
)

CAT = "猫".encode()
SAID = (
    Piece("a", (Token(1, b"a", -0.5, (Candidate(1, b"a", -0.5), Candidate(2, b"b", -1.5))),)),
    Piece("猫", (Token(3, CAT[:1], -0.25), Token(4, CAT[1:], float("nan")))),
    Piece("", (Token(0, b"<|end|>", -0.125),)),
)
HELLO = {"messages": [{"role": "user", "content": "tea?"}]}
TEXT = {"prompt": "tea"}


@attrs.define
class Scripted:
    """Says `SAID`; waits before the piece after the first until `go` is set."""

    description: str = "scripted"
    asked: list[tuple[Prompt, Sampling]] = attrs.field(factory=list)
    go: threading.Event = attrs.field(factory=threading.Event)
    left: list[bool] = attrs.field(factory=list)
    """Of each answer: whether it was closed before its end."""
    turns: Turns | None = None
    """The line before it, while it is served."""
    connections: Callable[[], int] = lambda: 0
    """Of clients, that the server has open."""

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        raise AssertionError("the server reads pieces")

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        self.asked.append((prompt, sampling))
        if prompt == "too long":
            raise PromptError("the prompt is too long")
        if prompt == "ended":
            raise RuntimeEndedError("llama.cpp ended")
        if prompt == "failed":
            raise CoreError("the disk is full", "free some space")
        if prompt == "broken":
            raise RuntimeError("a secret of the machine's")
        try:
            yield SAID[0]
            assert self.go.wait(100)
            if prompt == "breaks":
                raise CoreError("it stopped")
            yield from SAID[1:]
        except GeneratorExit:
            self.left.append(True)
            raise
        self.left.append(False)
        return Ending("stop", 7, 4)


@asynccontextmanager
async def serving(
    runtime: Scripted,
    places: int = 8,
    key: str | None = None,
    log: Callable[[str], None] = lambda line: None,
    cancels: bool = True,
) -> AsyncIterator[str]:
    turns = Turns(runtime, places)
    service = Service(model="tea", turns=turns, access=Access(True, key), default_tokens=32, created=1, log=log)
    runner = web.AppRunner(service.app(), handler_cancellation=cancels, access_log=None)
    await runner.setup()
    assert runner.server is not None
    server = runner.server
    runtime.turns = turns
    runtime.connections = lambda: sum(each.transport is not None for each in server.connections)
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    try:
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        runtime.go.set()
        await turns.close()
        await runner.cleanup()


def told(use: Callable[[str, Scripted, ClientSession], Awaitable[None]], **options: Any) -> Scripted:
    """Run `use(address, runtime, session)` against a server."""
    runtime = Scripted()
    if not options.pop("waits", False):
        runtime.go.set()

    async def run() -> None:
        async with serving(runtime, **options) as address, ClientSession() as session:
            await asyncio.wait_for(use(address, runtime, session), 200)

    asyncio.run(run())
    return runtime


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_a_chat_answer_in_the_sdks_eyes() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        said = await client.chat.completions.create(
            model="tea", messages=[{"role": "user", "content": "tea?"}], logprobs=True, top_logprobs=2, seed=3,
            temperature=0.5, top_p=0.9, stop=["x"], max_completion_tokens=5,
        )  # fmt: skip
        choice = said.choices[0]
        assert (said.object, said.model) == ("chat.completion", "tea")
        assert (choice.message.content, choice.message.role, choice.finish_reason) == ("a猫", "assistant", "stop")
        assert said.usage is not None
        assert (said.usage.prompt_tokens, said.usage.completion_tokens, said.usage.total_tokens) == (7, 4, 11)
        assert choice.logprobs is not None
        tokens = choice.logprobs.content or []
        assert [bytes(token.bytes or []) for token in tokens] == [b"a", CAT[:1], CAT[1:], b"<|end|>"]
        assert [token.logprob for token in tokens] == [-0.5, -0.25, -9999.0, -0.125]
        assert [(bytes(each.bytes or []), each.logprob) for each in tokens[0].top_logprobs] == [
            (b"a", -0.5),
            (b"b", -1.5),
        ]
        models = await client.models.list()
        assert [each.id for each in models.data] == ["tea"]
        assert (await client.models.retrieve("tea")).owned_by == "bitnet-kde"
        await client.close()

    runtime = told(use)
    ((prompt, sampling),) = runtime.asked
    assert prompt == HELLO["messages"]
    assert sampling == Sampling(max_new_tokens=5, temperature=0.5, top_p=0.9, seed=3, stop=("x",), top_logprobs=2)


def test_a_streamed_chat_answer_is_the_whole_one_in_parts() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        stream = await client.chat.completions.create(
            model="tea", messages=[{"role": "user", "content": "tea?"}], logprobs=True, stream=True,
            stream_options={"include_usage": True},
        )  # fmt: skip
        events = [event async for event in stream]
        assert len({event.id for event in events}) == 1
        choices = [event.choices[0] for event in events if event.choices]
        assert choices[0].delta.role == "assistant"
        assert "".join(choice.delta.content or "" for choice in choices) == "a猫"
        tokens = [token for choice in choices if choice.logprobs for token in choice.logprobs.content or []]
        assert [bytes(token.bytes or []) for token in tokens] == [b"a", CAT[:1], CAT[1:], b"<|end|>"]
        assert [choice.finish_reason for choice in choices] == [None] * (len(choices) - 1) + ["stop"]
        assert events[-1].usage is not None
        assert events[-1].usage.completion_tokens == 4
        assert not events[-1].choices
        await client.close()

    told(use)


def test_a_legacy_answer_whole_and_streamed() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        client = openai.AsyncOpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)
        whole = await client.completions.create(model="tea", prompt="tea", logprobs=2)
        stream = await client.completions.create(model="tea", prompt="tea", logprobs=2, stream=True)
        events = [event async for event in stream]
        choice = whole.choices[0]
        assert (choice.text, choice.finish_reason) == ("a猫", "stop")
        assert choice.logprobs is not None
        assert choice.logprobs.tokens == ["a", "bytes:\\xe7", "bytes:\\x8c\\xab", "<|end|>"]
        assert choice.logprobs.token_logprobs == [-0.5, -0.25, -9999.0, -0.125]
        assert choice.logprobs.top_logprobs == [{"a": -0.5, "b": -1.5}, {}, {}, {}]
        assert choice.logprobs.text_offset == [0, 1, 2, 2]
        assert "".join(event.choices[0].text for event in events) == "a猫"
        offsets = [
            at for event in events if event.choices[0].logprobs for at in event.choices[0].logprobs.text_offset or []
        ]
        assert offsets == [0, 1, 2, 2]
        assert events[-1].choices[0].finish_reason == "stop"
        await client.close()

    told(use)


@pytest.mark.parametrize(
    ("method", "path", "send", "status", "said"),
    [
        (
            "POST",
            "/v1/chat/completions",
            {"data": b"{", "headers": {"Content-Type": "application/json"}},
            400,
            "no JSON",
        ),
        (
            "POST",
            "/v1/chat/completions",
            {"data": b"[" * 100_000, "headers": {"Content-Type": "application/json"}},
            400,
            "no JSON",
        ),
        ("POST", "/v1/chat/completions", {"data": json.dumps(HELLO)}, 415, "send application/json"),
        (
            "POST",
            "/v1/completions",
            {"data": b"no gzip", "headers": {"Content-Type": "application/json", "Content-Encoding": "gzip"}},
            415,
            "send it as it is",
        ),
        ("POST", "/v1/chat/completions", {"json": {}}, 400, "messages"),
        ("POST", "/v1/chat/completions", {"json": HELLO | {"model": "coffee"}}, 404, "ask for 'tea'"),
        ("POST", "/v1/completions", {"json": {"prompt": "too long"}}, 400, "the prompt is too long"),
        ("POST", "/v1/completions", {"json": {"prompt": "too long", "stream": True}}, 400, "the prompt is too long"),
        ("POST", "/v1/completions", {"json": {"prompt": "broken"}}, 500, "read its terminal"),
        ("POST", "/v1/completions", {"json": {"prompt": "failed"}}, 500, "the disk is full"),
        ("POST", "/v1/completions", {"json": {"prompt": "ended"}}, 503, "llama.cpp ended"),
        ("GET", "/v1/models", {"headers": {f"x-{number}": "1" for number in range(101)}}, 431, "send at most 100"),
        ("POST", "/v1/completions", {"json": {"prompt": "x" * 9_000_000}}, 413, "Too Large"),
        ("GET", "/v1/models/coffee", {}, 404, "ask for 'tea'"),
        ("GET", "/v1/nowhere", {}, 404, "docs/serve.md"),
        ("GET", "/v1/completions", {}, 405, "docs/serve.md"),
        ("GET", "/v1/models", {"headers": {"Host": "evil.example"}}, 403, "local server"),
    ],
)
def test_errors_are_in_openais_shape(method: str, path: str, send: dict[str, Any], status: int, said: str) -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async with session.request(method, address + path, **send) as response:
            error = (await response.json())["error"]
        assert response.status == status
        assert said in error["message"]
        assert "secret" not in error["message"]
        assert set(error) == {"message", "type", "param", "code"}

    told(use)


def test_an_error_within_a_stream_is_its_last_event() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async with session.post(f"{address}/v1/completions", json={"prompt": "breaks", "stream": True}) as response:
            lines = [line for line in (await response.text()).split("\n\n") if line]
        assert json.loads(lines[-1].removeprefix("data: "))["error"]["message"] == "it stopped"
        assert "[DONE]" not in lines[-1]

    told(use)


def test_a_key_is_asked_for_everywhere_but_for_health() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async with session.get(f"{address}/health") as response:
            assert (response.status, await response.json()) == (200, {"status": "ok", "model": "tea", "waiting": 0})
        for headers, status in (({}, 401), ({"Authorization": "Bearer fake"}, 200)):
            async with session.get(f"{address}/v1/models", headers=headers) as response:
                assert response.status == status

    told(use, key="fake")


def test_one_answer_at_a_time_in_order_and_the_line_has_an_end() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async def ask(prompt: str) -> int:
            async with session.post(f"{address}/v1/completions", json={"prompt": prompt}) as response:
                await response.read()
                return response.status

        first = asyncio.create_task(ask("one"))
        await until(lambda: len(runtime.asked) == 1)
        others = [asyncio.create_task(ask("two")), asyncio.create_task(ask("three"))]
        waiting = 0
        while waiting < 2:
            async with session.get(f"{address}/health") as response:
                waiting = (await response.json())["waiting"]
        async with session.post(f"{address}/v1/completions", json=TEXT) as response:
            assert response.status == 429
            assert int(response.headers["Retry-After"]) >= 1
            assert (await response.json())["error"]["type"] == "rate_limit_error"
        assert len(runtime.asked) == 1, "the others wait"
        runtime.go.set()
        assert await asyncio.gather(first, *others) == [200, 200, 200]
        assert await ask("four") == 200

    runtime = told(use, waits=True, places=2)
    assert sorted(str(prompt) for prompt, _ in runtime.asked) == ["four", "one", "three", "two"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_ends_its_answer_and_one_that_waits_leaves_the_line(stream: bool) -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async def ask(prompt: str) -> None:
            async with session.post(f"{address}/v1/completions", json={"prompt": prompt, "stream": stream}) as response:
                await response.read()

        first = asyncio.create_task(ask("one"))
        await until(lambda: len(runtime.asked) == 1)
        second = asyncio.create_task(ask("two"))
        waiting = 0
        while waiting < 1:
            async with session.get(f"{address}/health") as response:
                waiting = (await response.json())["waiting"]
        second.cancel()
        while waiting:
            async with session.get(f"{address}/health") as response:
                waiting = (await response.json())["waiting"]
        first.cancel()
        await asyncio.gather(first, second, return_exceptions=True)
        await until(lambda: not runtime.turns._inside)  # the server has heard of it
        runtime.go.set()
        await until(lambda: bool(runtime.left))
        await ask("three")

    runtime = told(use, waits=True)
    assert runtime.left == [True, False]
    assert [prompt for prompt, _ in runtime.asked] == ["one", "three"]


def test_closing_tells_those_who_wait() -> None:
    runtime = Scripted()

    async def run() -> list[Any]:
        turns = Turns(runtime, 4)

        async def ask() -> None:
            async for _ in turns.answer("tea", Sampling()):
                pass

        asks = [asyncio.create_task(ask()) for _ in range(2)]
        await until(lambda: len(runtime.asked) == 1)
        closing = asyncio.create_task(turns.close())
        await asyncio.sleep(0)
        runtime.go.set()
        await closing
        late = asyncio.create_task(ask())
        return await asyncio.gather(*asks, late, return_exceptions=True)

    errors = asyncio.run(run())
    assert [error.status for error in errors] == [503, 503, 503]
    assert len(runtime.asked) == 1


def test_a_header_that_is_no_text_is_a_wrong_key_and_nothing_where_none_is_asked_for() -> None:
    for key, status in ((None, b"200"), ("fake", b"401")):

        async def use(address: str, runtime: Scripted, session: ClientSession, status: bytes = status) -> None:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(address.rsplit(":", 1)[1]))
            writer.write(b"GET /v1/models HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer \xff\xfe\r\n\r\n")
            assert (await reader.readline()).split()[1] == status
            writer.close()

        told(use, key=key)


def test_a_path_writes_one_line_of_the_log_and_nothing_that_drives_a_terminal() -> None:
    lines: list[str] = []

    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async with session.get(URL(f"{address}/v1/%1b%5b2J%0aPOST", encoded=True)) as response:
            assert response.status == 404

    told(use, log=lines.append)
    (line,) = lines
    assert line.startswith(r"GET /v1/\x1b[2J\nPOST 404")


def test_a_reader_that_left_when_the_next_piece_is_sent_is_no_fault_of_ours(capsys: pytest.CaptureFixture[str]) -> None:
    """Mostly the answer is cancelled before that; without cancelling it always comes to this."""
    lines: list[str] = []

    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        response = await session.post(f"{address}/v1/completions", json=TEXT | {"stream": True})
        await response.content.readline()
        response.close()
        await until(lambda: runtime.connections() == 0)  # the server has heard of it
        runtime.go.set()
        await until(lambda: bool(lines))

    told(use, waits=True, cancels=False, log=lines.append)
    assert " 200 " in lines[0]
    assert "Traceback" not in capsys.readouterr().err


def test_health_tells_that_the_runtime_has_ended() -> None:
    async def use(address: str, runtime: Scripted, session: ClientSession) -> None:
        async with session.post(f"{address}/v1/completions", json={"prompt": "too long"}) as response:
            assert response.status == 400
        async with session.get(f"{address}/health") as response:
            assert response.status == 200
        async with session.post(f"{address}/v1/completions", json={"prompt": "ended"}) as response:
            assert (await response.json())["error"]["code"] == "runtime_ended"
        async with session.get(f"{address}/health") as response:
            assert (response.status, (await response.json())["status"]) == (503, "ended")

    told(use)
