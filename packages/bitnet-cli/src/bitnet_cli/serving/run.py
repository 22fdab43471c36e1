"""From options to a running server, and its end."""

import asyncio
import contextlib
import os
import signal
import socket
from collections.abc import Callable

from aiohttp import web

from bitnet_cli.errors import UserError
from bitnet_cli.serving.app import Service

LAST_WORDS_S = 2.0
"""To tell those who are still being answered that the server stops."""


def bound_socket(host: str, port: int) -> socket.socket:
    """Taken before a model is loaded: a port in use is an error at once. Raises UserError."""
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        taken = socket.socket(family, kind, protocol)
    except OSError as error:
        raise UserError(f"--host {host}: {error.strerror}", "name an address of this machine") from error
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


async def serve(service: Service, listening: socket.socket, ready: Callable[[], None]) -> None:
    """Until Ctrl-C or SIGTERM; `ready` is called when requests are taken. Answers that run then are cut off."""
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    caught = []
    with contextlib.suppress(NotImplementedError):  # Windows: KeyboardInterrupt comes instead
        for number in (signal.SIGINT, signal.SIGTERM):
            loop.add_signal_handler(number, stop.set)
            caught.append(number)
    runner = web.AppRunner(
        service.app(), handler_cancellation=True, access_log=None, shutdown_timeout=LAST_WORDS_S, handle_signals=False
    )
    await runner.setup()
    try:
        await web.SockSite(runner, listening).start()
        ready()
        await stop.wait()
    finally:
        for number in caught:  # a second one doesn't wait for the token that is being computed: it ends the process
            loop.remove_signal_handler(number)
            signal.signal(number, signal.SIG_DFL)
        await service.turns.close()
        await runner.cleanup()
        if caught:
            signal.signal(signal.SIGINT, signal.default_int_handler)
