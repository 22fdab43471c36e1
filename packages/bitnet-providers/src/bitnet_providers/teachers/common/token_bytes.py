"""Which bytes each token stands for. The message's content judges: bytes count where all of them spell it."""

import codecs
import contextlib
import re
from collections.abc import Iterable, Sequence
from itertools import takewhile
from typing import TYPE_CHECKING, NamedTuple, cast

import msgspec

if TYPE_CHECKING:
    ByteList = msgspec.Raw | list[int] | None
else:
    ByteList = msgspec.Raw


class Candidate(msgspec.Struct, gc=False):
    """One token with its log-probability."""

    token: str = ""
    logprob: float | None = None
    bytes: ByteList = None
    """A JSON list of numbers or null, unread; a plain list or None in records made by hand."""
    id: int | None = None
    """llama.cpp"""


class Token(Candidate, gc=False):
    """A position of ``logprobs.content``."""

    top_logprobs: list[Candidate] | None = None


REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no whole character: the bytes can't be told from the text."""
_REPLACED = REPLACEMENT.encode()
"""A server that writes these bytes has encoded the text of a piece (Ollama): they are not the piece's own."""

END_OF_TURN = b"<|im_end|>"
"""How raw shards write the token that ends a turn, whatever the teacher calls it: every reader knows this name."""


class Placed(NamedTuple):
    """A token of which the bytes are known."""

    raw: bytes
    logprob: float | None
    token: Token


def whole_characters(text: str) -> str:
    """`text` without halves of surrogate pairs: two that belong together are joined, one at the end is a character
    that was cut and goes, another becomes U+FFFD."""
    if text.isascii() or not _SURROGATE.search(text):
        return text
    if "\ud800" <= text[-1] <= "\udbff":
        text = text[:-1]
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")


_SURROGATE = re.compile("[\ud800-\udfff]")


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
    """What the provider gives; None for nothing, for no list of numbers from 0 to 255, and for those of a U+FFFD."""
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
    """The bytes of the token's text; None where that has a replacement character."""
    return _SPELT[candidate.token]


def all_spelt_bytes(candidates: Sequence[Candidate]) -> list[bytes | None]:
    """`spelt_bytes` of each."""
    return list(map(_SPELT.__getitem__, [each.token for each in candidates]))


def _as_bytes(given: object) -> bytes | None:
    try:
        found = bytes(given) if isinstance(given, list) else None
    except (TypeError, ValueError):
        return None
    return None if found is None or _REPLACED in found else found


def has_a_list(candidate: Candidate) -> bool:
    """Whether the provider wrote a list of bytes, be it one that can't be used."""
    given = candidate.bytes
    return bytes(given).startswith(b"[") if isinstance(given, msgspec.Raw) else given is not None


def known_bytes(candidate: Candidate) -> bytes | None:
    """The provider's own, else those of a text without replacement characters."""
    raw = given_bytes(candidate)
    return spelt_bytes(candidate) if raw is None else raw


class Spelling(NamedTuple):
    """Tokens that spell a message's content."""

    placed: list[Placed]
    text: bytes
    """The content, without the space that the first token may begin with; behind it the name of the turn's end."""
    end: Token | None
    """What stands behind the content and ends the turn: the last of `placed`, there called `END_OF_TURN`."""
    joined: int
    """Tokens that became part of one before them."""


def spelling(tokens: Sequence[Token], raws: Sequence[bytes | None], content: str, ended: bool) -> Spelling | None:
    """The tokens with bytes that spell `content`, or None where that can't be proved. `raws`: their bytes (None: not
    known); `ended`: the turn came to its end.

    The first token may have a space before the text, and one token may stand behind it: where the turn `ended` it is
    the turn's end, whatever its name; else, or where it is white space that the server stripped, it is left out.
    """
    text = encoded(content)
    last = len(tokens)
    while last and raws[last - 1] == b"":
        last -= 1
    for count in (len(tokens), last - 1):
        if count < 0:
            continue
        found = _placed(tokens[:count], raws[:count], text, content)
        if found is None:
            continue
        placed, spelt = found
        behind = tokens[-1] if count == len(tokens) and last < count else tokens[count] if count < last else None
        raw = raws[count] if count < last else b""
        if count < last and count and raws[count - 1] is None and not (ended and raw and raw.isascii()):
            continue  # what is not known may reach into that token
        if behind is None or raw is None or not ended or (raw and not raw.strip()):
            return Spelling(placed, spelt, None, count - len(placed))
        own = Placed(END_OF_TURN, behind.logprob, behind)
        before = placed if raw else placed[:-1]
        return Spelling([*before, own], spelt + END_OF_TURN, behind, count - len(placed))
    return None


def _placed(
    tokens: Sequence[Token], raws: Sequence[bytes | None], text: bytes, content: str
) -> tuple[list[Placed], bytes] | None:
    """The tokens with bytes that make the whole text, and that text without a space before it."""
    if None in raws:
        for wanted in (text, b" " + text):
            placed = rebuilt(tokens, raws, wanted)
            if placed is not None:
                return placed, text
        return None
    known = cast(Sequence[bytes], raws)
    spelt = _as_content(b"".join(known), text, content)
    if spelt is None:
        return None
    return [Placed(raw, token.logprob, token) for raw, token in zip(known, tokens, strict=True)], spelt


