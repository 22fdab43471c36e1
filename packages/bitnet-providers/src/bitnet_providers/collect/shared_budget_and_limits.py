"""One budget, one ledger, one set of limits for the workers of a run, wherever they are.

`SharedBooks` lives in one place and holds the very objects that a collection in one process has. Each worker has a
`BooksClient`: it asks before a request goes out, and tells afterwards what came of it. A request is in the ledger
before its worker hears yes.
"""

import asyncio
import itertools
import math
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.collect.rate_limits import Admission, RateLimits
from bitnet_providers.collect.stop import Stop
from bitnet_providers.config import CollectConfig, PriceConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.completion_ids import Key
from bitnet_providers.raw.ledger import LedgerWriter
from bitnet_providers.spending.budget import Budget, BudgetReachedError, Spent
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens

Ask = Callable[..., Awaitable[Any]]
"""``await ask("method", *arguments)`` of the `SharedBooks`."""


@attrs.frozen
class Kept:
    """How far all workers are, since the books were opened."""

    completions: int
    """On a worker's disk."""
    tokens: int
    at_once: int
    """Requests under way."""
    spent: Spent


class SharedBooks:
    """Every method may be called by any worker; one event loop's."""

    def __init__(self, raw_folder: Path, config: CollectConfig, price: PriceConfig | None, spent: Spent) -> None:
        self._stop = Stop()
        self._budget = Budget(config.budget, price, spent)
        self._limits = RateLimits(
            config.requests_per_minute,
            config.tokens_per_minute,
            sleep=self._stop.sleep,
            stopped=lambda: bool(self._stop),
        )
        self._stop.also(self._budget.close)
        self._ledger = LedgerWriter(raw_folder, price)
        self._syncing = asyncio.Lock()
        self._reserved: Counter[tuple[int, Tokens]] = Counter()
        """(worker, worst case) of each request under way."""
        self._admitted: dict[tuple[int, int], Admission] = {}
        self._lost: set[int] = set()
        self._completions = self._tokens = 0

    # Before a request goes out

    async def reserve(self, worker: int, bound: Tokens, key: Key) -> int | BudgetReachedError | None:
        """The request's number in the ledger: it may go out. None: nothing goes out any more."""
        if not await self._budget.reserve(bound):
            return None if self._stop else self._budget.why_not(bound)
        if worker in self._lost:  # nobody is left who would send it
            self._budget.give_back(bound)
            return None
        self._reserved[worker, bound] += 1
        return self._ledger.sent(key, bound)

    async def admit(self, worker: int, number: int, bound: Tokens) -> None:
        """Wait until the limits per minute let it through."""
        admission = await self._limits.admit(bound)
        if worker in self._lost:  # nobody is left who would send it, or say that it is over
            self._never_sent(admission)
        else:
            self._admitted[worker, number] = admission

    def _never_sent(self, admission: Admission) -> None:
        self._limits.sent(admission)
        self._limits.ended(admission, NO_TOKENS)

    # What workers tell

    async def tell(self, worker: int, messages: list[tuple[Any, ...]]) -> None:
        """What came of requests, in order."""
        kept = False
        for message in messages if worker not in self._lost else ():
            match message:
                case "settle", bound, charged:
                    self._release(worker, bound)
                    self._budget.settle(bound, charged)
                case "give back", number, bound:
                    self._release(worker, bound)
                    self._budget.give_back(bound)
                    self._ledger.unpaid(number)
                case "answered", number, tokens:
                    self._ledger.answered(number, tokens)
                case "unpaid", number:
                    self._ledger.unpaid(number)
                case "possibly paid", number:
                    self._ledger.possibly_paid(number)
                case "refused", number, why:
                    self._ledger.refused(number, why)
                case "sent by limits", number:
                    self._limits.sent(self._admitted[worker, number])
                case "ended by limits", number, took:
                    self._limits.ended(self._admitted.pop((worker, number)), took)
                case "kept", completions, tokens:
                    self._completions += completions
                    self._tokens += tokens
                    kept = True
        if kept and not self._syncing.locked():
            async with self._syncing:
                await asyncio.to_thread(self._ledger.sync)

    def _release(self, worker: int, bound: Tokens) -> None:
        self._reserved[worker, bound] -= 1
        if not self._reserved[worker, bound]:
            del self._reserved[worker, bound]

    async def lose(self, worker: int) -> None:
        """A worker is gone: what it had under way may be paid for, and stays charged at its worst case."""
        self._lost.add(worker)
        for of, bound in [each for each in self._reserved.elements() if each[0] == worker]:
            self._release(of, bound)
            self._budget.settle(bound, None)
        for of, number in [each for each in self._admitted if each[0] == worker]:
            admission = self._admitted.pop((of, number))
            if admission.sent_at == -math.inf:  # it may have gone out without word of it
                self._limits.sent(admission)
            self._limits.ended(admission, admission.bound)

    # What the run asks

    async def progress(self) -> Kept:
        return Kept(self._completions, self._tokens, self._reserved.total(), self._budget.spent)

    async def stop(self, why: str, fix: str) -> None:
        """Nothing more goes out, and who waits is told no."""
        self._stop.now(ProviderError(why, fix))

    async def close(self) -> Spent:
        """What the folder has used in all."""
        await asyncio.to_thread(self._ledger.sync)
        self._ledger.close()
        return self._budget.spent


