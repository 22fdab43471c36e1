"""OpenAI-shaped log-probabilities in, a completion's columns out. Live answers and dumps use it.

T tokens of a response, C candidates over all of them. What was mended is counted by name; see `REPAIRS`.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import chain, compress
from typing import TypeVar, cast

import attrs
import msgspec
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.teachers.common.token_bytes import (
    END_OF_TURN,
    REPLACEMENT,
    Candidate,
    Placed,
    Spelling,
    Token,
    all_given_bytes,
    all_spelt_bytes,
    encoded,
    given_bytes,
    has_a_list,
    known_bytes,
    spelling,
    whole_characters,
    with_pieces_joined,
)

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
    "bytes_wrong",  # responses whose bytes, as given, don't spell the message, or whose candidates are spelt otherwise
    "bytes_rebuilt",  # tokens whose bytes were proved from the response's text
    "tokens_joined",  # tokens that became one with those before, inside a cut character
    "joined_by_server",  # entries for several tokens with the last one's numbers (llama.cpp): these are left out
    "bytes_unknown",  # candidates whose bytes can't be known: left out
    "tokens_unproved",  # tokens of responses that they don't spell: the text is kept, without them
)
"""What is counted, each a number of candidates, tokens, positions or responses; docs/teachers.md says the same."""


class Logprobs(msgspec.Struct):
    """``choices[].logprobs``: OpenAI's list of tokens, or the columns of legacy completions and Together."""

    content: list[Token] | None = None
    refusal: list[Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | dict[str, float | None] | None = None


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
    content: str,
    tokens: Sequence[Token],
    top_k: int,
    repairs: Counter[str],
    tokens_said: float | None = None,
    *,
    ended: bool = False,
) -> Columns:
    """A response's columns; adds to `repairs`. `tokens_said`: how many tokens the provider counted, if it said so.
    `ended`: the turn came to its end, so that a token behind the content is that end, whatever its name.

    The content is the truth. A token's bytes are the provider's where all of them together spell it. Where they don't,
    or some are missing, they are rebuilt from the texts only if that is proved: the texts of the tokens, one after the
    other, must give the content, with every replacement character standing for bytes that the tokens around it enclose.
    A candidate without bytes is rebuilt where its text has no replacement character and the response is proved to be
    the tokens' texts; else it is left out, so that its mass falls to other. A response whose bytes can't be proved, or
    that came without tokens, is one token of unknown log-probability.
    """
    content = whole_characters(content)
    given = all_given_bytes(tokens)
    spelt = spelling(tokens, given, content, ended) if tokens and None not in given else None
    proved = believed = False
    if tokens and spelt is None:
        texts = all_spelt_bytes(tokens)
        if None in given:
            either = [text if raw is None else raw for raw, text in zip(given, texts, strict=True)]
            spelt = spelling(tokens, either, content, ended)
            believed = spelt is not None
        spelt = spelt or spelling(tokens, texts, content, ended)
        proved = spelt is not None
        wrong = [raw is None and has_a_list(token) for raw, token in zip(given, tokens, strict=True)]
        repairs["bytes_wrong"] += None not in given or (any(wrong) and REPLACEMENT not in content)
    else:
        believed = True
    if spelt is None or not spelt.placed:
        repairs["tokens_unproved"] += 0 if spelt else len(tokens)
        return untold(encoded(content))
    if proved:
        shown = spelt.placed if spelt.end is None else spelt.placed[:-1]
        repairs["bytes_rebuilt"] += sum(given_bytes(each.token) != each.raw for each in shown)
        repairs["bytes_rebuilt"] += spelt.end is not None and given_bytes(spelt.end) is None
    placed = with_pieces_joined(spelt.placed)
    repairs["tokens_joined"] += spelt.joined + len(spelt.placed) - len(placed)
    if placed[0].token.id is not None:
        placed = _without_last_ones(placed, spelt.end, tokens_said, repairs)
    return _columns(spelt, placed, proved, believed, top_k, repairs)


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


def _without_last_ones(
    placed: Sequence[Placed], end: Token | None, tokens_said: float | None, repairs: Counter[str]
) -> list[Placed]:
    """Entries that stand for several tokens lose their numbers, which are those of the last of them.

    llama.cpp writes one entry where tokens cut a character: the whole character's bytes, the last token's id,
    log-probability and candidates. Its own id among the candidates shows the bytes of the token itself; where it is not
    among them, and fewer entries came than tokens were counted, a character outside of ASCII may be such a one.
    """
    fewer = tokens_said is not None and len(placed) < tokens_said
    kept = []
    for each in placed:
        token = each.token
        if token is end:
            kept.append(each)
            continue
        own = next((candidate for candidate in token.top_logprobs or () if candidate.id == token.id), None)
        joined = fewer and not each.raw.isascii() if own is None else given_bytes(own) not in (None, each.raw)
        if joined:
            repairs["joined_by_server"] += 1
            each = Placed(each.raw, None, Token(token.token, bytes=token.bytes, id=token.id))
        kept.append(each)
    return kept


