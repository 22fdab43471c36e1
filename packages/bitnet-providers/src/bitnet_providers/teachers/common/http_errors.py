"""What an HTTP answer that is no completion means for the caller, said without a secret in it. Shared by the adapters.

The kinds follow `bitnet_providers.contract`: what nothing else will cure stops the run (401, 402, 403, 404), what only
this request can't have is recorded (`_OF_THE_REQUEST`), and what may pass is asked again (408, 409, 425, 429, 5xx, an
answer that is lost).
"""

import re
from collections.abc import Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import quote, urlsplit

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.teachers.common.retry import retry_after_s

_CREDENTIALS = re.compile(
    r"(?i)(?P<name>[?&](?:api_?)?key=|[?&](?:access_)?token=|bearer\s+|x-(?:goog-)?api-key['\"]?\s*[:=]\s*['\"]?)"
    r"[^\s&'\"<>,})]+"
)
_USER_INFO = re.compile(r"(?P<scheme>:/{1,2})[^\s/?#\"'<>]{1,2000}@")
_DRIVES_A_TERMINAL = re.compile("[\x00-\x08\x0e-\x1b\x7f-\x84\x86-\x9f\u202a-\u202e\u2066-\u2069]")
"""What isn't white space, which becomes one space."""
_LONGEST_MESSAGE = 400
_OF_THE_REQUEST = (400, 413, 414, 422, 424, 431, 451)
"""Malformed, too long, refused by law, failed in the model (424, text-generation-inference). 405 and its like say that
nobody answers chats at this address."""


class Redactor:
    """Takes the secrets that it was made with, and what looks like one, out of a text. Its repr shows none."""

    __slots__ = ("_forms",)

    def __init__(self, *secrets: str) -> None:
        forms = {form for secret in secrets if secret for form in (secret, quote(secret, safe=""))}
        self._forms = sorted(forms, key=len, reverse=True)

    def __call__(self, text: object) -> str:
        """`text` on one line, at most 400 characters, without secrets and without what drives a terminal."""
        clean = str(text).encode("utf-8", "replace").decode()  # half a surrogate pair can't be written down
        clean = _DRIVES_A_TERMINAL.sub("\ufffd", clean)
        for form in self._forms:
            clean = clean.replace(form, "***")
        clean = _USER_INFO.sub(lambda match: f"{match['scheme']}***@", clean)
        clean = " ".join(_CREDENTIALS.sub(lambda match: f"{match['name']}***", clean).split())
        return clean if len(clean) <= _LONGEST_MESSAGE else clean[: _LONGEST_MESSAGE - 1] + "…"

    def __repr__(self) -> str:
        return "Redactor(...)"


def status_error(
    status: int,
    said: str,
    *,
    who: str,
    key: str,
    headers: Mapping[str, str] | None = None,
    wait_s: float | None = None,
) -> ProviderError:
    """The error for an HTTP status.

    `said`: the provider's own words, redacted. `who`: the provider's name. `key`: the variable that holds the key.
    `wait_s`: a wait that the body tells, taken where the headers tell none.
    """
    told = f"{who} answered {status}: {said}" if said else f"{who} answered {status}"
    if status == 401:
        return ProviderError(f"{told}", f"check the key in the environment variable {key}")
    if status == 402:
        return ProviderError(f"{told}; the account has no credit left", "top it up and run again: nothing is lost")
    if status == 403:
        return ProviderError(f"{told}; the key in {key} may not use this model", "check its permissions and region")
    if status == 404:
        return ProviderError(f"{told}", "check teacher.model and teacher.base_url")
    if status in (408, 409, 425, 429, 498, 499) or status >= 500:  # 498: no room for flexible requests (Groq)
        header_s = retry_after_s(headers)
        return RetryableError(
            told,
            retry_after_s=wait_s if header_s is None else header_s,
            overloaded=status in (429, 498),
            # A gateway that gave up waiting says nothing of what the model did behind it.
            possibly_paid=status in (408, 499, 504, 524),  # 499: a gateway's caller left; 524: Cloudflare's
        )
    if 300 <= status < 400:
        return _moved(told)
    if status in _OF_THE_REQUEST:
        return RequestRefusedError(told)
    return ProviderError(f"{told}, as it would any request", "check teacher.base_url (a proxy may stand before it)")


def _moved(told: str) -> ProviderError:
    return ProviderError(f"{told}; teacher.base_url points at something that moved", "write its new address")


def refuses_moved(who: str) -> Callable[[Any], Awaitable[None]]:
    """A response hook of httpx's clients: they would follow 301 to 303 with a GET, which asks nothing. Raises
    ProviderError."""

    async def look(response: Any) -> None:
        if response.status_code in (301, 302, 303):
            place = urlsplit(response.headers.get("location", ""))
            to = f" to {place.scheme}://{place.netloc.rpartition('@')[2]}{place.path}" if place.netloc else ""
            raise _moved(f"{who} answered {response.status_code}{to}")

    return look


def not_sent(who: str, reason: str) -> RetryableError:
    """No connection, or one that went before the request was out whole."""
    return RetryableError(f"{who} was not reached: {reason}")


def answer_lost(who: str, reason: str, *, answered: bool = False, fix: str = "") -> RetryableError:
    """The request was sent whole; its answer didn't come, came in part, or can't be read. `answered`: it is empty."""
    return RetryableError(f"{who} gave no whole answer: {reason}", fix, possibly_paid=True, answered=answered)


def wrong_shape(who: str, reason: str) -> RequestRefusedError:
    """Good JSON, and no completion: it would be so again, and paid for again."""
    return RequestRefusedError(f"{who}: the answer has another shape than a completion's: {reason}")
