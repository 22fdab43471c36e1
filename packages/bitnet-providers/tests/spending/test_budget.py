"""The hard budget: what goes out fits at its worst, and what is not taken is free again."""

import asyncio
import random

import attrs
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_providers.collect.journal_to_shards import journal_row
from bitnet_providers.collect.plan_requests import Planned
from bitnet_providers.config import BudgetConfig, PriceConfig
from bitnet_providers.contract import Completion, GenerateRequest, ProviderError, Sampling
from bitnet_providers.raw.journal import JournalRow, tokens_of
from bitnet_providers.raw.write_shard import row_batch
from bitnet_providers.spending.budget import Budget, Spent
from bitnet_providers.spending.token_counts import Tokens, counted
from bitnet_providers.teachers.common.logprobs import untold

PRICE = PriceConfig(input_per_million=1e6, output_per_million=2e6)  # one dollar a prompt token, two a completion token


@settings(max_examples=200, deadline=None)
@given(seed=st.integers(0, 10**6), tokens=st.integers(1, 2000), dollars=st.floats(1, 3000), requests=st.integers(1, 40))
def test_no_limit_is_ever_passed(seed: int, tokens: int, dollars: float, requests: int) -> None:
    draw = random.Random(seed)
    limits = BudgetConfig(tokens=tokens, dollars=dollars, requests=requests)
    budget = Budget(limits, PRICE, Spent(dollars=0.0))

    async def work() -> None:
        while True:
            bound = Tokens(draw.randint(1, 50), draw.randint(1, 50))
            if not await budget.reserve(bound):
                return
            await asyncio.sleep(0)
            outcome = draw.choice(["whole", "part", "nothing", "lost"])
            part = Tokens(bound.input, draw.randint(0, bound.output))
            budget.settle(bound, {"whole": bound, "part": part, "nothing": Tokens(), "lost": None}[outcome])
            spent = budget.spent
            assert spent.tokens.total <= tokens
            assert spent.dollars is not None
            assert spent.dollars <= dollars * (1 + 1e-9)
            assert spent.dollars == pytest.approx(spent.tokens.input + 2 * spent.tokens.output)
            assert spent.requests <= requests

    async def main() -> None:
        async with asyncio.timeout(20):
            await asyncio.gather(*(work() for _ in range(5)))

    asyncio.run(main())


def test_who_does_not_fit_waits_for_those_under_way() -> None:
    async def main() -> None:
        budget = Budget(BudgetConfig(tokens=100), None, Spent())
        assert await budget.reserve(Tokens(10, 80))
        second = asyncio.create_task(budget.reserve(Tokens(10, 80)))
        await asyncio.sleep(0)
        assert not second.done()
        budget.settle(Tokens(10, 80), Tokens(5, 5))
        assert await second
        third = asyncio.create_task(budget.reserve(Tokens(10, 80)))
        await asyncio.sleep(0)
        budget.settle(Tokens(10, 80), None)  # possibly paid: its worst case stays
        assert not await third
        assert budget.spent == Spent(
            requests=2, tokens=Tokens(15, 85), possibly_paid=1, possibly_paid_tokens=Tokens(10, 80)
        )

    asyncio.run(main())


@pytest.mark.parametrize("usage", [{}, {"prompt_tokens": 0, "completion_tokens": 0}])
def test_what_no_provider_counts_is_charged_at_its_worst(usage: dict[str, float]) -> None:
    bound, text = Tokens(300, 64), untold(b"a text, and nobody knows of how many tokens")
    made = Completion(
        text.text, text.token_logprobs, text.candidate_counts, text.candidate_logprobs, "stop", "m", 0, 0.1,
        token_bytes=text.token_bytes, candidate_bytes=(), usage=usage,
    )  # fmt: skip
    assert counted(made, bound) == bound
    told = attrs.evolve(made, token_logprobs=np.zeros(5, np.float32))
    assert counted(told, bound) == Tokens(300, 5)  # its tokens are there, and its prompt had some
    assert counted(attrs.evolve(told, prompt_tokens=9), bound) == Tokens(9, 5)
    assert counted(attrs.evolve(made, usage={"prompt_tokens": 9, "completion_tokens": 7}), bound) == Tokens(9, 7)
    # The same once it is in the journal: an answer whose end is missing in the ledger.
    row = journal_row(Planned(0, 0, "1", "sample", None, GenerateRequest((), Sampling(), 0), ("k", 0)), made)
    assert tokens_of(JournalRow(row_batch(row), 0), bound) == bound


def test_what_was_spent_before_counts() -> None:
    async def main() -> None:
        budget = Budget(BudgetConfig(tokens=100), None, Spent(tokens=Tokens(95, 0)))
        assert not await budget.reserve(Tokens(3, 3))
        assert str(budget.why_not(Tokens(3, 3))) == (
            "collect.budget.tokens = 100 is reached: 95 tokens are used, and the next request may take 6  → "
            "raise collect.budget.tokens to go on"
        )
        assert await budget.reserve(Tokens(3, 2))

    asyncio.run(main())


def test_closed_it_lets_nobody_through() -> None:
    async def main() -> None:
        budget = Budget(BudgetConfig(tokens=100), None, Spent())
        assert await budget.reserve(Tokens(90, 0))
        waiting = asyncio.create_task(budget.reserve(Tokens(90, 0)))
        await asyncio.sleep(0)
        budget.close()
        assert not await waiting

    asyncio.run(main())


def test_dollars_without_prices_are_refused() -> None:
    with pytest.raises(ProviderError, match=r"collect.budget.dollars needs .* write \[collect.prices\]"):
        Budget(BudgetConfig(dollars=1.0), None, Spent())
    with pytest.raises(ProviderError, match="earlier requests of this run have no known price"):
        Budget(BudgetConfig(dollars=1.0), PRICE, Spent(tokens=Tokens(1, 1)))
