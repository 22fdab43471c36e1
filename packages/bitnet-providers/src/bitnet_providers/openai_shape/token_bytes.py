"""Which bytes each token stands for, where the provider says so, and where it can be proved."""

import contextlib
from collections import Counter
from collections.abc import Sequence

import attrs
import msgspec

from bitnet_providers.openai_shape.wire import Candidate, Token

REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no whole character: the bytes can't be told from the text."""


@attrs.frozen
class Placed:
    """A token of which the bytes are known."""

    raw: bytes
    logprob: float | None
    token: Token


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


_READ: dict[bytes, bytes | None] = {b"null": None}
"""JSON lists of numbers that were read before: the same tokens come again and again."""
_MOST_READ = 1 << 18


def given_bytes(candidate: Candidate) -> bytes | None:
    """The provider's own; None where it has none, or no list of numbers from 0 to 255."""
    given = candidate.bytes
    if not isinstance(given, msgspec.Raw):
        return _as_bytes(given)
    text = bytes(given)
    try:
        return _READ[text]
    except KeyError:
        if len(_READ) >= _MOST_READ:
            _READ.clear()
            _READ[b"null"] = None
        found = _READ[text] = _as_bytes(msgspec.json.decode(text))
        return found


def _as_bytes(given: object) -> bytes | None:
    try:
        return bytes(given) if isinstance(given, list) else None
    except (TypeError, ValueError):
        return None


def cached_bytes(top: Sequence[Candidate]) -> list[bytes | None]:
    """`given_bytes` of each; quick where all are off the wire and have been read before."""
    if isinstance(top[0].bytes, msgspec.Raw):
        with contextlib.suppress(KeyError):
            return [_READ[bytes(candidate.bytes)] for candidate in top]  # type: ignore[arg-type] # all are Raw
    return [given_bytes(candidate) for candidate in top]


def known_bytes(candidate: Candidate) -> bytes | None:
    """The provider's own, else those of a text without replacement characters."""
    raw = given_bytes(candidate)
    if raw is not None:
        return raw
    return None if REPLACEMENT in candidate.token else encoded(candidate.token)


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
