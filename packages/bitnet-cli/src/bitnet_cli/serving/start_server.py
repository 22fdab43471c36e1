"""From options to a running server, and its end."""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable

from aiohttp import web

from bitnet_cli.errors import UserError
from bitnet_cli.serving.connections import IDLE_S
from bitnet_cli.serving.routes import Service

LAST_TOKEN_S = 1.0
"""For the token that is being computed when the server is told to stop."""
LAST_WORDS_S = 0.5
"""To tell those who are still being answered."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Taken before a model is loaded: a port in use is an error at once. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except (OSError, UnicodeError) as error:
        why = getattr(error, "strerror", None) or "no host's name"
        raise UserError(f"--host {host}: {why}", "name an address of this machine") from error
    try:
        if os.name == "posix":  # Windows would let two servers have one port
            taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        taken.bind(address)
    except OSError as error:
        taken.close()
        raise UserError(
            f"{host}:{port} can't be taken: {error.strerror}",
            "choose another --port (0 takes any free one), or stop what listens there",
        ) from error
    return taken


def run_server(service: Service, listening: socket.socket, ready: Callable[[], None], last: Callable[[], None]) -> None:
    """Serve until Ctrl-C or SIGTERM; `ready` is called when requests are taken, `last` when none is any more.

    Whoever sent the signal waits seconds and then kills: where the model is in the middle of a token, the process ends
    without it, with exit code 0.
    """
    rested = asyncio.run(serve(service, listening, ready))
    last()
    if not rested:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):
                stream.flush()
        os._exit(0)


async def serve(service: Service, listening: socket.socket, ready: Callable[[], None]) -> bool:
    """Until a signal comes. Answers that run then are cut off. Whether the model's thread has ended."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = []
    with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt comes instead
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
            caught.append(number)
    try:
        async with running(service, listening):
            ready()
            await stop.wait()
            for number in caught:  # a second one ends the process at once
                loop.remove_signal_handler(number)
                signal.signal(number, signal.SIG_DFL)
            return await service.turns.close(LAST_TOKEN_S)
    finally:
        if caught:
            signal.signal(signal.SIGINT, signal.default_int_handler)


@contextlib.asynccontextmanager
async def running(service: Service, listening: socket.socket) -> AsyncIterator[None]:
    """Requests are taken at `listening`, a bound socket, until the end."""
    runner = web.AppRunner(
        service.app(),
        handler_cancellation=True,
        access_log=None,
        logger=_logger(service.log),
        shutdown_timeout=LAST_WORDS_S,
        handle_signals=False,
        keepalive_timeout=IDLE_S,
        auto_decompress=False,  # a packed body may be a thousand times what was sent
    )
    await runner.setup()
    assert runner.server is not None
    listening.setblocking(False)
    listening.listen(128)
    tasks = [
        asyncio.create_task(service.connections.accept(listening, runner.server)),
        asyncio.create_task(service.connections.watch()),
    ]
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await runner.cleanup()


def _logger(log: Callable[[str], None]) -> logging.Logger:
    """For what aiohttp has to say of requests that are none: a line, where it would write a traceback."""

    class OneLine(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            error = record.exc_info[1] if record.exc_info else None
            said = " ".join(f"{record.getMessage()}: {error or ''}".split())[:200]
            log(said.encode("unicode_escape").decode())

    logger = logging.Logger("bitnet.serve", logging.WARNING)
    logger.addHandler(OneLine())
    return logger
