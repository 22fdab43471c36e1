"""How long a server asks to wait: Retry-After in seconds or as a date, and the rate-limit headers of OpenAI's family."""

import math
import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

_SPAN = re.compile(r"(?:(\d+(?:\.\d+)?)d)?(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?!s))?(?:(\d+(?:\.\d+)?)s)?(?:(\d+(?:\.\d+)?)ms)?")
_UNITS_S = (86400.0, 3600.0, 60.0, 1.0, 1e-3)
EPOCH_S = 1e9
"""A number above this is a point in time, not a span."""


def retry_after_s(headers: Mapping[str, str], now: datetime | None = None) -> float | None:
    """Seconds to wait, at least 0; None where the server doesn't say. `headers` is asked in lower case.

    In this order: ``retry-after-ms``, ``retry-after`` (seconds or HTTP date), and of the limits that are used up
    (``x-ratelimit-remaining-*`` is 0) the longest ``x-ratelimit-reset-*`` ("1s", "6m0s", "120ms"), ``x-ratelimit-reset``
    (seconds, or a time since the epoch in seconds or milliseconds).
    """
    now = now or datetime.now(UTC)
    milliseconds = _number(headers.get("retry-after-ms"))
    if milliseconds is not None:
        return max(0.0, milliseconds / 1e3)
    asked = headers.get("retry-after")
    if asked is not None and (found := _moment(asked, now)) is not None:
        return found
    resets = []
    for what in ("-requests", "-tokens", ""):
        if _number(headers.get(f"x-ratelimit-remaining{what}")) != 0.0:
            continue
        reset = headers.get(f"x-ratelimit-reset{what}")
        if reset is not None and (found := _moment(reset, now)) is not None:
            resets.append(found)
    return max(resets, default=None)


def _moment(text: str, now: datetime) -> float | None:
    """Seconds from `now`, for a number, a span ("6m0s"), a date, or a time since the epoch."""
    number = _number(text)
    if number is not None:
        if number > EPOCH_S:
            number = (number / 1e3 if number > EPOCH_S * 1e3 else number) - now.timestamp()
        return max(0.0, number)
    span = _SPAN.fullmatch(text.strip())
    if span is not None and any(span.groups()):
        return sum(float(part) * unit for part, unit in zip(span.groups(), _UNITS_S, strict=True) if part)
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return max(0.0, ((date if date.tzinfo else date.replace(tzinfo=UTC)) - now).total_seconds())


def _number(text: str | None) -> float | None:
    try:
        value = float(text) if text is not None else math.nan
    except ValueError:
        return None
    return value if math.isfinite(value) else None
