"""Texts that end an answer, found in pieces that come one by one. Loads no torch."""

from array import array
from collections import deque
from collections.abc import Iterable, Sequence

from bitnet_core.runtime.contract import Piece, Token


class _Search:
    """One stop string in a text that comes piece by piece, in time linear in both (Knuth, Morris and Pratt 1977)."""

    def __init__(self, wanted: str) -> None:
        self.wanted = wanted
        self.matched = 0
        """Characters of `wanted` that the text read so far ends with."""
        self._shorter = array("l", [0])
        """Of each beginning of `wanted`: how long the longest shorter one is that it ends with."""
        length = 0
        for character in wanted[1:]:
            length = self._longer(length, character)
            self._shorter.append(length)

    def read(self, text: str) -> int | None:
        """Where the first whole match ends, in characters of `text`; None: there is none yet."""
        for place, character in enumerate(text, 1):
            self.matched = self._longer(self.matched, character)
            if self.matched == len(self.wanted):
                return place
        return None

    def _longer(self, length: int, character: str) -> int:
        while length and self.wanted[length] != character:
            length = self._shorter[length - 1]
        return length + (self.wanted[length] == character)


class StopStrings:
    """Keeps back what may be the beginning of a stop string, text and tokens. Linear time, whatever is looked for."""

    def __init__(self, stop: Sequence[str]) -> None:
        self.found = False
        """A stop string came: the piece that `add` gave with it is the last."""
        self._searches = [_Search(each) for each in stop]
        self._kept: deque[Piece] = deque()
        self._length = 0
        """Characters of what is kept."""

    def add(self, piece: Piece) -> Piece:
        """What can be told of the answer by now; nothing where all of it may belong to a stop string."""
        if not self._searches:
            return piece
        before = self._length
        self._kept.append(piece)
        self._length += len(piece.text)
        ends = [(search.read(piece.text), len(search.wanted)) for search in self._searches]
        starts = [before + end - length for end, length in ends if end is not None]
        if starts:
            self.found = True
            self._kept = deque(_cut(self._kept, min(starts)))
            return self.rest()
        unsure = max(search.matched for search in self._searches)
        told = []
        while self._kept and self._length - len(self._kept[0].text) >= unsure:
            told.append(self._kept.popleft())
            self._length -= len(told[-1].text)
        return _joined(told)

    def rest(self) -> Piece:
        """What was kept back."""
        kept, self._kept, self._length = self._kept, deque(), 0
        return _joined(kept)


def _joined(pieces: Iterable[Piece]) -> Piece:
    pieces = list(pieces)
    return Piece("".join(each.text for each in pieces), tuple(token for each in pieces for token in each.tokens))


def _cut(pieces: Iterable[Piece], length: int) -> list[Piece]:
    """The first `length` characters. A token that spans the end stays: its beginning is part of the answer."""
    kept = []
    for piece in pieces:
        if length <= 0:
            break
        text = piece.text[:length]
        kept.append(piece if text == piece.text else Piece(text, _before(piece.tokens, len(text.encode()))))
        length -= len(piece.text)
    return kept


def _before(tokens: Sequence[Token], end: int) -> tuple[Token, ...]:
    """The tokens that begin before byte `end`."""
    kept, place = [], 0
    for token in tokens:
        if place >= end:
            break
        kept.append(token)
        place += len(token.raw)
    return tuple(kept)
