"""A provider's limits per minute, kept so that the provider never counts more, whichever way it counts.

Servers count a request's tokens when it comes in (prompt and max_new_tokens, as OpenAI does) or when it ends (what it
took). So a request has its worst case in the window while it is under way and until a minute after it was sent, and
what it took until a minute after it ended. Requests themselves are counted when they are sent.
"""

import asyncio
import heapq
import math
import time
from collections.abc import Awaitable, Callable
from typing import Any, Protocol

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.spending.token_counts import Tokens

MINUTE_S = 60.0
MARGIN_S = 1.0
"""The way to the server takes one request longer than the next: the minute is counted longer by this."""


class Window:
    """A sum over the last `seconds`, of entries that leave at times of their own."""

    def __init__(self) -> None:
        self.total = 0
        self._leaving: list[tuple[float, int]] = []

    def add(self, amount: int) -> None:
        self.total += amount

    def leave_at(self, when: float, amount: int) -> None:
        heapq.heappush(self._leaving, (when, amount))

    def forget(self, now: float) -> None:
        while self._leaving and self._leaving[0][0] <= now:
            self.total -= heapq.heappop(self._leaving)[1]

    def next_change(self) -> float | None:
        return self._leaving[0][0] if self._leaving else None


@attrs.define
class Admission:
    """A request that was let through; it counts from then on, and its minute begins when it is sent."""

    bound: Tokens
    sent_at: float = -math.inf


class RateLimits:
    """Lets requests through one after another, as soon as they fit; one event loop's."""

    def __init__(
        self,
        requests: int | None,
        tokens: int | None,
        *,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
        stopped: Callable[[], bool] = lambda: False,
        window_s: float = MINUTE_S + MARGIN_S,
    ) -> None:
        """`requests` and `tokens` per minute; None: no limit. Once `stopped`, nobody waits: nothing will be sent."""
        self._limits = requests, tokens
        self._unlimited = requests is None and tokens is None
        self._requests, self._tokens = Window(), Window()
        self._clock, self._sleep, self._window_s = clock, sleep, window_s
        self._stopped = stopped
        self._turn = asyncio.Lock()
        self._ended = asyncio.Event()

    def check(self, bound: Tokens) -> None:
        """Raises ProviderError for a request that would not fit in an empty minute."""
        tokens = self._limits[1]
        if tokens is not None and bound.total > tokens:
            raise ProviderError(
                f"collect.tokens_per_minute is {tokens:,}, and one request may take {bound.total:,} tokens "
                "(the bytes of its prompt and max_new_tokens)",
                "raise collect.tokens_per_minute, or lower collect.max_new_tokens",
            )

    async def admit(self, bound: Tokens) -> Admission:
        """Wait until the request fits, and count it."""
        if self._unlimited:
            return Admission(bound)
        async with self._turn:  # first come, first served: a big request is not passed by small ones for ever
            while (wait := self._wait(bound)) > 0 and not self._stopped():
                self._ended.clear()
                await self._first_of(wait)
        self._requests.add(1)
        self._tokens.add(bound.total)
        return Admission(bound)

    def sent(self, admission: Admission) -> None:
        """The request goes out now."""
        if self._unlimited:
            return
        admission.sent_at = self._clock()
        self._requests.leave_at(admission.sent_at + self._window_s, 1)

    def ended(self, admission: Admission, took: Tokens) -> None:
        """The request is over: its worst case stays for its minute, what it took for the minute from now on."""
        if self._unlimited:
            return
        now, kept = self._clock(), min(took.total, admission.bound.total)
        self._tokens.add(max(0, took.total - admission.bound.total))
        self._tokens.leave_at(admission.sent_at + self._window_s, admission.bound.total - kept)
        self._tokens.leave_at(now + self._window_s, took.total)
        self._ended.set()

    def _wait(self, bound: Tokens) -> float:
        """Seconds until something may change; 0: the request fits now."""
        now = self._clock()
        waits = []
        for window, limit, more in zip((self._requests, self._tokens), self._limits, (1, bound.total), strict=True):
            window.forget(now)
            if limit is not None and window.total + more > limit:
                change = window.next_change()
                waits.append(MINUTE_S if change is None else max(change - now, 1e-3))
        return max(waits, default=0.0)

    async def _first_of(self, seconds: float) -> None:
        """Until `seconds` are over, or a request has ended (its tokens may count for less now)."""
        ended = asyncio.ensure_future(self._ended.wait())
        slept = asyncio.ensure_future(self._sleep(seconds))
        try:
            await asyncio.wait({ended, slept}, return_when=asyncio.FIRST_COMPLETED)
        finally:
            ended.cancel()
            slept.cancel()


class LimitsBook(Protocol):
    """`RateLimits`, or those that several workers share."""

    async def admit(self, bound: Tokens) -> Any: ...
    def sent(self, admission: Any) -> None: ...
    def ended(self, admission: Any, took: Tokens) -> None: ...
