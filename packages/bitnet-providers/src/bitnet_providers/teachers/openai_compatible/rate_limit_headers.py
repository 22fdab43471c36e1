"""The rate-limit headers of OpenAI's family, for answers that carry no Retry-After."""

import re
from collections.abc import Mapping
from datetime import datetime

from bitnet_providers.teachers.common.retry_after import server_time

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
