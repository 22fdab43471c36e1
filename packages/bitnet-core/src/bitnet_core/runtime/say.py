"""From the tokens that a model draws to an answer: whole characters, its end, stop strings, log-probabilities."""

from collections.abc import Callable, Generator, Iterable, Sequence
from typing import Literal

from bitnet_core.runtime.contract import Candidate, Ending, Piece, Sampling, Token
from bitnet_core.runtime.draw import Drawn
from bitnet_core.runtime.stop_strings import StopStrings


def say(
    drawn: Iterable[Drawn],
    *,
    decode: Callable[[Sequence[int]], str],
    raw: Sequence[bytes],
    end: frozenset[int],
    sampling: Sampling,
    prompt_tokens: int,
) -> Generator[Piece, None, Ending]:
    """Pieces of whole characters. `decode` gives the text of ids without special tokens, `raw` the bytes of each id
    (needed only where `sampling.top_logprobs` asks for tokens); `end` are the ids that end an answer.
    """
    new: list[int] = []
    said = ""
    reason: Literal["stop", "length"] = "length"
    stops = StopStrings(sampling.stop)
    waiting: tuple[Token, ...] = ()
    for each in drawn:
        new.append(each.id)
        if sampling.top_logprobs is not None:
            waiting += (_token(each, raw),)
        if each.id in end:
            reason = "stop"
            break
        text = decode(new)
        # The bytes of a character may come in several tokens: half of one decodes to U+FFFD.
        if len(text) > len(said) and not text.endswith("\ufffd"):
            piece = stops.add(Piece(text[len(said) :], waiting))
            said, waiting = text, ()
            if piece.text or piece.tokens:
                yield piece
            if stops.found:
                return Ending("stop", prompt_tokens, len(new))
    piece = stops.add(Piece(decode(new)[len(said) :], waiting))
    if stops.found:
        reason = "stop"
    else:
        last = stops.rest()
        piece = Piece(piece.text + last.text, piece.tokens + last.tokens)
    if piece.text or piece.tokens:
        yield piece
    return Ending(reason, prompt_tokens, len(new))


def _token(drawn: Drawn, raw: Sequence[bytes]) -> Token:
    pairs = zip(drawn.top_ids, drawn.top_logprobs, strict=True)
    return Token(
        drawn.id, raw[drawn.id], drawn.logprob, tuple(Candidate(id_, raw[id_], logprob) for id_, logprob in pairs)
    )
