"""Who may stay connected: a bounded number, each for a bounded time, and nobody whose client has gone."""

import asyncio
import errno
import select
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Generator
from contextlib import asynccontextmanager
from typing import Any

import attrs
import pytest

from bitnet_cli.serving import connections, routes
from bitnet_cli.serving.access_control import Access
from bitnet_cli.serving.connections import Connections
from bitnet_cli.serving.routes import Service
from bitnet_cli.serving.start_server import bound_socket, running
from bitnet_cli.serving.waiting_line import Turns
from bitnet_core.runtime.contract import Ending, Piece, Prompt, Sampling

HEALTH = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"


@attrs.define
class Endless:
    """Answers until nobody reads any more."""

    description: str = "endless"
    asked: threading.Event = attrs.field(factory=threading.Event)
    left: threading.Event = attrs.field(factory=threading.Event)

    def stream(self, prompt: Prompt, sampling: Sampling) -> Generator[str, None, Ending]:
        raise AssertionError("the server reads pieces")

    def pieces(self, prompt: Prompt, sampling: Sampling) -> Generator[Piece, None, Ending]:
        self.asked.set()
        try:
            while True:
                threading.Event().wait(0.001)
                yield Piece("")  # nothing that could be told: it may belong to a stop string
        finally:
            self.left.set()


def posted(body: bytes, length: int | None = None) -> bytes:
    head = "POST /v1/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: "
    return f"{head}{len(body) if length is None else length}\r\n\r\n".encode() + body


@asynccontextmanager
async def serving(
    runtime: Endless, most: int = 64, log: Callable[[str], None] = lambda line: None
) -> AsyncIterator[int]:
    turns = Turns(runtime, 8)
    service = Service(
        model="tea", turns=turns, access=Access(True, None), default_tokens=32, created=1, log=log,
        connections=Connections(most, log),
    )  # fmt: skip
    with bound_socket("127.0.0.1", 0) as listening:
        async with running(service, listening):
            try:
                yield listening.getsockname()[1]
            finally:
                await turns.close()


def told(use: Callable[[int, Endless], Awaitable[None]], **options: Any) -> None:
    async def run() -> None:
        runtime = Endless()
        async with serving(runtime, **options) as port:
            await asyncio.wait_for(use(port, runtime), 60)

    asyncio.run(run())


async def send(port: int, text: bytes) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(text)
    await writer.drain()
    return reader, writer


async def status(port: int, text: bytes) -> bytes:
    """The status of the answer; empty where the connection was closed without one."""
    reader, writer = await send(port, text)
    try:
        return (await reader.readline())[9:12]
    except ConnectionError:
        return b""
    finally:
        writer.close()


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.005)


def test_headers_that_never_end_are_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(connections, "HEADERS_S", 0.2)

    async def use(port: int, runtime: Endless) -> None:
        for begun in (b"", b"GET /health HTTP/1.1\r\nHost: 127."):
            reader, _ = await send(port, begun)
            assert await reader.read() == b""

    told(use)


def test_a_body_that_never_ends_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(routes, "BODY_S", 0.1)

    async def use(port: int, runtime: Endless) -> None:
        assert await status(port, posted(b"{", length=100)) == b"408"

    told(use)


def test_who_only_holds_a_connection_gives_way() -> None:
    async def use(port: int, runtime: Endless) -> None:
        held = [await send(port, b"GET /health") for _ in range(30)]
        assert await status(port, HEALTH) == b"200"
        assert await held[0][0].read() == b"", "the first one was closed for a later one"
        for _, writer in held:
            writer.close()

    told(use, most=5)


def test_who_waits_for_an_answer_does_not_give_way() -> None:
    async def use(port: int, runtime: Endless) -> None:
        _, writer = await send(port, posted(b'{"prompt": "tea"}'))
        await until(runtime.asked.is_set)
        assert await status(port, HEALTH) == b"503"
        assert not runtime.left.is_set()
        writer.close()
        await until(runtime.left.is_set)

    told(use, most=1)


@pytest.mark.parametrize("stream", [b"", b', "stream": true'])
@pytest.mark.skipif(not hasattr(select, "POLLRDHUP"), reason="only Linux tells it")
def test_a_client_that_sent_more_than_was_read_and_left_ends_its_answer(stream: bytes) -> None:
    """asyncio stops reading then, and doesn't see the connection's end."""

    async def use(port: int, runtime: Endless) -> None:
        _, writer = await send(port, posted(b'{"prompt": "tea"%s}' % stream) + HEALTH * 2000)
        await until(runtime.asked.is_set)
        writer.close()
        await until(runtime.left.is_set)

    told(use)


def test_without_a_file_to_spare_one_line_is_told_and_the_next_client_is_answered() -> None:
    lines: list[str] = []

    async def use(port: int, runtime: Endless) -> None:
        loop: Any = asyncio.get_running_loop()
        accept, left = loop.sock_accept, [errno.EMFILE] * 3

        async def scarce(listening: Any) -> Any:
            if left:
                raise OSError(left.pop(), "Too many open files")
            return await accept(listening)

        loop.sock_accept = scarce
        await status(port, HEALTH)  # by the call that waits already
        assert await status(port, HEALTH) == b"200"
        assert not left

    told(use, log=lines.append)
    assert len([line for line in lines if "Too many open files" in line]) == 1


def test_what_is_no_request_is_one_line_that_drives_no_terminal() -> None:
    lines: list[str] = []

    async def use(port: int, runtime: Endless) -> None:
        for odd in (b"\x1b]0;owned\x07 / HTTP/1.1\r\n\r\n", b"GET /\x1b[2J HTTP/1.1\r\n\r\n"):
            assert await status(port, odd) == b"400"

    told(use, log=lines.append)
    assert 1 <= len(lines) <= 2, "aiohttp leaves some out"
    assert all(line.isprintable() for line in lines)
