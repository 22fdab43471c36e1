"""The ledger: what was sent and what became of it, so that a budget holds over kills and runs.

A ledger is a row of files ``ledger-NNN-TOKEN.jsonl`` beside the journal; a process appends to one of its own, a JSON
object a line. A request is written down before it is sent, and its end after it: answered (with the tokens that
count), unpaid (the server said no), possibly paid, or refused for good (with the reason). A request whose end is
missing was under way when the process died: it is counted as possibly paid, at its worst case, unless its answer
reached the journal.

Each line ends with ``crc``, the CRC-32 of the line without it. One that is not what was written is told, and counts as
what it may have been at worst: an end that is missing, or, where no number tells that, a request as big as the biggest.
Files of earlier versions begin with ``{"ledger": 1`` and have none.

A line is handed to the operating system before the request goes out, so a killed process has lost none; the disk has
it with the next completions (one fsync for many). A power cut loses the lines since then, at most.
"""

import os
import re
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import msgspec
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.config import PriceConfig
from bitnet_providers.raw.completion_ids import Key, key_ids
from bitnet_providers.raw.journal import Journal, Rows, in_order, new_file, tokens_of
from bitnet_providers.spending.budget import Spent, dollars
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens

FILES = "ledger-*.jsonl"


@attrs.frozen
class Ledger:
    """What the ledger of a raw folder says."""

    spent: Spent
    refused: dict[Key, str]
    """Requests that will never be answered, with the reason."""
    damaged: int = 0
    """Lines that are not what was written."""


@attrs.frozen
class _Sent:
    """A request whose end is not told."""

    key: Key
    bound: Tokens


@attrs.define
class _Sums:
    """What requests of one price have used."""

    price: PriceConfig | None
    requests: int = 0
    tokens: Tokens = NO_TOKENS
    possibly_paid: int = 0
    possibly_paid_tokens: Tokens = NO_TOKENS

    def add(self, tokens: Tokens, *, possibly: bool = False) -> None:
        self.requests += 1
        self.tokens += tokens
        if possibly:
            self.possibly_paid += 1
            self.possibly_paid_tokens += tokens


