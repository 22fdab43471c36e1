"""A guard for tests: connections leave this machine only where they are allowed to."""

import ipaddress
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock


class NetworkForbiddenError(ConnectionError):
    """Something tried to leave this machine."""


@contextmanager
def loopback_only() -> Iterator[list[str]]:
    """Refuse connections and name look-ups to other machines; gives the list of those that were tried.

    What goes through Python's sockets is seen (asyncio, httpx, aiohttp, requests), in threads too; a library that
    brings its own network code (gRPC) is not.
    """
    tried: list[str] = []

    def check(host: Any) -> None:
        if not _is_here(host):
            tried.append(str(host))
            raise NetworkForbiddenError(f"a connection to {host!r} was tried where the network is forbidden")

    def guarded_connect(name: str) -> Any:
        original = getattr(socket.socket, name)

        def connect(self: socket.socket, address: Any) -> Any:
            if self.family in (socket.AF_INET, socket.AF_INET6):
                check(address[0])
            return original(self, address)

        return connect

    look_up = socket.getaddrinfo

    def getaddrinfo(host: Any, *arguments: Any, **more: Any) -> Any:
        check(host)
        return look_up(host, *arguments, **more)

    with (
        mock.patch.object(socket.socket, "connect", guarded_connect("connect")),
        mock.patch.object(socket.socket, "connect_ex", guarded_connect("connect_ex")),
        mock.patch.object(socket, "getaddrinfo", getaddrinfo),
    ):
        yield tried


def _is_here(host: Any) -> bool:
    name = host.decode() if isinstance(host, bytes) else host
    if name in (None, "", "localhost"):
        return True
    try:
        return ipaddress.ip_address(str(name).partition("%")[0]).is_loopback
    except ValueError:
        return False
