"""When a request is sent again."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.contract import RetryableError
from bitnet_providers.teachers.common.retry import LONGEST_WAIT_S, RetryPolicy

POLICY = RetryPolicy(retries=10, first_wait_s=0.5)


def test_waits_double_up_to_the_longest_between_half_and_whole() -> None:
    error = RetryableError("503")
    assert [POLICY.wait_s(failures, error, draw=1.0) for failures in range(1, 9)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    assert [POLICY.wait_s(failures, error, draw=0.0) for failures in (1, 2, 20)] == [0.25, 0.5, LONGEST_WAIT_S / 2]


@given(asked=st.floats(0, 1e6), failures=st.integers(1, 100))
def test_never_before_the_time_that_the_server_asks_for_and_not_much_later(asked: float, failures: int) -> None:
    wait = POLICY.wait_s(failures, RetryableError("429", retry_after_s=asked, overloaded=True))
    assert asked <= wait <= asked + 0.1 + 1e-6 * asked


def test_chance_spreads_them() -> None:
    assert len({POLICY.wait_s(3, RetryableError("cut")) for _ in range(20)}) > 10
    assert POLICY.wait_s(3, RetryableError("cut")) == pytest.approx(1.5, abs=0.5)
