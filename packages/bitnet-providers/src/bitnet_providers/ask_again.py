"""One question to a teacher, asked again while it may still be answered; for those who ask one at a time."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import TypeVar

import attrs

from bitnet_providers.contract import ProviderError, RetryableError
from bitnet_providers.retry import LONGEST_OBEYED_S, RetryPolicy

Answer = TypeVar("Answer")


@attrs.define
class Retries:
    """What it took."""

    retries: int = 0
    possibly_paid: int = 0
    """Requests that were sent whole and whose answer never came."""


async def ask_with_retries(
    call: Callable[[], Awaitable[Answer]],
    policy: RetryPolicy,
    counted: Retries,
    on_wait: Callable[[float, RetryableError], None] = lambda seconds, error: None,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> Answer:
    """``await call()``, again after a RetryableError, as often and as late as `policy` says; adds to `counted`.

    `on_wait` hears of each wait in seconds. Raises what `call` raises, and ProviderError when the tries are used up or
    the server asks to wait longer than anybody would.
    """
    failures = 0
    while True:
        try:
            return await call()
        except RetryableError as error:
            failures += 1
            counted.possibly_paid += error.possibly_paid
            if error.retry_after_s is not None and error.retry_after_s > LONGEST_OBEYED_S:
                raise ProviderError(
                    f"{error} (the server asks to wait {error.retry_after_s:,.0f} s): run again then"
                ) from error
            if failures > policy.retries:
                raise ProviderError(
                    f"{error} (tried {failures} times): see that the server can be reached, then run again"
                ) from error
            counted.retries += 1
            wait_s = policy.wait_s(failures, error)
            on_wait(wait_s, error)
        await sleep(wait_s)
