"""One request sent, and what became of it in the ledger and the budget.

`bitnet_providers.spending.budget.Budget`, `bitnet_providers.raw.ledger.LedgerWriter` and
`bitnet_providers.collect.rate_limits.RateLimits` are those of this process;
`bitnet_providers.collect.shared_budget_and_limits` has those that many workers share.
"""

from collections.abc import Awaitable, Callable
from typing import Any, Protocol

from bitnet_providers.contract import UNBELIEVABLE, Completion, ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.raw.completion_ids import Key
from bitnet_providers.spending.budget import BudgetReachedError
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens, counted


class BudgetBook(Protocol):
    async def reserve(self, bound: Tokens, key: Key | None = None) -> bool: ...
    def give_back(self, bound: Tokens, key: Key | None = None) -> None: ...
    def settle(self, bound: Tokens, charged: Tokens | None) -> None: ...
    def why_not(self, bound: Tokens) -> BudgetReachedError: ...


class LedgerBook(Protocol):
    def sent(self, key: Key, bound: Tokens) -> int: ...
    def answered(self, number: int, tokens: Tokens) -> None: ...
    def unpaid(self, number: int) -> None: ...
    def possibly_paid(self, number: int) -> None: ...
    def refused(self, number: int, reason: str) -> None: ...
    def sync(self) -> None: ...


class LimitsBook(Protocol):
    async def admit(self, bound: Tokens) -> Any: ...
    def sent(self, admission: Any) -> None: ...
    def ended(self, admission: Any, took: Tokens) -> None: ...


async def send_booked(
    budget: BudgetBook,
    ledger: LedgerBook,
    key: Key,
    bound: Tokens,
    send: Callable[[], Awaitable[Completion]],
    check: Callable[[Completion], None] = lambda completion: None,
) -> Completion:
    """``await send()``, once; `budget` has set `bound` aside for it. Raises what `send` and `check` raise.

    What `check` refuses for good is written down; it is charged as the answer that it is.
    """
    charged: Tokens | None = None  # as long as nothing else is known
    attempt = ledger.sent(key, bound)
    try:
        completion = await send()
        charged = bound if UNBELIEVABLE in completion.repairs else counted(completion, bound)
        ledger.answered(attempt, charged)
    except RetryableError as error:
        if error.possibly_paid:
            ledger.possibly_paid(attempt)
        else:
            charged = NO_TOKENS
            ledger.unpaid(attempt)
        raise
    except RequestRefusedError as error:
        ledger.refused(attempt, error.why)
        raise
    except ProviderError:
        charged = NO_TOKENS
        ledger.unpaid(attempt)
        raise
    finally:
        budget.settle(bound, charged)
    try:
        check(completion)
    except RequestRefusedError as error:
        ledger.refused(attempt, error.why)
        raise
    return completion
