"""The ledger: what was sent is counted, whatever ended the process."""

from pathlib import Path

import pytest

from bitnet_providers.config import PriceConfig
from bitnet_providers.raw.journal import Journal, JournalRow, to_batch
from bitnet_providers.raw.ledger import LedgerWriter, read_ledger
from bitnet_providers.spending.costs import Spent
from bitnet_providers.spending.tokens import Tokens

NOTHING = Journal({}, 0)
PRICE = PriceConfig(input_per_million=1.0, output_per_million=10.0)
BOUND = Tokens(100, 50)


def journal_with(*keys: tuple[str, int]) -> Journal:
    row = {
        "prompt_idx": 0, "sample_idx": 0, "request_sha256": "", "source_id": "p", "kind": "sample", "format": None,
        "messages": "[]", "text": b"x", "prompt_ids": None, "token_ids": None, "token_bytes": [b"x"],
        "token_logprobs": [-1.0], "candidate_counts": [0], "candidate_ids": None, "candidate_bytes": [],
        "candidate_logprobs": [], "log_z": None, "entropy": None, "finish_reason": "stop", "model": "m",
        "prompt_tokens": 7, "latency_s": 0.1,
        "usage": '{"completion_tokens": 9, "prompt_tokens": 8}', "repairs": None,
    }  # fmt: skip
    return Journal({key: JournalRow(to_batch([row]), 0) for key in keys}, 0)


def test_each_end_counts_as_what_it_is(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, PRICE) as ledger:
        numbers = [ledger.sent((name, 0), BOUND) for name in "abcde"]
        ledger.answered(numbers[0], Tokens(80, 20))
        ledger.unpaid(numbers[1])
        ledger.possibly_paid(numbers[2])
        ledger.refused(numbers[3], "a filter")
        ledger.sync()
    found = read_ledger(tmp_path, NOTHING, None)  # "e" was under way when it ended
    assert found.refused == {("d", 0): "a filter"}
    assert found.spent == Spent(
        requests=5,
        tokens=Tokens(80 + 3 * 100, 20 + 3 * 50),
        dollars=pytest.approx((380 * 1.0 + 170 * 10.0) / 1e6),
        possibly_paid=3,
        possibly_paid_tokens=Tokens(300, 150),
    )


def test_an_answer_that_reached_the_journal_settles_the_request(tmp_path: Path) -> None:
    """Killed after the journal had it and before the ledger did; and once more, when it had been sent twice."""
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
    assert read_ledger(tmp_path, journal_with(("a", 0)), None).spent == Spent(requests=1, tokens=Tokens(8, 9))
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
    found = read_ledger(tmp_path, journal_with(("a", 0)), None).spent
    assert found == Spent(requests=2, tokens=Tokens(108, 59), possibly_paid=1, possibly_paid_tokens=BOUND)


def test_a_request_killed_once_and_answered_later_is_counted_twice(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.answered(ledger.sent(("a", 0), BOUND), Tokens(8, 9))
    found = read_ledger(tmp_path, journal_with(("a", 0)), None).spent
    assert found == Spent(requests=2, tokens=Tokens(108, 59), possibly_paid=1, possibly_paid_tokens=BOUND)


def test_completions_of_no_ledger_count_too(tmp_path: Path) -> None:
    found = read_ledger(tmp_path, journal_with(("a", 0), ("b", 1)), PRICE).spent
    assert found == Spent(requests=2, tokens=Tokens(16, 18), dollars=pytest.approx((16 + 180) / 1e6))


def test_a_price_that_was_not_known_makes_the_sum_unknown_until_it_is(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.answered(ledger.sent(("a", 0), BOUND), Tokens(10, 10))
    assert read_ledger(tmp_path, NOTHING, None).spent.dollars is None
    assert read_ledger(tmp_path, NOTHING, PRICE).spent.dollars == pytest.approx(110 / 1e6)
    with LedgerWriter(tmp_path, PRICE) as ledger:
        ledger.answered(ledger.sent(("b", 0), BOUND), Tokens(10, 10))
    other = PriceConfig(input_per_million=2.0, output_per_million=20.0)
    assert read_ledger(tmp_path, NOTHING, other).spent.dollars == pytest.approx((220 + 110) / 1e6)


def test_a_torn_line_says_nothing(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
        ledger.answered(ledger.sent(("b", 0), BOUND), Tokens(1, 1))
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes()[:-9])  # the end of "b" is torn: it counts as under way
    assert read_ledger(tmp_path, NOTHING, None).spent.possibly_paid == 2


def test_nothing_sent_leaves_no_file(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "raw", PRICE) as ledger:
        ledger.sync()
    assert not (tmp_path / "raw").exists()
    assert read_ledger(tmp_path / "raw", NOTHING, PRICE).spent == Spent(dollars=0)
