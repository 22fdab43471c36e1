"""One request sent, and what became of it in the ledger and the budget."""

from collections.abc import Awaitable, Callable

from bitnet_providers.collect.books import BudgetBook, LedgerBook
from bitnet_providers.contract import UNBELIEVABLE, Completion, ProviderError, RequestRefusedError, RetryableError
from bitnet_providers.raw.completion_ids import Key
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens, counted


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
