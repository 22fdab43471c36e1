"""What a collection shows while it works: completions, tokens, speed, cost, time left, concurrency, 429s."""

import time
from collections.abc import Callable, Sequence

from bitnet_providers.collect.ask_and_retry import Tally
from bitnet_providers.collect.plan_requests import Planned
from bitnet_providers.raw.journal import Journal
from bitnet_providers.raw.ledger import Ledger
from bitnet_providers.spending.budget import shown

OnProgress = Callable[[int, int, str], None]
"""(completions done, completions in all, a short note)"""


class Progress:
    """Turns what is kept into notes for `on_progress`."""

    def __init__(
        self,
        on_progress: OnProgress,
        planned: Sequence[Planned],
        missing: Sequence[Planned],
        journal: Journal,
        ledger: Ledger,
        tally: Tally,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Says at once what is there already."""
        self._on_progress, self._tally, self._clock = on_progress, tally, clock
        self._total, self._done = len(planned), len(planned) - len(missing)
        self._to_come, self._started = len(missing), clock()
        self._kept = 0
        self.tokens = 0
        there = "all there" if not missing else f"{self._done} already there" if self._done else ""
        # Damage that an earlier call has mended stays in the journal: it is told, but not as work to come.
        damaged = min(journal.damaged, len(missing))
        again = f"{many(damaged, 'damaged completion')} will be asked again" if damaged else ""
        lines = many(ledger.damaged, "damaged line")
        lost = f"{lines} of the ledger: what was spent is counted at the worst" if ledger.damaged else ""
        on_progress(self._done, self._total, "; ".join(filter(None, (there, again, lost))))

    def begins_now(self) -> None:
        """The first request goes out: what came before (workers were started) says nothing of the pace."""
        self._started = self._clock()

    def kept(self, completions: int, tokens: int, at_once: int, dollars: float | None) -> None:
        """So many more are on the disk."""
        self._kept += completions
        self.tokens += tokens
        seconds = max(self._clock() - self._started, 1e-9)
        parts = [f"{self.tokens:,} tokens", f"{self.tokens / seconds:.0f} tok/s"]
        if dollars is not None:
            parts.append(shown(dollars))
        left = self._to_come - self._kept - len(self._tally.refused) - len(self._tally.unanswered)
        if left > 0:
            parts.append(f"{duration(left * seconds / self._kept)} left")
        parts.append(f"{at_once} at once")
        if self._tally.rate_limited:
            parts.append(f"{self._tally.rate_limited}× 429")
        if self._tally.refused:
            parts.append(f"{len(self._tally.refused)} refused")
        self._on_progress(self._done + self._kept, self._total, ", ".join(parts))


def many(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def duration(seconds: float) -> str:
    """``40 s``, ``12 min``, ``3.5 h``"""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
