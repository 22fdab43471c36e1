"""Budget, ledger and limits that several workers share, and what a worker that is gone leaves in them."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.collect.shared_budget_and_limits import BooksClient, LimitsClient, SharedBooks
from bitnet_providers.config import BudgetConfig, CollectConfig, PriceConfig
from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.spending.budget import Spent
from bitnet_providers.spending.token_counts import Tokens

PRICE = PriceConfig(input_per_million=1e6, output_per_million=1e6)  # a dollar a token
BOUND = Tokens(2, 3)


def opened(folder: Path, **settings: Any) -> tuple[SharedBooks, Callable[..., Awaitable[Any]]]:
    books = SharedBooks(folder, CollectConfig(**settings), PRICE, Spent(dollars=0.0))

    async def ask(method: str, *arguments: Any) -> Any:
        return await getattr(books, method)(*arguments)

    return books, ask


async def settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_a_request_is_in_the_ledger_before_its_worker_hears_yes(tmp_path: Path) -> None:
    async def reserve() -> None:
        _, ask = opened(tmp_path)
        assert await BooksClient(0, ask).reserve(BOUND, ("a" * 64, 0))
        assert '"sent":1' in next(tmp_path.glob("ledger-*")).read_text()

    asyncio.run(reserve())


def test_workers_wait_for_each_others_worst_case(tmp_path: Path) -> None:
    """Nine tokens hold one worst case of five, and then another, where the first took less."""

    async def two_workers() -> None:
        books, ask = opened(tmp_path, budget=BudgetConfig(tokens=9))
        one, two = BooksClient(0, ask), BooksClient(1, ask)
        assert await one.reserve(BOUND, ("a" * 64, 0))
        waiting = asyncio.create_task(two.reserve(BOUND, ("b" * 64, 0)))
        await settled()
        assert not waiting.done()
        number = one.sent(("a" * 64, 0), BOUND)
        one.answered(number, Tokens(2, 2))
        one.settle(BOUND, Tokens(2, 2))
        assert await waiting
        two.answered(two.sent(("b" * 64, 0), BOUND), BOUND)
        two.settle(BOUND, BOUND)
        await two.told()
        assert not await one.reserve(BOUND, ("c" * 64, 0))
        assert "collect.budget.tokens = 9 is reached" in one.why_not(BOUND).why
        assert (await books.close()).dollars == 9.0

    asyncio.run(two_workers())


def test_the_limits_per_minute_are_those_of_all_workers(tmp_path: Path) -> None:
    async def admit() -> None:
        books, ask = opened(tmp_path, requests_per_minute=3)
        clients = [LimitsClient(worker, ask, BooksClient(worker, ask).tell) for worker in (0, 1)]
        admitted = [asyncio.create_task(clients[number % 2].admit(BOUND)) for number in range(5)]
        await settled()
        assert sum(each.done() for each in admitted) == 3
        await books.stop("enough", "")  # who waits is told, a minute early
        await asyncio.gather(*admitted)

    asyncio.run(admit())


def test_what_a_lost_worker_had_under_way_stays_charged_at_its_worst_case(tmp_path: Path) -> None:
    async def lose() -> Spent:
        books, ask = opened(tmp_path, budget=BudgetConfig(tokens=14))
        lost, other = BooksClient(0, ask), BooksClient(1, ask)
        for key in ("a", "b"):
            assert await lost.reserve(BOUND, (key * 64, 0))
        lost.answered(lost.sent(("a" * 64, 0), BOUND), Tokens(1, 1))
        lost.settle(BOUND, Tokens(1, 1))
        await lost.told()
        too_late = asyncio.create_task(lost.reserve(Tokens(4, 5), ("c" * 64, 0)))
        await settled()
        assert (await books.progress()).at_once == 1
        await books.lose(0)
        assert not await too_late  # nobody would send it
        assert await other.reserve(BOUND, ("d" * 64, 0))  # 2 + 5 are used, and 5 fit
        lost.settle(BOUND, Tokens(1, 1))  # a message that was still on its way
        await lost.told()
        other.give_back(BOUND, ("d" * 64, 0))
        await other.told()
        return await books.close()

    spent = asyncio.run(lose())
    assert (spent.tokens.total, spent.possibly_paid, spent.possibly_paid_tokens.total) == (7, 1, 5)
    found = read_ledger(tmp_path, read_journal(tmp_path), PRICE).spent
    assert (found.tokens.total, found.possibly_paid) == (7, 1)
    assert found.dollars == pytest.approx(7.0)


def test_what_a_lost_worker_waited_for_or_never_said_was_sent_leaves_the_limits(tmp_path: Path) -> None:
    """Two requests a window: the lost worker held one without word of it, and waited for more."""

    async def lose_one() -> None:
        books, ask = opened(tmp_path, requests_per_minute=2)
        books._limits._window_s = 0.05
        lost, other = (LimitsClient(worker, ask, lambda *_: None) for worker in (0, 1))
        await lost.admit(BOUND)
        await lost.admit(BOUND)
        waiting = asyncio.create_task(lost.admit(BOUND))
        await settled()
        await books.lose(0)
        await asyncio.wait_for(waiting, 30)
        await asyncio.wait_for(other.admit(BOUND), 30)
        await asyncio.wait_for(other.admit(BOUND), 30)

    asyncio.run(lose_one())
