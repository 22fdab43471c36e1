"""The probe before a collection: in its ledger, in its budget, in its estimate."""

import asyncio
from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_providers.collect.collect import Prepared, collect, prepare
from bitnet_providers.config import BudgetConfig, CollectConfig, PricesConfig
from bitnet_providers.contract import ProviderError, RetryableError
from bitnet_providers.probe.probe_before_collecting import probe_booked, will_ask, with_probe
from bitnet_providers.probe.questions import estimate
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.spending.token_counts import Tokens, at_most

PRICES = PricesConfig(input_per_million=1.0, output_per_million=10.0)


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    (tmp_path / "prompts.txt").write_text("one\ntwo\nthree\n")
    return CollectConfig(prompts=tmp_path / "prompts.txt", top_k=2, max_new_tokens=4, prices=PRICES)


@pytest.fixture
def teacher(counting_teacher: Any) -> Any:
    return counting_teacher(scoring=False)


def look(teacher: Any, config: CollectConfig, folder: Path) -> Prepared:
    return prepare(teacher, config, folder / "raw", "counting", 0)


def test_what_it_asks_is_in_the_ledger_and_counts_for_the_collection(
    teacher: Any, config: CollectConfig, tmp_path: Path
) -> None:
    before = look(teacher, config, tmp_path)

    async def both() -> tuple[Prepared, dict[str, Any]]:
        verdict, after = await probe_booked(teacher, "counting", config, tmp_path / "raw", before)
        assert (verdict.requests, len(teacher.calls)) == (6, 6)
        return after, await collect(teacher, config, tmp_path / "raw", "counting", 0, before=after)

    after, summary = asyncio.run(both())
    answered = [at_most(request) for request in teacher.calls]
    assert after.ledger.spent.requests == 6
    assert 0 < after.ledger.spent.tokens.total < sum(answered, Tokens()).total
    assert after.ledger.spent.dollars == pytest.approx(
        (after.ledger.spent.tokens.input + 10 * after.ledger.spent.tokens.output) / 1e6
    )
    assert summary["spent"]["requests"] == 6 + 3
    # And the next run reads the same from the disk.
    assert look(teacher, config, tmp_path).ledger.spent.requests == 9


def test_a_request_that_was_lost_stays_at_its_worst_case(teacher: Any, config: CollectConfig, tmp_path: Path) -> None:
    generate = teacher.generate
    lost: list[Any] = []

    async def loses_one(request: Any) -> Any:
        if len(teacher.calls) == 2 and not lost:
            lost.append(request)
            raise RetryableError("cut", retry_after_s=0.0, possibly_paid=True)
        return await generate(request)

    teacher.generate = loses_one
    _, after = asyncio.run(probe_booked(teacher, "counting", config, tmp_path / "raw", look(teacher, config, tmp_path)))
    spent = after.ledger.spent
    assert (spent.requests, spent.possibly_paid, spent.possibly_paid_tokens) == (7, 1, at_most(lost[0]))
    assert look(teacher, config, tmp_path).ledger.spent.possibly_paid == 1


def test_the_estimate_holds_the_probe(teacher: Any, config: CollectConfig, tmp_path: Path) -> None:
    before, probe = look(teacher, config, tmp_path), estimate(teacher.capabilities)
    found = with_probe(before, config, teacher.capabilities).estimate
    assert found.requests == before.estimate.requests + probe.requests == 9
    assert found.at_most == before.estimate.at_most + probe.set_aside
    assert found.dollars_at_most == pytest.approx((found.at_most.input + 10 * found.at_most.output) / 1e6)
    assert probe.tokens < probe.set_aside.total
    unpriced = attrs.evolve(config, prices=None)
    assert (
        with_probe(look(teacher, unpriced, tmp_path), unpriced, teacher.capabilities).estimate.dollars_at_most is None
    )


@pytest.mark.parametrize(("scoring", "requests"), [(False, 6), (True, 8)])
def test_the_worst_case_is_that_of_the_requests_that_are_sent(
    counting_teacher: Any, config: CollectConfig, tmp_path: Path, scoring: bool, requests: int
) -> None:
    teacher = counting_teacher(scoring=scoring)
    aside = estimate(teacher.capabilities)
    asyncio.run(probe_booked(teacher, "counting", config, tmp_path / "raw", look(teacher, config, tmp_path)))
    sent = sum((at_most(request) for request in teacher.calls), Tokens())
    assert (aside.requests, len(teacher.calls)) == (requests, requests)
    assert sent.total <= aside.set_aside.total


def test_a_budget_too_small_for_it_and_one_request_is_refused_before(
    teacher: Any, config: CollectConfig, tmp_path: Path
) -> None:
    aside = estimate(teacher.capabilities).set_aside
    first = at_most(look(teacher, config, tmp_path).missing[0].request)
    both = (aside + first).total
    dollars = ((aside + first).input + 10 * (aside + first).output) / 1e6
    for small, enough in (
        ({"requests": 6}, {"requests": 7}),
        ({"tokens": both - 1}, {"tokens": both}),
        ({"dollars": dollars * 0.99}, {"dollars": dollars}),
    ):
        (name,) = small
        tight = attrs.evolve(config, budget=BudgetConfig(**small))
        with pytest.raises(ProviderError, match=rf"collect.budget.{name} = .* does not hold the probe \(6 requests"):
            with_probe(look(teacher, tight, tmp_path), tight, teacher.capabilities)
        wide = attrs.evolve(config, budget=BudgetConfig(**enough))
        assert with_probe(look(teacher, wide, tmp_path), wide, teacher.capabilities).estimate.requests == 9
    assert teacher.calls == []
    assert not (tmp_path / "raw").exists()


def test_the_budget_ends_a_probe_that_has_to_repeat_itself(teacher: Any, config: CollectConfig, tmp_path: Path) -> None:
    async def fails(request: Any) -> Any:
        teacher.calls.append(request)
        raise RetryableError("busy", retry_after_s=0.0)

    teacher.generate = fails
    config = attrs.evolve(config, budget=BudgetConfig(requests=2))
    with pytest.raises(ProviderError, match=r"in the probe: collect\.budget\.requests = 2 is reached"):
        asyncio.run(probe_booked(teacher, "counting", config, tmp_path / "raw", look(teacher, config, tmp_path)))
    assert len(teacher.calls) == 2
    assert read_ledger(tmp_path / "raw", look(teacher, config, tmp_path).journal, None).spent.requests == 2


def test_who_will_ask_nothing_needs_no_probe(teacher: Any, config: CollectConfig, tmp_path: Path) -> None:
    two = attrs.evolve(config, budget=BudgetConfig(requests=2))
    assert will_ask(look(teacher, two, tmp_path), two)
    asyncio.run(collect(teacher, two, tmp_path / "raw", "counting", 0))
    assert not will_ask(look(teacher, two, tmp_path), two)  # one is missing, and there is no money for it
    assert will_ask(look(teacher, config, tmp_path), config)
    asyncio.run(collect(teacher, config, tmp_path / "raw", "counting", 0))
    assert not will_ask(look(teacher, config, tmp_path), config)
