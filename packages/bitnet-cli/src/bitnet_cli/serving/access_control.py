"""Who may ask: what reaches this machine only, what needs a key, and what a web page must not do by itself."""

import hmac
import ipaddress
from urllib.parse import urlsplit

import attrs

from bitnet_cli.serving.openai_request import ApiError


def is_loopback(host: str) -> bool:
    """Whether only this machine reaches a server that listens at `host`."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


@attrs.frozen
class Access:
    """The rules of one server."""

    local: bool
    """It listens on this machine alone."""
    key: str | None = attrs.field(repr=False)
    """What ``Authorization: Bearer`` must hold, if anything."""

    def check_host(self, host: str) -> None:
        """A web page can make its own name mean 127.0.0.1 (DNS rebinding): such a request still says that name.

        Raises ApiError.
        """
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = ""
        if self.local and not is_loopback(name):
            raise ApiError(403, f"the request is for {name or 'nobody'}, this is a local server", "ask 127.0.0.1")

    def check_key(self, authorization: str) -> None:
        """Raises ApiError."""
        if self.key is None:
            return
        scheme, _, given = authorization.partition(" ")
        # A header may hold any bytes: aiohttp keeps those that are no text as lone surrogates.
        sent = given.strip().encode(errors="surrogateescape")
        if scheme.lower() != "bearer" or not hmac.compare_digest(sent, self.key.encode()):
            raise ApiError(
                401, "the API key is missing or wrong", "send it as `Authorization: Bearer KEY`", code="invalid_api_key"
            )
