"""How many requests are under way at once: grows slowly while all goes well, shrinks where the server says "too much".

Additive increase, multiplicative decrease, as TCP does it (Jacobson, "Congestion Avoidance and Control", 1988): up by
one for each answer until the server first objects, then by one for each round of answers; down to 0.8 of it on a 429.
Only once for each congestion: requests that were already out when it shrank say nothing about the smaller number.
"""

import asyncio
import time
from collections import deque
from collections.abc import Awaitable, Callable

FIRST = 8
"""Requests under way at the start, at most."""
SHRINK = 0.8


class Pacer:
    """Hands out places to requests; one event loop's."""

    def __init__(
        self,
        maximum: int,
        *,
        adaptive: bool,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[object]] = asyncio.sleep,
    ) -> None:
        """`adaptive` False: `maximum` from the first to the last (a model on this machine)."""
        self._maximum = maximum
        self._adaptive = adaptive
        self._limit = float(min(FIRST, maximum) if adaptive else maximum)
        self._clock, self._sleep = clock, sleep
        self._probing = True
        self._entered = self._cut_at = 0
        self._paused_until = -1.0
        self._waiting: deque[asyncio.Future[None]] = deque()
        self.at_once = 0

    @property
    def limit(self) -> int:
        return int(self._limit)

    @property
    def entered(self) -> int:
        """Requests that were let in so far: the number of the last one."""
        return self._entered

    async def enter(self) -> int:
        """Wait for a place; returns the request's number, which `overloaded` wants."""
        while True:
            await self.pause()
            if self.at_once < self.limit:
                break
            place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
            self._waiting.append(place)
            try:
                await place
            except asyncio.CancelledError:
                if place.done() and not place.cancelled():
                    self._wake()  # the place was meant for somebody who won't take it
                raise
        self.at_once += 1
        self._entered += 1
        return self._entered

    async def pause(self) -> None:
        """Wait as long as the server has asked everybody to."""
        while (seconds := self._paused_until - self._clock()) > 0:
            await self._sleep(seconds)

    def leave(self) -> None:
        """A request is over, however it went."""
        self.at_once -= 1
        self._wake()

    def went_well(self) -> None:
        """A request was answered."""
        if self._adaptive and self.at_once >= self.limit - 1:  # what is not used up need not grow
            self._limit = min(float(self._maximum), self._limit + (1.0 if self._probing else 1.0 / self._limit))

    def overloaded(self, number: int, retry_after_s: float | None) -> None:
        """The server said that it is too much; with a time, nobody sends anything before."""
        if retry_after_s is not None:
            self._paused_until = max(self._paused_until, self._clock() + retry_after_s)
        if self._adaptive and number > self._cut_at:
            self._limit = max(1.0, self._limit * SHRINK)
            self._cut_at = self._entered
            self._probing = False

    def wake_all(self) -> None:
        """Let everybody look again, e.g. because nothing more is to be sent."""
        self._paused_until = -1.0
        self._limit = float(max(self._maximum, self.at_once + len(self._waiting)))
        self._wake()

    def _wake(self) -> None:
        free = self.limit - self.at_once
        while self._waiting and free > 0:
            place = self._waiting.popleft()
            if not place.done():
                place.set_result(None)
                free -= 1
