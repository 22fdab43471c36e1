"""When a request is sent again, and how long a server asks to wait."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.contract import RetryableError
from bitnet_providers.teachers.common.retry import LONGEST_WAIT_S, RetryPolicy, retry_after_s
from bitnet_providers.teachers.openai_compatible.errors import reset_s

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


NOW = datetime(2026, 11, 23, 12, 0, 0, tzinfo=UTC)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({"Retry-After": "7"}, 7.0),
        ({"retry-after": " 1.5 "}, 1.5),
        ({"Retry-After": "0"}, 0.0),
        ({"retry-after-ms": "250", "retry-after": "9"}, 0.25),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30.0),
        ({"Retry-After": "Mon, 23 Nov 2026 14:00:30 +0200"}, 30.0),
        ({"Retry-After": "Mon, 23 Nov 2026 11:59:00 GMT"}, 0.0),
        ({"Retry-After": "Mon, 23 Nov 2026 12:00:05 -0000"}, 5.0),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "-3"}, None),
        ({"Retry-After": "nan"}, None),
        ({"Retry-After": "inf"}, None),
        ({"Retry-After": ""}, None),
        ({"retry-after-ms": "x", "Retry-After": "2"}, 2.0),
        ({}, None),
        (None, None),
    ],
)
def test_the_wait_is_read_in_all_its_forms(headers: dict[str, str] | None, seconds: float | None) -> None:
    assert retry_after_s(headers, NOW) == seconds


def test_a_clock_of_ours_that_is_wrong_makes_no_wait() -> None:
    sent = {"Date": "Mon, 23 Nov 2026 12:00:00 GMT"}  # long ago by the clock of this machine
    assert retry_after_s(sent | {"Retry-After": "Mon, 23 Nov 2026 12:00:30 GMT"}) == 30.0
    epoch_ms = str(int(NOW.timestamp() * 1e3) + 4_000)
    used_up = {"date": sent["Date"], "x-ratelimit-remaining": "0", "x-ratelimit-reset": epoch_ms}
    assert reset_s(used_up) == pytest.approx(4.0)


@given(st.text(max_size=40))
def test_no_header_makes_it_fail_or_wait_backwards(text: str) -> None:
    seconds = retry_after_s({"Retry-After": text}, NOW)
    assert seconds is None or seconds >= 0