class BooksClient:
    """A worker's access to budget and ledger of the run."""

    def __init__(self, worker: int, ask: Ask) -> None:
        self._worker, self._ask = worker, ask
        self._granted: dict[Key, int] = {}
        self._why_not: BudgetReachedError | None = None
        self._to_tell: list[tuple[Any, ...]] = []
        self._telling: asyncio.Task[None] | None = None

    # As a `BudgetBook`

    async def reserve(self, bound: Tokens, key: Key | None = None) -> bool:
        assert key is not None
        granted = await self._ask("reserve", self._worker, bound, key)
        if isinstance(granted, int):
            self._granted[key] = granted
            return True
        self._why_not = granted
        return False

    def give_back(self, bound: Tokens, key: Key | None = None) -> None:
        assert key is not None
        self.tell("give back", self._granted.pop(key), bound)

    def settle(self, bound: Tokens, charged: Tokens | None) -> None:
        self.tell("settle", bound, charged)

    def why_not(self, bound: Tokens) -> BudgetReachedError:
        return self._why_not or BudgetReachedError("the collection has stopped", "run again to go on")

    # As a `LedgerBook`: `reserve` has written the request down already

    def sent(self, key: Key, bound: Tokens) -> int:
        return self._granted.pop(key)

    def answered(self, number: int, tokens: Tokens) -> None:
        self.tell("answered", number, tokens)

    def unpaid(self, number: int) -> None:
        self.tell("unpaid", number)

    def possibly_paid(self, number: int) -> None:
        self.tell("possibly paid", number)

    def refused(self, number: int, reason: str) -> None:
        self.tell("refused", number, reason)

    def sync(self) -> None:
        """The books see to it themselves."""

    # Telling

    def tell(self, *message: Any) -> None:
        """In order, and many at once; `told` waits for all."""
        self._to_tell.append(message)
        if self._telling is None or self._telling.done():
            self._telling = asyncio.get_running_loop().create_task(self._tell_all())

    async def told(self) -> None:
        """Returns when the books have all that was told. Raises what kept them from it."""
        while self._telling is not None and not self._telling.done():
            await asyncio.shield(self._telling)
        if self._telling is not None:
            self._telling.result()

    async def _tell_all(self) -> None:
        while self._to_tell:
            messages, self._to_tell = self._to_tell, []
            await self._ask("tell", self._worker, messages)


class LimitsClient:
    """A worker's access to the limits of the run."""

    def __init__(self, worker: int, ask: Ask, tell: Callable[..., None]) -> None:
        self._worker, self._ask, self._tell = worker, ask, tell
        self._counter = itertools.count()

    async def admit(self, bound: Tokens) -> int:
        number = next(self._counter)
        await self._ask("admit", self._worker, number, bound)
        return number

    def sent(self, admission: int) -> None:
        self._tell("sent by limits", admission)

    def ended(self, admission: int, took: Tokens) -> None:
        self._tell("ended by limits", admission, took)