class _Seen:
    """Which rows of the journal the ledger knows, and which of them it says were answered. Looked up many at a time."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows
        self.known, self.answered = np.zeros((2, len(rows)), bool)
        self._waiting: list[tuple[NDArray[np.bool_], Key]] = []

    def mark(self, key: Key, *, answered: bool) -> None:
        self._waiting.append((self.answered if answered else self.known, key))
        if len(self._waiting) > 10_000:
            self.look_up()

    def look_up(self) -> None:
        for marks in (self.known, self.answered):
            keys = [key for wanted, key in self._waiting if wanted is marks]
            places = self.rows.find(key_ids(keys))
            marks[places[places >= 0]] = True
        self._waiting = []


def read_ledger(folder: Path, journal: Journal, price: PriceConfig | None) -> Ledger:
    """Sum up all ledger files, and the completions that no ledger knows; `price` is for those written without one."""
    refused: dict[Key, str] = {}
    seen = _Seen(journal.rows)
    files = [_read_file(path, price, refused, seen) for path in in_order(folder.glob(FILES))]
    seen.look_up()
    # A completion in the journal is the answer to one attempt; where none says so, to the last whose end is missing.
    for file in reversed(files):
        for sent in reversed(file.open.values()):
            place = int(journal.rows.find(key_ids([sent.key]))[0])
            if place >= 0 and not seen.answered[place]:
                seen.answered[place] = True
                file.sums.add(tokens_of(journal.rows.row(place), sent.bound))
            else:
                file.sums.add(sent.bound, possibly=True)
    biggest = max((file.biggest for file in files), key=lambda bound: bound.total, default=NO_TOKENS)
    for file in files:
        for _ in range(file.lost):
            file.sums.add(file.biggest if file.biggest.total else biggest, possibly=True)
    unknown = _Sums(price)
    for place in np.flatnonzero(~seen.known).tolist():
        unknown.add(tokens_of(journal.rows.row(place)))
    return Ledger(
        _spent([*(file.sums for file in files), unknown], price), refused, sum(file.damaged for file in files)
    )


@attrs.define
class _File:
    """What one file says."""

    sums: _Sums
    open: dict[int, _Sent] = attrs.Factory(dict)
    """Requests whose end is missing, by their number."""
    biggest: Tokens = NO_TOKENS
    """The biggest worst case of a request."""
    damaged: int = 0
    lost: int = 0
    """Requests of which nothing is known, at most."""


def _read_file(path: Path, price: PriceConfig | None, refused: dict[Key, str], seen: _Seen) -> _File:
    file = _File(_Sums(price))
    sent = highest = damaged_behind = 0
    ended: dict[int, Key] = {}
    """The last one: a request that was answered may still be refused for its answer."""
    orphans: dict[int, Tokens | None] = {}
    """Ends of requests whose line is lost: what they took, None: not known."""
    for line in _lines(path):
        match line:
            case None:
                file.damaged += 1
                damaged_behind += 1
            case {"ledger": _}:
                file.sums.price = _price(line) or price
            case {"sent": int(number), "key": [str(sha256), int(draw)], "in": int(given), "out": int(made)}:
                file.open[number] = _Sent((sha256, draw), Tokens(given, made))
                file.biggest = max(file.biggest, Tokens(given, made), key=lambda bound: bound.total)
                seen.mark((sha256, draw), answered=False)
                sent, highest, damaged_behind = sent + 1, max(highest, number), 0
            case {"answered": int(number), "in": int(given), "out": int(made)}:
                took = Tokens(given, made)
                if (request := file.open.pop(number, None)) is None:
                    orphans[number] = took
                else:
                    file.sums.add(took)
                    seen.mark(request.key, answered=True)
                    ended = {number: request.key}
            case {"unpaid": int(number)}:
                if file.open.pop(number, None) is None:
                    orphans[number] = NO_TOKENS
                else:
                    file.sums.add(NO_TOKENS)
            case {"possibly_paid": int(number)} | {"refused": int(number)}:
                request = file.open.pop(number, None)
                key = ended.get(number) if request is None else request.key
                if request is not None:
                    file.sums.add(request.bound, possibly=True)
                elif key is None:
                    orphans.setdefault(number, None)
                if "refused" in line and key is not None:
                    refused[key] = str(line.get("why"))
    for took_ in orphans.values():
        if took_ is not None:
            file.sums.add(took_)
    # Numbers count on: one that is missing was a line. Damage behind the last number may have been one more.
    told = sum(took_ is not None for took_ in orphans.values())
    file.lost = max(highest, *orphans, 0) - sent - told + damaged_behind
    return file


def _spent(parts: list[_Sums], price: PriceConfig | None) -> Spent:
    used = [part for part in parts if part.tokens.total]
    amounts = [dollars(part.price, part.tokens) for part in used if part.price is not None]
    return Spent(
        requests=sum(part.requests for part in parts),
        tokens=sum((part.tokens for part in parts), NO_TOKENS),
        dollars=None if len(amounts) < len(used) or (not amounts and price is None) else sum(amounts),
        possibly_paid=sum(part.possibly_paid for part in parts),
        possibly_paid_tokens=sum((part.possibly_paid_tokens for part in parts), NO_TOKENS),
    )


_CRC = re.compile(rb'(.+),"crc":"([0-9a-f]{8})"}', re.DOTALL)


def _with_crc(line: Mapping[str, Any]) -> bytes:
    body = msgspec.json.encode(line)
    return body[:-1] + b',"crc":"%08x"}\n' % zlib.crc32(body)


def _lines(path: Path) -> Iterator[dict[str, Any] | None]:
    """The lines of a file; None for each that is not what was written. One that a kill has torn was not written yet."""
    old = False
    with path.open("rb") as file:
        for line in file:
            content = line.rstrip(b"\n").strip(b"\0")  # file systems fill a file's end with zeros after a power cut
            if not content:
                continue
            torn = not line.endswith(b"\n")
            old = old or content.startswith(b'{"ledger":1,')
            value = _read(content, old)
            if value is None and torn:  # or only its last byte is damaged
                value = _read(content[:-1], old=False)
            if value is not None:
                yield value
            elif not torn:
                # where the end of a line is damaged, two are one
                yield from [None] * max(1, content.count(b',"crc":"'))


def _read(content: bytes, old: bool) -> dict[str, Any] | None:
    """`old`: lines have no CRC."""
    found = _CRC.fullmatch(content)
    if (found is None or zlib.crc32(found[1] + b"}") != int(found[2], 16)) and not old:
        return None
    try:
        value = msgspec.json.decode(content)
    except msgspec.DecodeError:
        return None
    return value if isinstance(value, dict) else None


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
            self._write({"ledger": 2, "per_million": prices})
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
        # what a server says may hold half a surrogate pair
        self._write({"refused": number, "why": reason.encode(errors="replace").decode()})

    def sync(self) -> None:
        """Wait until the disk has every line. May run in another thread than the others. Raises OSError."""
        if self._file is not None:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        if self._file is not None:
            self._file.close()

    def _write(self, line: Mapping[str, Any]) -> None:
        assert self._file is not None
        self._file.write(_with_crc(line))

    def __enter__(self) -> "LedgerWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
