"""A time-out that counts only the time in which this process runs.

A process that is stopped (SIGSTOP, a laptop's sleep) longer than a time-out wakes up with every time-out over, though
the answers, which were paid for, may lie in the sockets. So a clock ticks here; where a tick comes late, whoever waits
gets that time again. It is a callback of the event loop: those of one moment run by the time that they are due, so it
comes before the time-outs that are over since.
"""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

TICK_S = 1.0


class TimeLimit:
    """`seconds` for each that enters; None: no limit. One event loop's."""

    def __init__(self, seconds: float | None, tick_s: float = TICK_S) -> None:
        self.seconds = seconds
        self._tick_s = tick_s
        self._waiting: set[asyncio.Timeout] = set()
        self._tick: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def each(self) -> AsyncIterator[None]:
        """Raises TimeoutError where what is inside takes longer."""
        async with asyncio.timeout(self.seconds) as timeout:
            self._waiting.add(timeout)
            if self._tick is None and self.seconds is not None:
                self._next_tick()
            try:
                yield
            finally:
                self._waiting.discard(timeout)

    def _next_tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._tick_s
        self._tick = loop.call_at(due, self._ticked, due)

    def _ticked(self, due: float) -> None:
        late = asyncio.get_running_loop().time() - due
        self._tick = None
        for timeout in self._waiting if late > self._tick_s else ():
            when = timeout.when()
            if when is not None and not timeout.expired():
                timeout.reschedule(when + late)
        if self._waiting:
            self._next_tick()