def _columns(
    spelt: Spelling, placed: Sequence[Placed], proved: bool, believed: bool, top_k: int, repairs: Counter[str]
) -> Columns:
    tops = [each.token.top_logprobs or [] for each in placed]
    flat = list(chain.from_iterable(tops))
    counts = [len(top) for top in tops]
    given = all_given_bytes(flat) if believed else [None] * len(flat)
    shown = all_spelt_bytes(flat)
    if shown != given:
        plain = proved or _is_plain(placed, spelt.end)
        given = [_bytes_of(raw, text, plain) for raw, text in zip(given, shown, strict=True)]
    if spelt.end is not None:
        given = _with_end(spelt.end, flat, given, counts)
    if None in given:
        flat, given, counts = _known(flat, given, counts, repairs)
    raws = cast(list[bytes], given)
    if _has_doubles(raws, counts):
        flat, raws, counts = _without_doubles(flat, raws, counts, repairs)
    logprobs = [candidate.logprob for candidate in flat]
    counts_T = np.array(counts, np.int32)
    with np.errstate(over="ignore"):  # to infinity, which is left out as no log-probability
        logprobs_C = np.array(logprobs, np.float32)
        own_T = np.array([each.logprob for each in placed], np.float32)
    real_C = (logprobs_C > SENTINEL) & (logprobs_C <= ROUNDING)
    if not real_C.all():
        repairs["sentinels"] += int((~real_C).sum())
        position_C = np.repeat(np.arange(len(counts_T)), counts_T)
        counts_T = np.bincount(position_C[real_C], minlength=len(counts_T)).astype(np.int32)
        raws = [raw for raw, real in zip(raws, real_C, strict=True) if real]
        logprobs_C = logprobs_C[real_C]
    logprobs_C, raws = _descending(logprobs_C, raws, counts_T, repairs)
    outside = _outside(placed, raws, counts_T)
    repairs["sampled_outside"] += len(outside)
    if _in_another_spelling(outside, placed, spelt.end, logprobs_C, counts_T):
        repairs["bytes_unknown"] += len(raws)
        repairs["bytes_wrong"] = 1
        counts_T, logprobs_C, raws = np.zeros_like(counts_T), logprobs_C[:0], []
    if top_k:
        repairs["short"] += int((counts_T < top_k).sum())
    known_T = (own_T > SENTINEL) & (own_T <= ROUNDING)
    repairs["logprobs_missing"] += int((~known_T).sum())
    return Columns(
        text=spelt.text,
        token_bytes=tuple(each.raw for each in placed),
        token_logprobs=np.where(known_T, own_T, np.float32(np.nan)),
        candidate_counts=counts_T,
        candidate_logprobs=logprobs_C,
        candidate_bytes=tuple(raws),
    )


def _bytes_of(raw: bytes | None, text: bytes | None, plain: bool) -> bytes | None:
    """A candidate's bytes out of the provider's `raw` and its `text`; None: not known.

    Where the response shows that texts are `plain`, one outside of ASCII with other bytes contradicts itself (code
    points in the place of UTF-8).
    """
    if raw is None:
        return text if plain else None
    return None if plain and text is not None and raw != text and not text.isascii() else raw


def _is_plain(placed: Sequence[Placed], end: Token | None) -> bool:
    """Whether the texts of tokens, where they are whole, are their bytes: then it is so with candidates, too."""
    return all(
        encoded(each.token.token) == each.raw
        for each in placed
        if REPLACEMENT not in each.token.token and each.token is not end
    )


def _with_end(
    end: Token, flat: Sequence[Candidate], raws: Sequence[bytes | None], counts: Sequence[int]
) -> list[bytes | None]:
    """The candidates that are the token that ended the turn, called as it is called: by id, bytes, or log-probability.

    Several special tokens may have no bytes: of those only the one with the log-probability of the turn's end is it.
    """
    own, last = known_bytes(end), len(flat) - (counts[-1] if counts else 0)
    return [
        END_OF_TURN
        if (each.id == end.id if end.id is not None and each.id is not None else raw == own)
        and (raw or each.id is not None or (index >= last and each.logprob == end.logprob))
        else raw
        for index, (each, raw) in enumerate(zip(flat, raws, strict=True))
    ]


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


def _outside(placed: Sequence[Placed], raws: Sequence[bytes], counts_T: NDArray[np.int32]) -> list[int]:
    """Positions with candidates that lack the token that stands there."""
    outside, first = [], 0
    for position, (each, count) in enumerate(zip(placed, counts_T.tolist(), strict=True)):
        if count > 0 and each.raw not in raws[first : first + count]:
            outside.append(position)
        first += count
    return outside


def _in_another_spelling(
    outside: Sequence[int],
    placed: Sequence[Placed],
    end: Token | None,
    logprobs_C: NDArray[np.float32],
    counts_T: NDArray[np.int32],
) -> bool:
    """Whether the candidates are spelt otherwise than the tokens (GPT-2's byte alphabet, ``token_id:7``).

    Then the token that stands there is among them all the same: with its very log-probability, above the last one's.
    Beside the last one it may be a tie, so there half of the positions have to say it.
    """
    if not outside:
        return False
    ends_T = np.cumsum(counts_T)
    ties = 0
    for position in outside:
        each = placed[position]
        top = logprobs_C[ends_T[position] - counts_T[position] : ends_T[position]]
        own = None if each.logprob is None else np.float32(each.logprob)
        if not each.raw or each.token is end or own is None or own not in top:
            continue
        if own > top[-1]:
            return True
        ties += 1
    return ties > int((counts_T > 0).sum()) / 2
