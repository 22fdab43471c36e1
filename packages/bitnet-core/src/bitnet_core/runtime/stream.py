"""From the tokens that a model draws to an answer: whole characters, its end, stop strings, log-probabilities."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

import attrs
import torch
from torch import Tensor

from bitnet_core.runtime.contract import Candidate, Ending, Piece, Prompt, Sampling, ScoringRuntime, Token
from bitnet_core.runtime.prompt import checked_prompt
from bitnet_core.runtime.sampling import Drawn, drawer, observed


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


Tokens = Callable[[list[int], int, Callable[[Tensor], Drawn]], Iterable[Drawn]]
"""Of ids, a count and `read`: at most so many tokens, each drawn by `read` from the logits [V] after all before it."""


def stream_answer(
    runtime: ScoringRuntime, tokens: Tokens, prompt: Prompt, sampling: Sampling, device: torch.device
) -> Generator[Piece, None, Ending]:
    """`Runtime.pieces`. `device` is where the logits are."""
    ids = checked_prompt(runtime.encode(prompt), runtime.context)
    raw = () if sampling.top_logprobs is None else runtime.raw
    read = observed(drawer(sampling, device), sampling)
    new: list[int] = []
    said = ""
    reason: Literal["stop", "length"] = "length"
    stops = StopStrings(sampling.stop)
    waiting: tuple[Token, ...] = ()
    for each in tokens(ids, min(sampling.max_new_tokens, runtime.context - len(ids)), read):
        new.append(each.id)
        if sampling.top_logprobs is not None:
            waiting += (_token(each, raw),)
        if each.id in runtime.end:
            reason = "stop"
            break
        text = runtime.decode(new)
        # The bytes of a character may come in several tokens: half of one decodes to U+FFFD.
        if len(text) > len(said) and not text.endswith("\ufffd"):
            piece = stops.add(Piece(text[len(said) :], waiting))
            said, waiting = text, ()
            if piece.text or piece.tokens:
                yield piece
            if stops.found:
                return Ending("stop", len(ids), len(new))
    piece = stops.add(Piece(runtime.decode(new)[len(said) :], waiting))
    if stops.found:
        reason = "stop"
    else:
        kept = stops.rest()
        piece = Piece(piece.text + kept.text, piece.tokens + kept.tokens)
    if piece.text or piece.tokens:
        yield piece
    return Ending(reason, len(ids), len(new))


def _token(drawn: Drawn, raw: Sequence[bytes]) -> Token:
    pairs = zip(drawn.top_ids, drawn.top_logprobs, strict=True)
    return Token(
        drawn.id, raw[drawn.id], drawn.logprob, tuple(Candidate(id_, raw[id_], logprob) for id_, logprob in pairs)
    )
