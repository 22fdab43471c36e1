"""Who is connected: a bounded number, each with a bounded time for its request, and nobody who has left."""

import asyncio
import contextlib
import os
import select
import socket
import time
from collections.abc import Callable, Iterator

import attrs

HEADERS_S = 10.0
"""For the headers of a connection's first request to come."""
IDLE_S = 75.0
"""For the next request on a connection: clients keep theirs open for a while."""
BODY_S = 30.0
"""For its body."""
WRITE_S = 60.0
"""For a client to take a part of its answer."""
MOST = 256
"""Connections beside those that wait for an answer."""
SPARE_FILES = 16
"""Of those that the process may open: for the model, and for what is refused."""
LOOK_EVERY_S = 0.2
RETRY_S = 0.2
TELL_EVERY_S = 60.0
FULL = b"HTTP/1.1 503 Service Unavailable\r\nConnection: close\r\nRetry-After: 1\r\nContent-Length: 0\r\n\r\n"


def free_files() -> int:
    """How many more files (connections are files) this process may open."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return MOST * 16
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if limit == resource.RLIM_INFINITY:
        return MOST * 16
    opened = sum(_is_open(number) for number in range(min(limit, 4096)))
    return max(0, limit - opened)


def _is_open(number: int) -> bool:
    try:
        os.fstat(number)
    except OSError:
        return False
    return True


@attrs.define(eq=False)
class Connections:
    """The open connections of one server, used from one event loop.

    Where there is no room for a new one, the one that has kept its next request back longest is closed for it.
    """

    most: int = MOST
    log: Callable[[str], None] = lambda line: None
    _open: dict[asyncio.BaseTransport, float | None] = attrs.field(factory=dict, init=False)
    """Until when (monotonic seconds) a request must have come; None: one is being answered."""

    async def accept(self, listening: socket.socket, factory: Callable[[], asyncio.Protocol]) -> None:
        """Take connections until cancelled.

        asyncio's own loop writes a traceback for each try where files have run out, and tries ever more often.
        """
        loop, told = asyncio.get_running_loop(), -TELL_EVERY_S
        while True:
            try:
                connection, _ = await loop.sock_accept(listening)
            except OSError as error:
                if time.monotonic() - told >= TELL_EVERY_S:
                    told = time.monotonic()
                    self.log(f"a connection can't be taken ({error.strerror}); tried again, told once a minute")
                self._make_room()
                await asyncio.sleep(RETRY_S)
                continue
            if len(self._open) >= self.most and not self._make_room():
                with contextlib.suppress(OSError):
                    connection.send(FULL)
                connection.close()
                continue
            try:
                transport, _ = await loop.connect_accepted_socket(factory, connection)
            except OSError:  # it has gone again
                connection.close()
                continue
            self._open[transport] = time.monotonic() + HEADERS_S

    async def watch(self) -> None:
        """Close, until cancelled, what has taken too long, and what nobody is at the other end of."""
        while True:
            await asyncio.sleep(LOOK_EVERY_S)
            now = time.monotonic()
            for transport, until in list(self._open.items()):
                if transport.is_closing():
                    del self._open[transport]
                elif has_left(transport) if until is None else until < now:
                    _abort(transport)
                    del self._open[transport]

    @contextlib.contextmanager
    def request(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """A request's headers are there: from now on its body has its time; afterwards the next request has."""
        self._wait(transport, BODY_S + HEADERS_S)
        try:
            yield
        finally:
            self._wait(transport, IDLE_S)

    @contextlib.contextmanager
    def answering(self, transport: asyncio.BaseTransport | None) -> Iterator[None]:
        """The request is there whole: its client waits for us, and must not leave."""
        if transport in self._open:
            self._open[transport] = None
        try:
            yield
        finally:
            self._wait(transport, IDLE_S)

    def _wait(self, transport: asyncio.BaseTransport | None, seconds: float) -> None:
        if transport in self._open:
            self._open[transport] = time.monotonic() + seconds

    def _make_room(self) -> bool:
        """Close the connection that has waited longest with nothing asked. Whether there was one."""
        waiting = [(until, transport) for transport, until in self._open.items() if until is not None]
        if not waiting:
            return False
        _, transport = min(waiting, key=lambda each: each[0])
        _abort(transport)
        del self._open[transport]
        return True


def has_left(transport: asyncio.BaseTransport) -> bool:
    """Whether the client has closed its end. asyncio doesn't see it while a client has sent more than it reads."""
    connection = transport.get_extra_info("socket")
    if connection is None or connection.fileno() < 0 or not hasattr(select, "POLLRDHUP"):  # Linux has it
        return False
    poll = select.poll()
    poll.register(connection.fileno(), select.POLLRDHUP)
    return bool(poll.poll(0))


def _abort(transport: asyncio.BaseTransport) -> None:
    assert isinstance(transport, asyncio.WriteTransport)
    transport.abort()
