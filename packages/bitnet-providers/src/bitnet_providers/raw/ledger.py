"""The ledger: what was sent and what became of it, so that a budget holds over kills and runs.

A ledger is a row of files ``ledger-NNN-TOKEN.jsonl`` beside the journal; a process appends to one of its own, a JSON
object a line. A request is written down before it is sent, and its end after it: answered (with the tokens that
count), unpaid (the server said no), possibly paid, or refused for good (with the reason). A request whose end is
missing was under way when the process died: it is counted as possibly paid, at its worst case, unless its answer
reached the journal.

A line is handed to the operating system before the request goes out, so a killed process has lost none; the disk has
it with the next completions (one fsync for many). A power cut loses the lines since then, at most.
"""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import msgspec

from bitnet_providers.config import PriceConfig
from bitnet_providers.raw.journal import Journal, new_file, tokens_of
from bitnet_providers.raw.keys import Key
from bitnet_providers.spending.costs import Spent, dollars
from bitnet_providers.spending.tokens import NO_TOKENS, Tokens

FILES = "ledger-*.jsonl"


@attrs.frozen
class Ledger:
    """What the ledger of a raw folder says."""

    spent: Spent
    refused: dict[Key, str]
    """Requests that will never be answered, with the reason."""


@attrs.define
class _Attempt:
    key: Key
    bound: Tokens
    counts: Tokens | None = None
    """None: its end is not known."""
    answered: bool = False
    possibly_paid: bool = False


def read_ledger(folder: Path, journal: Journal, price: PriceConfig | None) -> Ledger:
    """Sum up all ledger files, and the completions that no ledger knows; `price` is for those written without one."""
    attempts: list[tuple[_Attempt, PriceConfig | None]] = []
    refused: dict[Key, str] = {}
    for path in sorted(folder.glob(FILES)):
        lines = _lines(path)
        own_price = next((_price(line) for line in lines if "ledger" in line), None) or price
        attempts += [(attempt, own_price) for attempt in _attempts(lines, refused)]

    # A completion in the journal is the answer to one attempt; where none says so, to the last whose end is missing.
    answered = {attempt.key for attempt, _ in attempts if attempt.answered}
    for attempt, _ in reversed(attempts):
        row = journal.rows.get(attempt.key)
        if attempt.counts is None and not attempt.possibly_paid and row is not None and attempt.key not in answered:
            attempt.counts = tokens_of(row)
            answered.add(attempt.key)
    spent = [_spent(attempt, own_price) for attempt, own_price in attempts]
    for key in journal.rows.keys() - {attempt.key for attempt, _ in attempts}:
        tokens = tokens_of(journal.rows[key])
        spent.append(Spent(requests=1, tokens=tokens, dollars=_cost(price, tokens)))
    return Ledger(_sum(spent, price), refused)


def _attempts(lines: list[dict[str, Any]], refused: dict[Key, str]) -> list[_Attempt]:
    attempts: dict[int, _Attempt] = {}
    for line in lines:
        match line:
            case {"sent": number, "key": [sha256, draw], "in": given, "out": made}:
                attempts[number] = _Attempt((sha256, draw), Tokens(given, made))
            case {"answered": number, "in": given, "out": made} if number in attempts:
                attempts[number].counts = Tokens(given, made)
                attempts[number].answered = True
            case {"unpaid": number} if number in attempts:
                attempts[number].counts = NO_TOKENS
            case {"possibly_paid": number} if number in attempts:
                attempts[number].possibly_paid = True
            case {"refused": number, "why": reason} if number in attempts:
                attempts[number].possibly_paid = True
                refused[attempts[number].key] = str(reason)
    return list(attempts.values())


def _spent(attempt: _Attempt, price: PriceConfig | None) -> Spent:
    possibly = attempt.counts is None
    tokens = attempt.bound if attempt.counts is None else attempt.counts
    return Spent(
        requests=1,
        tokens=tokens,
        dollars=_cost(price, tokens),
        possibly_paid=int(possibly),
        possibly_paid_tokens=tokens if possibly else NO_TOKENS,
    )


def _cost(price: PriceConfig | None, tokens: Tokens) -> float | None:
    return None if price is None else dollars(price, tokens)


def _sum(parts: list[Spent], price: PriceConfig | None) -> Spent:
    amounts = [part.dollars for part in parts if part.tokens.total]
    known = [amount for amount in amounts if amount is not None]
    return Spent(
        requests=sum(part.requests for part in parts),
        tokens=sum((part.tokens for part in parts), NO_TOKENS),
        dollars=None if len(known) < len(amounts) or (not amounts and price is None) else sum(known),
        possibly_paid=sum(part.possibly_paid for part in parts),
        possibly_paid_tokens=sum((part.possibly_paid_tokens for part in parts), NO_TOKENS),
    )


def _lines(path: Path) -> list[dict[str, Any]]:
    """The whole lines of a file; one that a kill or the disk has torn says nothing."""
    return list(_whole(path.read_bytes().split(b"\n")))


def _whole(lines: list[bytes]) -> Iterator[dict[str, Any]]:
    for line in lines:
        try:
            value = msgspec.json.decode(line)
        except msgspec.DecodeError:
            continue
        if isinstance(value, dict):
            yield value


def _price(line: dict[str, Any]) -> PriceConfig | None:
    match line.get("per_million"):
        case [float() | int() as given, float() | int() as made]:
            return PriceConfig(input_per_million=float(given), output_per_million=float(made))
    return None


class LedgerWriter:
    """Appends to a new file of the ledger; the file is made with the first request. A context manager."""

    def __init__(self, folder: Path, price: PriceConfig | None) -> None:
        self._folder = folder
        self._price = price
        self._file: BinaryIO | None = None
        self._sent = 0

    def sent(self, key: Key, bound: Tokens) -> int:
        """Write down a request before it goes out; returns the number under which its end is told. Raises OSError."""
        if self._file is None:
            self._file = new_file(self._folder, "ledger", ".jsonl", buffering=0)
            prices = self._price and [self._price.input_per_million, self._price.output_per_million]
            self._write({"ledger": 1, "per_million": prices})
        self._sent += 1
        self._write({"sent": self._sent, "key": key, "in": bound.input, "out": bound.output})
        return self._sent

    def answered(self, number: int, tokens: Tokens) -> None:
        self._write({"answered": number, "in": tokens.input, "out": tokens.output})

    def unpaid(self, number: int) -> None:
        self._write({"unpaid": number})

    def possibly_paid(self, number: int) -> None:
        self._write({"possibly_paid": number})

    def refused(self, number: int, reason: str) -> None:
        self._write({"refused": number, "why": reason})

    def sync(self) -> None:
        """Wait until the disk has every line. May run in another thread than the others. Raises OSError."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(msgspec.json.encode(line) + b"\n")

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()
