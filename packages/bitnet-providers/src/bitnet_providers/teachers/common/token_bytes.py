"""Which bytes each token stands for, where the provider says so, and where it can be proved."""

import contextlib
from collections import Counter
from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from bitnet_providers.teachers.common.tokens import Candidate, Token

REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no whole character: the bytes can't be told from the text."""


class Placed(NamedTuple):
    """A token of which the bytes are known."""

    raw: bytes
    logprob: float | None
    token: Token


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


class _Read(dict[bytes, bytes | None]):
    """JSON lists without their first bracket to the bytes they stand for: the same tokens come again and again."""

    def __missing__(self, rest: bytes) -> bytes | None:
        """Raises msgspec.DecodeError for what is no list's rest."""
        if len(self) >= _MOST_READ:
            self.clear()
        found = self[rest] = _as_bytes(msgspec.json.decode(b"[" + rest))
        return found


_MOST_READ = 1 << 18
_READ = _Read()


def given_bytes(candidate: Candidate) -> bytes | None:
    """The provider's own; None where it has none, or no list of numbers from 0 to 255."""
    given = candidate.bytes
    if not isinstance(given, msgspec.Raw):
        return _as_bytes(given)
    text = bytes(given)
    return _READ[text[1:]] if text.startswith(b"[") else None


def all_given_bytes(candidates: Sequence[Candidate]) -> list[bytes | None]:
    """`given_bytes` of each of thousands: joined and split again, as a look at each costs more than its decoding.

    A JSON list says itself where it ends: where as many lists follow each other as there are candidates, each has one.
    """
    with contextlib.suppress(TypeError, msgspec.DecodeError):  # made by hand; other things between the lists
        nothing, *rests = b"".join([each.bytes for each in candidates]).split(b"[")  # type: ignore[misc] # TypeError
        if not rests:
            return [None] * len(candidates)
        if not nothing and len(rests) == len(candidates):
            return list(map(_READ.__getitem__, rests))
    return [None if each.bytes is None else given_bytes(each) for each in candidates]


class _Spelt(dict[str, bytes | None]):
    """Texts to their bytes; None: a replacement character in it hides them."""

    def __missing__(self, text: str) -> bytes | None:
        if len(self) >= _MOST_READ:
            self.clear()
        found = self[text] = None if REPLACEMENT in text else encoded(text)
        return found


_SPELT = _Spelt()


def spelt_bytes(candidate: Candidate) -> bytes | None:
    """Those of its text; None where that has a replacement character."""
    return _SPELT[candidate.token]


def _as_bytes(given: object) -> bytes | None:
    try:
        return bytes(given) if isinstance(given, list) else None
    except (TypeError, ValueError):
        return None


def known_bytes(candidate: Candidate) -> bytes | None:
    """The provider's own, else those of a text without replacement characters."""
    raw = given_bytes(candidate)
    return spelt_bytes(candidate) if raw is None else raw


def rebuilt(tokens: Sequence[Token], text: bytes, repairs: Counter[str]) -> list[Placed] | None:
    """The tokens with bytes that spell `text`, or None where that can't be proved.

    A token is known by its bytes, or by a text without replacement characters. Unknown ones between two known ones (or
    the text's end) take the bytes that lie between those; the place of the next known run must be the only one possible
    up to it, so its bytes may not occur earlier in what is left (for the last run: it must end the text). Several
    unknown tokens in one such gap become one: its log-probability is their sum, its candidates are those of the first.
    """
    result: list[Placed] = []
    place, index = 0, 0
    while index < len(tokens):
        token = tokens[index]
        known = known_bytes(token)
        if known is not None:
            if not text.startswith(known, place):
                return None
            repairs["bytes_rebuilt"] += given_bytes(token) is None
            result.append(Placed(known, token.logprob, token))
            place += len(known)
            index += 1
            continue
        stop = next((i for i in range(index, len(tokens)) if known_bytes(tokens[i]) is not None), len(tokens))
        following = b""
        for token in tokens[stop:]:
            known = known_bytes(token)
            if known is None:
                break
            following += known
        end = len(text) if stop == len(tokens) else _only_place(text, following, place, tokens[stop:])
        if end is None or end <= place:
            return None
        gap = tokens[index:stop]
        repairs["bytes_rebuilt"] += 1
        repairs["tokens_joined"] += len(gap) - 1
        logprobs = [token.logprob for token in gap if token.logprob is not None]
        result.append(Placed(text[place:end], sum(logprobs) if len(logprobs) == len(gap) else None, gap[0]))
        place, index = end, stop
    return result if place == len(text) else None


def _only_place(text: bytes, following: bytes, place: int, rest: Sequence[Token]) -> int | None:
    """Where the known run `following` begins, if only one place fits."""
    if all(known_bytes(token) is not None for token in rest):
        return len(text) - len(following) if following and text.endswith(following) else None
    first = text.find(following, place + 1) if following else -1
    return first if first >= 0 and text.find(following, first + 1) < 0 else None


def last_tokens(tokens: Sequence[Token], answer: bytes) -> Sequence[Token] | None:
    """The last of `tokens`, from where they begin to spell `answer` (and what ends the turn behind it).

    None where no token begins there, or where bytes are not known.
    """
    raws = [known_bytes(token) for token in tokens]
    if not answer or any(raw is None for raw in raws):
        return None
    spoken = b"".join(raw or b"" for raw in raws)
    start, place = spoken.rfind(answer), 0
    for index, raw in enumerate(raws):
        if place == start and raw:
            return tokens[index:]
        place += len(raw or b"")
    return None
