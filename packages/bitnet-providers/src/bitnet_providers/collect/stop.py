"""A clean stop: nothing more is sent, what is under way may end, and everybody who waits looks up."""

import asyncio
from collections.abc import Callable

from bitnet_providers.contract import ProviderError


class Stop:
    """Not stopped until told; one event loop's."""

    def __init__(self) -> None:
        self.error: ProviderError | None = None
        """Why, and the fix; None: it goes on."""
        self.failed = False
        """The collection ends with `error`. False: what there is becomes shards (the budget is used up)."""
        self._event = asyncio.Event()
        self._wake: list[Callable[[], None]] = []

    def __bool__(self) -> bool:
        return self.error is not None

    def also(self, wake: Callable[[], None]) -> None:
        """Call this, too, when it stops."""
        self._wake.append(wake)

    def now(self, error: ProviderError, *, failed: bool = True) -> None:
        """Stop; the first reason counts."""
        if self:
            return
        self.error, self.failed = error, failed
        self._event.set()
        for wake in self._wake:
            wake()

    async def sleep(self, seconds: float) -> None:
        """Sleep, but not beyond the stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._event.wait()
        except TimeoutError:
            return


REFUSED_IN_A_ROW = 20
"""So many refusals without an answer between them: what is asked is wrong, not a prompt."""


GIVEN_UP_IN_A_ROW = 3
"""So many requests given up, each after all its tries, without an answer between them: the server is not there."""
