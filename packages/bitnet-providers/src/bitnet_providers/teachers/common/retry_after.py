"""How long a server asks to wait: the header Retry-After."""

import re
from collections.abc import Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime


def retry_after_s(headers: Mapping[str, str] | None, now: datetime | None = None) -> float | None:
    """Seconds to wait: ``retry-after-ms``, or ``Retry-After`` in seconds or as an HTTP date; None where it isn't said.

    A date that has passed is 0. `now` is an aware time (default: `server_time`).
    """
    lower = {name.lower(): value for name, value in (headers or {}).items()}
    milliseconds = _seconds(lower.get("retry-after-ms"))
    if milliseconds is not None:
        return milliseconds / 1000
    said = lower.get("retry-after")
    seconds = _seconds(said)
    if seconds is not None or said is None:
        return seconds
    date = _date(said)
    return None if date is None else max(0.0, (date - (now or server_time(lower))).total_seconds())


def server_time(headers: Mapping[str, str]) -> datetime:
    """The moment of an answer by the server's own clock (``Date``), by which it says when to come again; else by ours,
    which may be wrong. `headers` is asked in lower case."""
    return _date(headers.get("date", "")) or datetime.now(UTC)


def _date(text: str) -> datetime | None:
    """An HTTP date, aware; None for anything else."""
    try:
        date = parsedate_to_datetime(text)
    except (TypeError, ValueError):
        return None
    return date if date.tzinfo is not None else date.replace(tzinfo=UTC)


def _seconds(text: str | None) -> float | None:
    """A plain number of seconds, not negative and finite; None for anything else."""
    if text is None or not re.fullmatch(r"\s*\d+(\.\d*)?\s*", text):
        return None
    return float(text)
