"""What tokens cost, what a run has spent, and the hard budget.

A request goes out only if its worst case fits, and its place is freed by what it really took.
"""

import asyncio

import attrs

from bitnet_providers.config import BudgetConfig, PriceConfig, PricesConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens


def price_of(prices: PricesConfig | None, model: str | None) -> PriceConfig | None:
    """The price of `model`: its own, else the one for all; None where the table gives neither."""
    if prices is None:
        return None
    if model is not None and model in prices.models:
        return prices.models[model]
    if prices.input_per_million is None or prices.output_per_million is None:
        return None
    return PriceConfig(input_per_million=prices.input_per_million, output_per_million=prices.output_per_million)


def dollars(price: PriceConfig, tokens: Tokens) -> float:
    return (tokens.input * price.input_per_million + tokens.output * price.output_per_million) / 1e6


def shown(amount: float) -> str:
    """``$12.34``, ``$0.0434``, ``$0.000012``"""
    digits = 2 if amount >= 1 or amount == 0 else 4 if amount >= 0.001 else 6
    return f"${amount:,.{digits}f}"


@attrs.frozen(kw_only=True)
class Spent:
    """What a raw folder has used up to now."""

    requests: int = 0
    """Sent, whatever came of them."""
    tokens: Tokens = NO_TOKENS
    """Counted by the provider, and the worst case of `possibly_paid`."""
    dollars: float | None = None
    """None: some of it has no price."""
    possibly_paid: int = 0
    """Requests whose answer never came though they were sent, and refused ones."""
    possibly_paid_tokens: Tokens = NO_TOKENS


class BudgetReachedError(ProviderError):
    """A request's worst case does not fit in what is left."""


def price_problem(limits: BudgetConfig, price: PriceConfig | None) -> ProviderError | None:
    """Why a budget in dollars can't be kept, and the fix; None: it can."""
    if limits.dollars is None or price is not None:
        return None
    return ProviderError(
        "collect.budget.dollars needs the teacher's prices",
        "write [collect.prices] with input_per_million and output_per_million, or set a budget in tokens",
    )


def check_budget(limits: BudgetConfig, price: PriceConfig | None, spent: Spent) -> None:
    """Raises ProviderError for a budget in dollars that can't be counted."""
    problem = price_problem(limits, price)
    if problem is not None:
        raise problem
    if limits.dollars is not None and spent.dollars is None:
        raise ProviderError(
            "collect.budget.dollars: earlier requests of this run have no known price",
            "set a budget in tokens, or begin another run",
        )


class Budget:
    """Counts what is used and what requests under way may use; one event loop's."""

    def __init__(self, limits: BudgetConfig, price: PriceConfig | None, spent: Spent) -> None:
        """`spent` is what earlier runs used. Raises ProviderError: see `check_budget`."""
        check_budget(limits, price, spent)
        self._limits = limits
        self._price = price
        self.spent = spent
        self._reserved = NO_TOKENS
        self._under_way = 0
        self._closed = False
        self._changed = asyncio.Event()

    async def reserve(self, bound: Tokens, key: object = None) -> bool:
        """Set aside a request's worst case; False where it will never fit. `key` names it in books that are elsewhere.

        While others are under way it waits for them: most of them take less than what was set aside.
        """
        while not self._closed and self.in_the_way(bound) is not None:
            if self._under_way == 0:
                return False
            self._changed.clear()
            await self._changed.wait()
        if self._closed:
            return False
        self.spent = attrs.evolve(self.spent, requests=self.spent.requests + 1)
        self._under_way += 1
        self._reserved += bound
        return True

    def give_back(self, bound: Tokens, key: object = None) -> None:
        """What was set aside is not needed: the request was not sent."""
        self.spent = attrs.evolve(self.spent, requests=self.spent.requests - 1)
        self.settle(bound, NO_TOKENS)

    def settle(self, bound: Tokens, charged: Tokens | None) -> None:
        """A request is over: what was set aside becomes what it took. None: possibly paid, its worst case stays."""
        self._under_way -= 1
        self._reserved -= bound
        spent, tokens = self.spent, bound if charged is None else charged
        known = spent.dollars is not None and self._price is not None
        self.spent = attrs.evolve(
            spent,
            tokens=spent.tokens + tokens,
            dollars=(spent.dollars or 0.0) + dollars(self._price, tokens) if known and self._price else None,
            possibly_paid=spent.possibly_paid + (charged is None),
            possibly_paid_tokens=spent.possibly_paid_tokens + (tokens if charged is None else NO_TOKENS),
        )
        self._changed.set()

    def close(self) -> None:
        """Nothing more goes out; who waits is told no."""
        self._closed = True
        self._changed.set()

    def why_not(self, bound: Tokens) -> BudgetReachedError:
        """Which limit a request does not fit in, and what to do."""
        name, spent = self.in_the_way(bound), self.spent
        limit = getattr(self._limits, name) if name else None
        match name:
            case "requests":
                used = f"{spent.requests:,} requests are used"
            case "dollars" if self._price is not None and spent.dollars is not None:
                most = shown(dollars(self._price, bound))
                used = f"{shown(spent.dollars)} are used, and the next request may cost {most}"
            case _:
                used = f"{spent.tokens.total:,} tokens are used, and the next request may take {bound.total:,}"
        return BudgetReachedError(
            f"collect.budget.{name} = {limit} is reached: {used}", f"raise collect.budget.{name} to go on"
        )

    def in_the_way(self, bound: Tokens, requests: int = 1) -> str | None:
        """The limit that so many requests of `bound` together do not fit in, beside those under way; None: they fit."""
        limits, spent, more = self._limits, self.spent, self._reserved + bound
        if limits.requests is not None and spent.requests + requests > limits.requests:
            return "requests"
        if limits.tokens is not None and spent.tokens.total + more.total > limits.tokens:
            return "tokens"
        if (
            limits.dollars is not None
            and self._price is not None
            and spent.dollars is not None
            and spent.dollars + dollars(self._price, more) > limits.dollars * (1 + 1e-12)  # sums of floats
        ):
            return "dollars"
        return None
