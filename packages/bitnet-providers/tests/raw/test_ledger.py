"""The ledger: what was sent is counted, whatever ended the process."""

from pathlib import Path

import pytest

from bitnet_providers.config import PriceConfig
from bitnet_providers.raw.journal import Journal, JournalWriter, Rows, read_journal
from bitnet_providers.raw.ledger import LedgerWriter, read_ledger
from bitnet_providers.raw.write_shard import row_batch
from bitnet_providers.spending.budget import Spent
from bitnet_providers.spending.token_counts import Tokens

NOTHING = Journal(Rows(), 0)
PRICE = PriceConfig(input_per_million=1.0, output_per_million=10.0)
BOUND = Tokens(100, 50)


def journal_with(folder: Path, *keys: tuple[str, int]) -> Journal:
    row = {
        "prompt_idx": 0, "sample_idx": 0, "request_sha256": "", "source_id": "p", "kind": "sample", "format": None,
        "messages": "[]", "text": b"x", "prompt_ids": None, "token_ids": None, "token_bytes": [b"x"],
        "token_logprobs": [-1.0], "candidate_counts": [0], "candidate_ids": None, "candidate_bytes": [],
        "candidate_logprobs": [], "log_z": None, "entropy": None, "finish_reason": "stop", "model": "m",
        "prompt_tokens": 7, "latency_s": 0.1,
        "usage": '{"completion_tokens": 9, "prompt_tokens": 8}', "repairs": None,
    }  # fmt: skip
    with JournalWriter(folder / "journal") as journal:
        journal.append([row_batch(row | {"request_sha256": name, "sample_idx": draw}) for name, draw in keys])
    return read_journal(folder / "journal")


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
    assert read_ledger(tmp_path, journal_with(tmp_path, ("a", 0)), None).spent == Spent(requests=1, tokens=Tokens(8, 9))
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
    found = read_ledger(tmp_path, journal_with(tmp_path, ("a", 0)), None).spent
    assert found == Spent(requests=2, tokens=Tokens(108, 59), possibly_paid=1, possibly_paid_tokens=BOUND)


def test_a_request_killed_once_and_answered_later_is_counted_twice(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.sent(("a", 0), BOUND)
    with LedgerWriter(tmp_path, None) as ledger:
        ledger.answered(ledger.sent(("a", 0), BOUND), Tokens(8, 9))
    found = read_ledger(tmp_path, journal_with(tmp_path, ("a", 0)), None).spent
    assert found == Spent(requests=2, tokens=Tokens(108, 59), possibly_paid=1, possibly_paid_tokens=BOUND)


def test_completions_of_no_ledger_count_too(tmp_path: Path) -> None:
    found = read_ledger(tmp_path, journal_with(tmp_path, ("a", 0), ("b", 1)), PRICE).spent
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


def some_requests(folder: Path) -> Path:
    """One of each end, and one under way."""
    with LedgerWriter(folder, PRICE) as ledger:
        numbers = [ledger.sent((f"{name * 64}", 0), BOUND) for name in "abcdef"]
        ledger.answered(numbers[0], Tokens(80, 20))
        ledger.unpaid(numbers[1])
        ledger.possibly_paid(numbers[2])
        ledger.refused(numbers[3], "a filter")
        ledger.answered(numbers[4], Tokens(90, 50))
        ledger.refused(numbers[4], "no 32-bit whole numbers")
    (path,) = folder.glob("ledger-*")
    return path


def test_an_answer_may_be_refused_for_what_it_holds(tmp_path: Path) -> None:
    some_requests(tmp_path)
    found = read_ledger(tmp_path, NOTHING, None)
    assert sorted(name[0] for name, _ in found.refused) == ["d", "e"]
    assert found.spent.tokens == Tokens(80 + 3 * 100 + 90, 20 + 3 * 50 + 50)


@pytest.mark.slow
def test_a_damaged_line_is_told_and_counts_as_its_worst_case(tmp_path: Path) -> None:
    """Whichever bit of whichever line: never less than was spent, and at most two requests more for each line that is
    lost; a line end that is damaged takes two."""
    path = some_requests(tmp_path)
    whole, truth = path.read_bytes(), read_ledger(tmp_path, NOTHING, None).spent
    for at in range(len(whole)):
        for bit in (0, 3, 6):
            content = bytearray(whole)
            content[at] ^= 1 << bit
            path.write_bytes(content)
            found = read_ledger(tmp_path, NOTHING, PRICE)
            assert found.damaged or at == len(whole) - 1, (at, bit)
            more = found.spent.tokens - truth.tokens
            assert 0 <= more.total <= 4 * BOUND.total, (at, bit)
            assert found.spent.requests >= truth.requests, (at, bit)
            assert found.spent.dollars is not None
            assert truth.dollars is not None
            assert found.spent.dollars >= truth.dollars - 1e-12


def test_lines_of_an_earlier_version_have_no_crc(tmp_path: Path) -> None:
    lines = [
        '{"ledger":1,"per_million":null}',
        '{"sent":1,"key":["a",0],"in":100,"out":50}',
        '{"answered":1,"in":8,"out":9}',
    ]
    (tmp_path / "ledger-000-aa.jsonl").write_text("\n".join([*lines, '{"sent":2,"key":["b",0],"in":7,"o', ""]))
    found = read_ledger(tmp_path, NOTHING, None)
    assert (found.spent.requests, found.damaged) == (2, 1)
    assert found.spent.tokens == Tokens(108, 59), "the damaged one as the biggest"


def test_nothing_sent_leaves_no_file(tmp_path: Path) -> None:
    with LedgerWriter(tmp_path / "raw", PRICE) as ledger:
        ledger.sync()
    assert not (tmp_path / "raw").exists()
    assert read_ledger(tmp_path / "raw", NOTHING, PRICE).spent == Spent(dollars=0)
