"""The probe that a collection begins with, in that collection's books: its estimate, its budget, its ledger."""

import contextlib
import itertools
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.collect.ask_and_retry import send_booked
from bitnet_providers.collect.collect import Prepared
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    ScoreRequest,
    Teacher,
    servers_of,
)
from bitnet_providers.probe.questions import estimate, probe_teacher
from bitnet_providers.probe.verdict import Verdict
from bitnet_providers.raw.ledger import LedgerWriter
from bitnet_providers.spending.budget import Budget, BudgetReachedError, dollars
from bitnet_providers.spending.token_counts import at_most
from bitnet_providers.teachers.common.retry import asked_once

KEY = "probe"
"""Stands in the ledger where a request of the collection has its digest."""


def will_ask(before: Prepared, config: CollectConfig) -> bool:
    """False where the collection goes on with what is there: nothing is missing, or the budget was used up before."""
    if not before.missing:
        return False
    limit = Budget(config.budget, before.price, before.ledger.spent).in_the_way(at_most(before.missing[0].request))
    return limit is None or len(before.missing) == len(before.planned)


def with_probe(before: Prepared, config: CollectConfig, capabilities: Capabilities, servers: int = 1) -> Prepared:
    """`before`, of which something is missing, its estimate with the probe's worst case.

    Raises ProviderError where the budget does not hold the probe and one request behind it.
    """
    probe, expected = estimate(capabilities, servers), before.estimate
    bound = probe.set_aside + at_most(before.missing[0].request)
    limit = Budget(config.budget, before.price, before.ledger.spent).in_the_way(bound, probe.requests + 1)
    if limit is not None:
        raise ProviderError(
            f"[collect] collect.budget.{limit} = {getattr(config.budget, limit)} does not hold the probe "
            f"({probe.requests} requests, {probe.set_aside.total:,} tokens at most) and one request behind it, "
            "beside what is used already",
            f"raise collect.budget.{limit}, or run bitnet probe first (its verdict holds for a week)",
        )
    cost = None if before.price is None else dollars(before.price, probe.set_aside)
    return attrs.evolve(
        before,
        estimate=attrs.evolve(
            expected,
            requests=expected.requests + probe.requests,
            at_most=expected.at_most + probe.set_aside,
            about=expected.about + probe.set_aside,
            dollars_at_most=_sum(expected.dollars_at_most, cost),
            dollars_about=_sum(expected.dollars_about, cost),
        ),
    )


def _sum(amount: float | None, more: float | None) -> float | None:
    return None if amount is None or more is None else amount + more


async def probe_booked(
    teacher: Teacher,
    kind: str,
    config: CollectConfig,
    raw_folder: Path,
    before: Prepared,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> tuple[Verdict, Prepared]:
    """`probe_teacher` within the budget, every request in the ledger before it goes out.

    Returns the verdict, and `before` with what was used. Raises ProviderError.
    """
    budget = Budget(config.budget, before.price, before.ledger.spent)
    with LedgerWriter(raw_folder, before.price) as ledger:
        try:
            booked = _Booked(teacher, budget, ledger, itertools.count())
            verdict = await probe_teacher(booked, kind, on_progress=on_progress)
        finally:
            with contextlib.suppress(OSError):  # the operating system has the lines; the collection tells of the disk
                ledger.sync()
    return verdict, attrs.evolve(before, ledger=attrs.evolve(before.ledger, spent=budget.spent))


class _Booked:
    """A teacher whose requests, one after the other, are set aside, written down and charged."""

    def __init__(self, teacher: Teacher, budget: Budget, ledger: LedgerWriter, numbers: Iterator[int]) -> None:
        self._teacher, self._budget, self._ledger, self._numbers = teacher, budget, ledger, numbers
        several = servers_of(teacher)
        self.servers = [_Booked(each, budget, ledger, numbers) for each in several] if len(several) > 1 else []

    def leave_out(self, names: Collection[str]) -> None:
        """See `probe_teacher`."""
        self._teacher.leave_out(names)  # type: ignore[attr-defined]

    @property
    def capabilities(self) -> Capabilities:
        return self._teacher.capabilities

    @property
    def description(self) -> Mapping[str, Any]:
        return self._teacher.description

    async def generate(self, request: GenerateRequest) -> Completion:
        return await self._ask(request)

    async def score(self, request: ScoreRequest) -> Completion:
        return await self._ask(request)

    async def _ask(self, request: GenerateRequest | ScoreRequest) -> Completion:
        bound, teacher = at_most(request), self._teacher
        if not await self._budget.reserve(bound):
            error = self._budget.why_not(bound)
            raise BudgetReachedError(f"[collect] in the probe: {error.why}", error.fix)

        return await send_booked(
            self._budget, self._ledger, (KEY, next(self._numbers)), bound, lambda: asked_once(teacher, request)
        )

    async def aclose(self) -> None:
        await self._teacher.aclose()
