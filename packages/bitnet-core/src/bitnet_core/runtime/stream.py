"""From the tokens that a model draws to an answer: whole characters, its end, stop strings, log-probabilities."""

from array import array
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

import torch
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import (
    Candidate,
    Ending,
    Piece,
    Prompt,
    PromptError,
    Sampling,
    ScoringRuntime,
    Token,
    checked_size,
)
from bitnet_core.runtime.prompt import checked_prompt
from bitnet_core.runtime.sampling import Drawn, drawer, observed


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


Tokens = Callable[[list[int], int, Callable[[Tensor], Drawn]], Iterable[Drawn]]
"""Of ids, a count and `read`: at most so many tokens, each drawn by `read` from the logits [V] after all before it."""


def stream_answer(
    runtime: ScoringRuntime, tokens: Tokens, prompt: Prompt, sampling: Sampling, device: torch.device
) -> Generator[Piece, None, Ending]:
    """`Runtime.pieces`. `device` is where the logits are.

    Each token gives a piece, an empty one where nothing can be told yet: whoever reads can leave after any of them.
    """
    ids = checked_prompt(runtime.encode(checked_size(prompt, runtime.context)), runtime.context)
    raw = () if sampling.top_logprobs is None else _bytes_of_tokens(runtime)
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
        text, piece = runtime.decode(new), Piece("")
        # The bytes of a character may come in several tokens: half of one decodes to U+FFFD.
        if len(text) > len(said) and not text.endswith("\ufffd"):
            piece = stops.add(Piece(text[len(said) :], waiting))
            said, waiting = text, ()
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


def _bytes_of_tokens(runtime: ScoringRuntime) -> Sequence[bytes]:
    try:
        return runtime.raw
    except CoreError as error:
        raise PromptError(error.why, error.fix) from error


def _token(drawn: Drawn, raw: Sequence[bytes]) -> Token:
    pairs = zip(drawn.top_ids, drawn.top_logprobs, strict=True)
    return Token(
        drawn.id, raw[drawn.id], drawn.logprob, tuple(Candidate(id_, raw[id_], logprob) for id_, logprob in pairs)
    )
