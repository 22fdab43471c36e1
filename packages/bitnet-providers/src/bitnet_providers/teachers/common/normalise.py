"""The one normaliser: OpenAI-shaped log-probabilities in, a completion's columns out. Live answers and dumps use it.

T tokens of a response, C candidates over all of them. What was mended is counted by name; see `REPAIRS`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import TypeVar, cast

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.teachers.common.token_bytes import (
    REPLACEMENT,
    Placed,
    all_given_bytes,
    encoded,
    given_bytes,
    known_bytes,
    rebuilt,
    spelt_bytes,
)
from bitnet_providers.teachers.common.tokens import Candidate, Token
from bitnet_providers.teachers.openai_compatible.wire import Logprobs

Value = TypeVar("Value")

SENTINEL = -9000.0
"""-9999 is documented as 'unknown'; nothing real is below this."""
ROUNDING = 1e-3
"""A log-probability may be above 0 by so much: p = 1, rounded."""

REPAIRS = (
    "sentinels",  # candidates without a log-probability (-9999, null, NaN, above 0): left out
    "logprobs_missing",  # tokens whose own log-probability is unknown
    "short",  # positions with fewer candidates than were asked for
    "duplicates",  # candidates that stand twice with one log-probability: once is kept
    "same_bytes",  # other candidates of a position that share their bytes: kept, their masses add up
    "unsorted",  # positions whose candidates did not descend
    "sampled_outside",  # positions whose token is not among its candidates
    "bytes_rebuilt",  # tokens whose bytes were proved from the response's text
    "tokens_joined",  # tokens that became one with those before, inside a cut character
    "joined_by_server",  # entries for several tokens with the last one's numbers (llama.cpp): these are left out
    "bytes_unknown",  # candidates whose bytes can't be known: left out
    "tokens_unproved",  # tokens of responses that they don't spell: the text is kept, without them
    "texts_differing",  # responses whose tokens spell another text than the message's: theirs is kept
)
"""What is counted, each a number of candidates, tokens, positions or responses; docs/teachers.md says the same."""


@attrs.frozen(eq=False)
class Columns:
    """As in `bitnet_providers.contract.Completion`."""

    text: bytes
    token_bytes: tuple[bytes, ...]
    token_logprobs: NDArray[np.float32]
    """[T]"""
    candidate_counts: NDArray[np.int32]
    """[T]"""
    candidate_logprobs: NDArray[np.float32]
    """[C]"""
    candidate_bytes: tuple[bytes, ...]


def token_list(block: Logprobs | list[object] | None, name: str = "content") -> list[Token]:
    """The tokens of ``choices[].logprobs``, whichever way they are written; empty where there are none."""
    if not isinstance(block, Logprobs):
        return []
    tokens: list[Token] | None = getattr(block, name)
    if tokens or not block.tokens:
        return tokens or []
    logprobs = block.token_logprobs or []
    tops = block.top_logprobs if isinstance(block.top_logprobs, list) else []
    return [
        Token(
            text,
            logprobs[index] if index < len(logprobs) else None,
            escaped_bytes(text),
            top_logprobs=candidates_of(tops[index] if index < len(tops) else None),
        )
        for index, text in enumerate(block.tokens)
    ]


def candidates_of(top: dict[str, float | None] | None) -> list[Candidate]:
    """Legacy candidates, best first."""
    found = [Candidate(text, logprob, escaped_bytes(text)) for text, logprob in (top or {}).items()]
    return sorted(found, key=lambda each: -np.inf if each.logprob is None else each.logprob, reverse=True)


def escaped_bytes(text: str) -> list[int] | None:
    r"""Legacy completions write a token that is no text as ``bytes:\xe7\x8c``."""
    if not text.startswith("bytes:\\x"):
        return None
    try:
        return list(bytes.fromhex(text.removeprefix("bytes:").replace("\\x", "")))
    except ValueError:
        return None


def columns(
    content: str, tokens: Sequence[Token], top_k: int, repairs: Counter[str], tokens_said: float | None = None
) -> Columns:
    """A response's columns; adds to `repairs`. `tokens_said`: how many tokens the provider counted, if it said so.

    A token's bytes are the provider's. Where it has none they are rebuilt from the texts only if that is proved: the
    texts of the tokens, one after the other, must give the response, with every replacement character standing for
    bytes that the tokens around it enclose. A candidate without bytes is rebuilt where its text has no replacement
    character and the response is proved to be the tokens' texts; else it is left out, so that its mass falls to other.
    A response whose bytes can't be proved, or that came without tokens, is one token of unknown log-probability.
    """
    text = encoded(content)
    proved = False
    placed: list[Placed] | None
    given = all_given_bytes(tokens)
    if None not in given:
        placed = [
            Placed(raw, token.logprob, token) for raw, token in zip(given, tokens, strict=True) if raw is not None
        ]
        spoken = b"".join(each.raw for each in placed)
        if tokens and spoken != text:
            # The token that ends the turn stands behind the message's text.
            repairs["texts_differing"] += b"".join(each.raw for each in placed[:-1]) != text
            text = spoken
    else:
        placed = _proved(tokens, text, repairs)
        proved = placed is not None
        if placed is None:
            repairs["tokens_unproved"] += len(tokens)
        else:
            text = b"".join(each.raw for each in placed)
    if not placed:
        return untold(text)
    if placed[0].token.id is not None:
        placed = _without_last_ones(placed, tokens_said, repairs)
    return _columns(text, placed, proved, top_k, repairs)


def _proved(tokens: Sequence[Token], text: bytes, repairs: Counter[str]) -> list[Placed] | None:
    """`rebuilt`, where the last token may stand behind the text: what ends a turn is no part of the message."""
    for count in (len(tokens), len(tokens) - 1):
        mended = Counter[str]()
        placed = rebuilt(tokens[:count], text, mended)
        last = known_bytes(tokens[-1])
        if placed is None or (count < len(tokens) and last is None):
            continue
        if count < len(tokens):
            mended["bytes_rebuilt"] += given_bytes(tokens[-1]) is None
            placed.append(Placed(last or b"", tokens[-1].logprob, tokens[-1]))
        repairs.update(mended)
        return placed
    return None


def untold(text: bytes) -> Columns:
    """A response of which only the text is known: one token, or none where there is no text."""
    count = 1 if text else 0
    return Columns(
        text=text,
        token_bytes=(text,) * count,
        token_logprobs=np.full(count, np.nan, np.float32),
        candidate_counts=np.zeros(count, np.int32),
        candidate_logprobs=np.empty(0, np.float32),
        candidate_bytes=(),
    )


def _without_last_ones(placed: Sequence[Placed], tokens_said: float | None, repairs: Counter[str]) -> list[Placed]:
    """Entries that stand for several tokens lose their numbers, which are those of the last of them.

    llama.cpp writes one entry where tokens cut a character: the whole character's bytes, the last token's id,
    log-probability and candidates. Its own id among the candidates shows the bytes of the token itself; where it is not
    among them, and fewer entries came than tokens were counted, a character outside of ASCII may be such a one.
    """
    fewer = tokens_said is not None and len(placed) < tokens_said
    kept = []
    for each in placed:
        token = each.token
        own = next((candidate for candidate in token.top_logprobs or () if candidate.id == token.id), None)
        joined = fewer and not each.raw.isascii() if own is None else given_bytes(own) not in (None, each.raw)
        if joined:
            repairs["joined_by_server"] += 1
            each = Placed(each.raw, None, Token(token.token, bytes=token.bytes, id=token.id))
        kept.append(each)
    return kept


def _columns(text: bytes, placed: Sequence[Placed], proved: bool, top_k: int, repairs: Counter[str]) -> Columns:
    tops = [each.token.top_logprobs or [] for each in placed]
    flat = list(chain.from_iterable(tops))
    counts = [len(top) for top in tops]
    given = all_given_bytes(flat)
    if None in given:
        if proved or _is_plain(placed):
            given = [spelt_bytes(each) if raw is None else raw for each, raw in zip(flat, given, strict=True)]
        flat, given, counts = _known(flat, given, counts, repairs)
    raws = cast(list[bytes], given)
    if _has_doubles(raws, counts):
        flat, raws, counts = _without_doubles(flat, raws, counts, repairs)
    logprobs = [candidate.logprob for candidate in flat]
    counts_T = np.array(counts, np.int32)
    logprobs_C = np.array(logprobs, np.float32)
    real_C = (logprobs_C > SENTINEL) & (logprobs_C <= ROUNDING)
    if not real_C.all():
        repairs["sentinels"] += int((~real_C).sum())
        position_C = np.repeat(np.arange(len(counts_T)), counts_T)
        counts_T = np.bincount(position_C[real_C], minlength=len(counts_T)).astype(np.int32)
        raws = [raw for raw, real in zip(raws, real_C, strict=True) if real]
        logprobs_C = logprobs_C[real_C]
    logprobs_C, raws = _descending(logprobs_C, raws, counts_T, repairs)
    repairs["sampled_outside"] += _outside(placed, raws, counts_T)
    if top_k:
        repairs["short"] += int((counts_T < top_k).sum())
    own_T = np.array([each.logprob for each in placed], np.float32)
    known_T = (own_T > SENTINEL) & (own_T <= ROUNDING)
    repairs["logprobs_missing"] += int((~known_T).sum())
    return Columns(
        text=text,
        token_bytes=tuple(each.raw for each in placed),
        token_logprobs=np.where(known_T, own_T, np.float32(np.nan)),
        candidate_counts=counts_T,
        candidate_logprobs=logprobs_C,
        candidate_bytes=tuple(raws),
    )


def _is_plain(placed: Sequence[Placed]) -> bool:
    """Whether the texts of tokens, where they are whole, are their bytes: then it is so with candidates, too."""
    return all(encoded(each.token.token) == each.raw for each in placed if REPLACEMENT not in each.token.token)


def _known(
    flat: Sequence[Candidate], given: Sequence[bytes | None], counts: Sequence[int], repairs: Counter[str]
) -> tuple[list[Candidate], list[bytes | None], list[int]]:
    """Without the candidates whose bytes are not known."""
    known = [raw is not None for raw in given]
    repairs["bytes_unknown"] += known.count(False)
    return list(compress(flat, known)), list(compress(given, known)), [sum(part) for part in _parts(known, counts)]


def _has_doubles(raws: Sequence[bytes], counts: Sequence[int]) -> bool:
    """Whether two candidates of one position share their bytes."""
    return any(len(set(part)) < len(part) for part in _parts(raws, counts))


def _without_doubles(
    flat: Sequence[Candidate], raws: Sequence[bytes], counts: Sequence[int], repairs: Counter[str]
) -> tuple[list[Candidate], list[bytes], list[int]]:
    """Without candidates that a server wrote down twice. Two tokens that are spelt alike differ in their numbers."""
    kept: list[bool] = []
    for candidates, part in zip(_parts(flat, counts), _parts(raws, counts), strict=True):
        seen: set[tuple[bytes, float | None, int | None]] = set()
        texts: set[bytes] = set()
        for candidate, raw in zip(candidates, part, strict=True):
            mark = (raw, candidate.logprob, candidate.id)
            kept.append(mark not in seen)
            if mark in seen:
                repairs["duplicates"] += 1
                continue
            # Special tokens often have no bytes at all: several of those say nothing.
            repairs["same_bytes"] += bool(raw) and raw in texts
            seen.add(mark)
            texts.add(raw)
    return list(compress(flat, kept)), list(compress(raws, kept)), [sum(part) for part in _parts(kept, counts)]


def _parts(values: Sequence[Value], counts: Sequence[int]) -> Iterator[Sequence[Value]]:
    """[C] cut into each position's."""
    end = 0
    for count in counts:
        end += count
        yield values[end - count : end]


def _descending(
    logprobs_C: NDArray[np.float32], raws: list[bytes], counts_T: NDArray[np.int32], repairs: Counter[str]
) -> tuple[NDArray[np.float32], list[bytes]]:
    rising = logprobs_C[1:] > logprobs_C[:-1]
    ends = np.cumsum(counts_T)
    rising[ends[(ends > 0) & (ends < len(logprobs_C))] - 1] = False  # from one position to the next
    if not rising.any():
        return logprobs_C, raws
    position_C = np.repeat(np.arange(len(counts_T)), counts_T)
    repairs["unsorted"] += len(np.unique(position_C[1:][rising]))
    order = np.lexsort((-logprobs_C, position_C))
    return logprobs_C[order], [raws[index] for index in order]


def _outside(placed: Sequence[Placed], raws: Sequence[bytes], counts_T: NDArray[np.int32]) -> int:
    """Positions with candidates that lack the token that stands there."""
    outside = first = 0
    for each, count in zip(placed, counts_T.tolist(), strict=True):
        outside += count > 0 and each.raw not in raws[first : first + count]
        first += count
    return outside
