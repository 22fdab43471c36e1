"""What went wrong, in the contract's terms: the SDK's exceptions and spoilt answers as ProviderError and its kinds."""

import re
from collections.abc import Mapping
from datetime import datetime
from types import ModuleType
from typing import Any

import attrs
import msgspec

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, not_sent, status_error, wrong_shape
from bitnet_providers.teachers.common.retry import server_time

_SPAN = re.compile(r"(?:(\d+)d)?(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")


_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 1e-3)


EPOCH_S = 1e9
"""A number above this is a point in time, not a span."""


def reset_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds until the limits that are used up (``x-ratelimit-remaining-*`` is 0) are there again; None: not said.

    ``x-ratelimit-reset-requests`` and ``-tokens`` are spans ("1s", "6m0s", "120ms") or seconds, ``x-ratelimit-reset``
    (OpenRouter) a time since the epoch in milliseconds. `headers` is asked in lower case.
    """
    now = now or server_time(headers)
    waits = []
    for what in ("-requests", "-tokens", ""):
        if headers.get(f"x-ratelimit-remaining{what}", "").strip() not in ("0", "0.0"):
            continue
        wait = _seconds(headers.get(f"x-ratelimit-reset{what}", "").strip(), now)
        waits += [] if wait is None else [wait]
    return max(waits, default=None)


def _seconds(text: str, now: datetime) -> float | None:
    if re.fullmatch(r"\d+(\.\d+)?", text):
        number = float(text)
        if number <= EPOCH_S:
            return number
        return max(0.0, (number / 1e3 if number > EPOCH_S * 1e3 else number) - now.timestamp())
    span = _SPAN.fullmatch(text)
    if span is None or not any(span.groups()):
        return None
    return sum(float(part) * unit for part, unit in zip(span.groups(), _UNITS_S, strict=True) if part)


_NOT_SENT = ("ConnectError", "ConnectTimeout", "PoolTimeout", "WriteError", "WriteTimeout", "ProxyError")
"""Exceptions of the HTTP library after which the server has not got the request whole; they have no common parent."""


_LOST = ("ServerDisconnectedError", "ClientOSError", "ClientPayloadError")
"""aiohttp's, of connections that were there: the SDK passes some of them on as ConnectTimeout."""


_OUT_OF_MONEY = ("insufficient_quota", "billing_hard_limit_reached", "insufficient_balance")


_FILTER_CODES = ("content_filter", "content_policy", "contentpolicy", "moderation", "data_inspection", "responsibleai")
_FILTER_WORDS = ("was flagged", "management policy", "content policy", "usage guidelines", "content exists risk")
"""Of errors that say that a filter refused this request: with 403 (OpenRouter, xAI), and with 200 as `of_answer`."""


_FIXES = {
    "top_logprobs": "set teacher.max_top_logprobs to what it gives (0: no log-probabilities, sequence-level traces)",
    "logprobs": "set teacher.max_top_logprobs = 0 (sequence-level traces), or take another model",
    "max_tokens": 'set teacher.max_tokens_field = "max_completion_tokens"',
    "max_completion_tokens": 'set teacher.max_tokens_field = "max_tokens"',
    "seed": "set teacher.send_seed = false",
    "temperature": "set collect.temperature to one that it takes (and baseline answers are greedy)",
    "top_p": "set collect.top_p = 1.0",
    "reasoning_effort": "set teacher.reasoning_effort to one that it takes",
    "stream_options": "set teacher.stream = false",
    "model": "check teacher.model",
}
"""Fields that every request has alike: where one is refused, all are."""


_REFUSAL_WORDS = (
    "support",
    "not allowed",
    "unknown",
    "unrecognized",
    "invalid value",
    "must be",
    "less than",
    "at most",
)


