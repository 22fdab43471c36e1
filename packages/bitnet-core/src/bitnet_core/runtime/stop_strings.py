"""Texts that end an answer, found in pieces of it."""

from collections.abc import Sequence

import attrs

from bitnet_core.runtime.contract import Piece, Token


@attrs.define
class StopStrings:
    """Keeps back what may be the beginning of a stop string, text and tokens."""

    stop: Sequence[str]
    found: bool = False
    """A stop string came: the piece that `add` gave with it is the last."""
    _kept: list[Piece] = attrs.field(factory=list)

    def add(self, piece: Piece) -> Piece:
        """What can be told of the answer by now; nothing where all of it may belong to a stop string."""
        if not self.stop:
            return piece
        self._kept.append(piece)
        text = "".join(each.text for each in self._kept)
        starts = [start for each in self.stop if (start := text.find(each)) >= 0]
        if starts:
            self.found = True
            self._kept = _cut(self._kept, min(starts))
            return self.rest()
        return Piece("") if any(_ends_inside(text, each) for each in self.stop) else self.rest()

    def rest(self) -> Piece:
        """What was kept back."""
        kept, self._kept = self._kept, []
        return Piece("".join(each.text for each in kept), tuple(token for each in kept for token in each.tokens))


def _ends_inside(text: str, stop: str) -> bool:
    return any(text.endswith(stop[:length]) for length in range(1, len(stop)))


def _cut(pieces: Sequence[Piece], length: int) -> list[Piece]:
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
