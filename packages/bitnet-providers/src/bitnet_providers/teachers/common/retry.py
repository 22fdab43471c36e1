"""When a request is sent again after a failure, how long a server asks to wait, and a question asked until answered."""

import asyncio
import contextlib
import random
import re
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import TypeVar

import attrs

from bitnet_providers.contract import (
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    ScoreRequest,
    Teacher,
    check_answer,
    with_counts_mended,
)


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


LONGEST_WAIT_S = 30.0
"""Between two tries, where the server says nothing."""


LONGEST_OBEYED_S = 900.0
"""A server that asks for more is not there for now: the collection stops, and says so."""


@attrs.frozen
class RetryPolicy:
    """How often and how soon."""

    retries: int
    first_wait_s: float

    def wait_s(self, failures: int, error: RetryableError, draw: float | None = None) -> float:
        """Seconds before try `failures` + 1: what the server asks, else doubling waits with jitter.

        `draw` in [0, 1) takes the place of chance. The jitter spreads those who failed together.
        """
        draw = random.random() if draw is None else draw
        if error.retry_after_s is not None:
            return error.retry_after_s + 0.1 * draw * min(error.retry_after_s, 1.0)
        longest = min(LONGEST_WAIT_S, self.first_wait_s * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * draw)


Answer = TypeVar("Answer")


@attrs.define
class Retries:
    """What it took."""

    retries: int = 0
    possibly_paid: int = 0
    """Requests that were sent whole and whose answer never came."""


async def asked_once(teacher: Teacher, request: GenerateRequest | ScoreRequest) -> Completion:
    """What the teacher says, its counts mended. Raises ProviderError and its kinds.

    An answer of a server that trips up its reader is refused for good: it would be so again, and paid for again.
    """
    try:
        ask = teacher.generate(request) if isinstance(request, GenerateRequest) else teacher.score(request)
        return with_counts_mended(await ask)
    except (ProviderError, MemoryError, TimeoutError):
        raise
    except Exception as error:
        if not teacher.capabilities.paced:  # a model on this machine: nothing was paid, and it is no single answer
            raise
        raise RequestRefusedError(
            f"its answer can't be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})",
            "report it to the authors of the teacher's plugin",
        ) from error


async def answered(teacher: Teacher, request: GenerateRequest) -> Completion:
    """An answer, be it thoughts alone. Raises ProviderError and its kinds, RetryableError for an empty one too."""
    completion = await asked_once(teacher, request)
    with contextlib.suppress(RequestRefusedError):
        check_answer(completion)
    return completion


async def ask_with_retries(
    call: Callable[[], Awaitable[Answer]],
    policy: RetryPolicy,
    counted: Retries,
    on_wait: Callable[[float, RetryableError], None] = lambda seconds, error: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Answer:
    """``await call()``, again after a RetryableError, as often and as late as `policy` says; adds to `counted`.

    `on_wait` hears of each wait in seconds. Raises what `call` raises, and ProviderError when the tries are used up
    (RequestRefusedError where the server answers, with nothing) or the server asks to wait longer than anybody would.
    """
    failures = 0
    while True:
        try:
            return await call()
        except RetryableError as error:
            failures += 1
            counted.possibly_paid += error.possibly_paid
            if error.retry_after_s is not None and error.retry_after_s > LONGEST_OBEYED_S:
                raise ProviderError(
                    f"{error.why} (the server asks to wait {error.retry_after_s:,.0f} s)", "run again then"
                ) from error
            if failures > policy.retries and error.answered:
                raise RequestRefusedError(
                    f"{error.why} (tried {failures} times)", error.fix or "see that the server is well, then run again"
                ) from None
            if failures > policy.retries:
                raise ProviderError(
                    f"{error.why} (tried {failures} times)",
                    error.fix or "see that the server can be reached, then run again",
                ) from error
            counted.retries += 1
            wait_s = policy.wait_s(failures, error)
            on_wait(wait_s, error)
        await sleep(wait_s)
