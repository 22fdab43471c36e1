"""From the tokens that a model draws to an answer: whole characters, its end, stop strings, log-probabilities."""

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
from bitnet_core.runtime.encode_prompt import checked_prompt
from bitnet_core.runtime.sampling import Drawn, drawer, observed
from bitnet_core.runtime.stop_strings import StopStrings

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