def _as_content(spoken: bytes, text: bytes, content: str) -> bytes | None:
    """`spoken` where it is the content, without a leading space that the content lacks; else None.

    Bytes tell more than a content with U+FFFD in it, and more than one that ends before a cut character.
    """
    if spoken == text:
        return text
    for whole in (spoken, spoken[1:] if spoken.startswith(b" ") else None):
        if whole is None:
            continue
        if whole == text or (whole.startswith(text) and _is_cut_character(whole[len(text) :])):
            return whole
        if REPLACEMENT in content and _shown(whole.decode("utf-8", "replace")) == _shown(content):
            return whole
    return None


def _is_cut_character(tail: bytes) -> bool:
    try:
        return codecs.getincrementaldecoder("utf-8")().decode(tail) == ""
    except UnicodeDecodeError:
        return False


def _shown(text: str) -> str:
    """Decoders differ in how many U+FFFD they write for one place."""
    return re.sub(f"{REPLACEMENT}+", REPLACEMENT, text)


def rebuilt(tokens: Sequence[Token], raws: Sequence[bytes | None], text: bytes) -> list[Placed] | None:
    """The tokens with bytes that spell `text`, or None where that can't be proved. `raws`: their bytes as far as known.

    Unknown ones between two known ones (or the text's end) take the bytes that lie between those; the place of the next
    known run must be the only one possible up to it, so its bytes may not occur earlier in what is left (for the last
    run: it must end the text). Several unknown tokens in one such gap become one: its log-probability is their sum, its
    candidates are those of the first.
    """
    result: list[Placed] = []
    place, index = 0, 0
    while index < len(tokens):
        known = raws[index]
        if known is not None:
            if not text.startswith(known, place):
                return None
            result.append(Placed(known, tokens[index].logprob, tokens[index]))
            place += len(known)
            index += 1
            continue
        stop = next((i for i in range(index, len(tokens)) if raws[i] is not None), len(tokens))
        following = b"".join(takewhile(lambda raw: raw is not None, raws[stop:]))  # type: ignore[arg-type]
        end = len(text) if stop == len(tokens) else _only_place(text, following, place, raws[stop:])
        if end is None or end <= place:
            return None
        gap = tokens[index:stop]
        if not _can_be("".join(token.token for token in gap), text[place:end]):
            return None
        result.append(Placed(text[place:end], _sum(token.logprob for token in gap), gap[0]))
        place, index = end, stop
    return result if place == len(text) else None


def _can_be(shown: str, raw: bytes) -> bool:
    """Whether a lossy decoder may have shown `raw` so: a U+FFFD hides no character of ASCII."""
    parts = (re.escape(encoded(part)) for part in re.split(f"{REPLACEMENT}+", shown))
    return re.fullmatch(rb"[\x80-\xff]+".join(parts), raw) is not None


def _sum(logprobs: Iterable[float | None]) -> float | None:
    """Of pieces that become one token; None where one of them is not known."""
    known = list(logprobs)
    return None if None in known else sum(cast(list[float], known))


def with_pieces_joined(placed: list[Placed]) -> list[Placed]:
    """One token for each character that was cut into tokens shown as empty, but the last, which shows it whole (vLLM).

    The last piece's numbers are not the character's: its log-probability is the sum of all pieces'.
    """
    if all(each.raw for each in placed):
        return placed
    result: list[Placed] = []
    empty = 0
    for each in placed:
        if empty and each.raw and _bytes_before_ascii(each.raw) > empty:  # each piece has one byte at least
            pieces = [*result[-empty:], each]
            del result[-empty:]
            each = Placed(each.raw, _sum(piece.logprob for piece in pieces), pieces[0].token)
        empty = 0 if each.raw else empty + 1
        result.append(each)
    return result


def _bytes_before_ascii(raw: bytes) -> int:
    """How many bytes of characters outside of ASCII stand together in `raw`, from the first such character on."""
    found = re.search(rb"[\x80-\xff]+", raw)
    return 0 if found is None else len(found[0])


def _only_place(text: bytes, following: bytes, place: int, rest: Sequence[bytes | None]) -> int | None:
    """Where the known run `following` begins, if only one place fits."""
    if None not in rest:
        return len(text) - len(following) if following and text.endswith(following) else None
    first = text.find(following, place + 1) if following else -1
    return first if first >= 0 and text.find(following, first + 1) < 0 else None


def answer_tokens(tokens: Sequence[Token], answer: str, *, with_end: bool = True) -> list[Token] | None:
    """Those of `tokens` that spell `answer`, behind thoughts and other things; `with_end`: and all that stand behind.

    None where no token begins there, or where bytes are not known.
    """
    wanted, shown = encoded(answer), all_spelt_bytes(tokens)
    given = [text if raw is None else raw for raw, text in zip(all_given_bytes(tokens), shown, strict=True)]
    for raws in (given, shown):
        # What can't be known stands in no answer that is found; `spelling` proves what is.
        spoken = b"".join(b"\xff" if raw is None else raw for raw in raws)
        start, place = spoken.rfind(wanted) if wanted else -1, 0
        first = None
        for index, raw in enumerate(raws):
            if place == start and raw and first is None:
                first = index
            place += 1 if raw is None else len(raw)
            if first is not None and (with_end or place >= start + len(wanted)):
                return list(tokens[first:] if with_end else tokens[first : index + 1])
    return None
