"""Faults that a server may have, and what a teacher has to make of each."""

from typing import Literal

import attrs

from bitnet_providers.contract import ProviderError, RequestRefusedError, RetryableError

Fault = Literal["rate limit", "unavailable", "cut", "bad request", "unauthorized", "garbage"]
"""A 429 with ``Retry-After: 3``; a 503; the connection goes within the answer; a 400 about the request's text; a 401; a
200 whose body is not what the API sends."""


@attrs.frozen
class Expected:
    """What is raised."""

    kind: type[ProviderError]
    exactly: bool = False
    """No subclass will do: the error must not say that the same request may work later."""
    overloaded: bool | None = None
    retry_after_s: float | None = None
    possibly_paid: bool | None = None


EXPECTED: dict[Fault, Expected] = {
    "rate limit": Expected(RetryableError, overloaded=True, retry_after_s=3.0, possibly_paid=False),
    "unavailable": Expected(RetryableError, overloaded=False),
    "cut": Expected(RetryableError, overloaded=False, possibly_paid=True),
    "bad request": Expected(RequestRefusedError),
    "unauthorized": Expected(ProviderError, exactly=True),
    "garbage": Expected(ProviderError),
}


def wrong_with(error: BaseException, fault: Fault) -> str | None:
    """What of `error` is not as the contract has it for `fault`; None: nothing."""
    expected = EXPECTED[fault]
    name = type(error).__name__
    if not isinstance(error, expected.kind):
        return f"{fault}: {name} was raised instead of {expected.kind.__name__}: {error}"
    if expected.exactly and isinstance(error, RetryableError | RequestRefusedError):
        return f"{fault}: {name} was raised, but no request will work until somebody mends this: raise ProviderError"
    for field in ("overloaded", "retry_after_s", "possibly_paid"):
        wanted, found = getattr(expected, field), getattr(error, field, None)
        if wanted is not None and found != wanted:
            return f"{fault}: {name}.{field} is {found}, not {wanted}"
    return None if str(error).strip() else f"{fault}: the error says nothing"