@attrs.frozen
class Failures:
    """Names the provider in messages, and keeps its key out of them."""

    sdk: ModuleType
    who: str
    key_env: str
    redact: Redactor

    def of(self, error: Exception) -> ProviderError:
        """The SDK's exception as one of ours. The caller raises it ``from None``: the SDK's holds the request."""
        if isinstance(error, self.sdk.APIStatusError):
            response = error.response
            return self.of_status(response.status_code, _details(error.body), response.headers)
        if isinstance(error, self.sdk.APIConnectionError):
            cause = error.__cause__ or error
            return cause if isinstance(cause, ProviderError) else self.of_transport(cause)
        return self.of_transport(error)

    def of_transport(self, error: BaseException) -> RetryableError:
        """A connection that failed, before or after the request was out."""
        chain = [error]
        while chain[-1].__cause__ is not None:
            chain.append(chain[-1].__cause__)
        names = [type(each).__name__ for each in chain]
        lost = next((each for each, name in zip(chain, names, strict=True) if name in _LOST), None)
        if "write request body" in str(lost):  # aiohttp, on a connection that the server has closed meanwhile
            return not_sent(self.who, self.redact(lost))
        told = error if lost is None else lost
        reason = self.redact(f"{type(told).__name__}: {told}" if str(told) else type(told).__name__)
        sent = lost is not None or not set(names) & set(_NOT_SENT)
        late = any("Timeout" in name for name in names)
        fix = "raise teacher.timeout_s (and collect.request_timeout_s) if it only takes long" if late else ""
        return answer_lost(self.who, reason, fix=fix) if sent else not_sent(self.who, reason)

    def of_status(self, status: int, details: Mapping[str, Any], headers: Mapping[str, str]) -> ProviderError:
        """`details`: the answer's ``error`` object."""
        said = self.redact(details.get("message") or "")
        code = f"{details.get('code') or ''} {details.get('type') or ''}".lower()
        if any(name in code for name in _OUT_OF_MONEY):
            return ProviderError(
                f"{self.who} answered {status}: {said}; the account has no credit or has reached its limit",
                "top it up and run again: nothing is lost",
            )
        if status not in (401, 402, 404, 429) and (
            any(name in code for name in _FILTER_CODES) or any(words in said.lower() for words in _FILTER_WORDS)
        ):
            return RequestRefusedError(f"{self.who} answered {status}: {said}", "reword the prompt")
        if status in (400, 422):
            field = _refused_field(said.lower(), code, str(details.get("param") or ""))
            if field is not None:
                return ProviderError(f"{self.who} answered {status}: {said}", _FIXES[field])
        return status_error(
            status, said, who=self.who, key=self.key_env or "(none is set)", headers=headers, wait_s=reset_s(headers)
        )

    def of_answer(self, error: Mapping[str, Any] | str) -> ProviderError:
        """An error that came with status 200, or within a stream."""
        details = error if isinstance(error, Mapping) else {"message": error}
        try:
            status = int(details.get("code") or 500)
        except (TypeError, ValueError):
            status = 500
        found = self.of_status(status if 400 <= status < 600 else 500, details, {})
        if isinstance(found, RetryableError):
            found.possibly_paid = True
        return found

    def of_body(self, error: Exception, content_type: str) -> ProviderError:
        """An answer with status 200 that is no completion."""
        if isinstance(error, msgspec.ValidationError):
            # It would be so again, and paid for again.
            return wrong_shape(self.who, self.redact(error))
        said = "" if "json" in content_type or "event-stream" in content_type else f" (content type {content_type})"
        return answer_lost(self.who, self.redact(f"it is no JSON{said}"), answered=True)


def _details(body: object) -> Mapping[str, Any]:
    """The ``error`` object; the SDK takes it out of its envelope where there is one."""
    if isinstance(body, Mapping):
        inner = body.get("error")
        if isinstance(inner, Mapping):
            return inner
        return {**body, "message": body.get("message") or body.get("detail") or inner or ""}
    return {"message": body if isinstance(body, str) else ""}


def _refused_field(said: str, code: str, param: str) -> str | None:
    """The field of `_FIXES` that a 400 is about; None where it is about this request's text."""
    if param in _FIXES:
        return param
    if "context" in code or "context length" in said or "content" in code:
        return None
    # vLLM, Groq and gateways name the field in words only.
    if any(word in said for word in _REFUSAL_WORDS):
        return next((name for name in _FIXES if name != "model" and (name in said or name in code)), None)
    return None
