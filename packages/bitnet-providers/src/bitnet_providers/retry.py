"""When to send a request again after a failure."""

import random

import attrs

from bitnet_providers.contract import RetryableError

LONGEST_WAIT_S = 30.0
"""Between two tries, where the server says nothing."""
LONGEST_OBEYED_S = 900.0
"""A server that asks for more is not there for now: the collection stops, and says so."""


@attrs.frozen
class RetryPolicy:
    """How often and how soon."""

    retries: int
    first_wait_s: float

    def wait_s(self, failures: int, error: RetryableError, draw: float | None = None) -> float:
        """Seconds before try `failures` + 1: what the server asks, else doubling waits with jitter.

        `draw` in [0, 1) takes the place of chance. The jitter spreads those who failed together.
        """
        draw = random.random() if draw is None else draw
        if error.retry_after_s is not None:
            return error.retry_after_s + 0.1 * draw * min(error.retry_after_s, 1.0)
        longest = min(LONGEST_WAIT_S, self.first_wait_s * 2.0 ** (failures - 1))
        return longest * (0.5 + 0.5 * draw)
