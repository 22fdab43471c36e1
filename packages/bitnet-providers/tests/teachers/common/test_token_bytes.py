"""The message's content is the truth, whatever a server writes as tokens and bytes (ollama#13497, vllm#19177, others).

Each server fault is a way to write a token down. Whichever it is: the text that is kept is the content, the tokens that
are kept spell it and begin where tokens begin, and no candidate is one that the teacher has not named.
"""

import json
import math
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet_providers.contract import Completion
from bitnet_providers.teachers.common.token_bytes import Candidate, all_given_bytes, given_bytes
from bitnet_providers.teachers.openai_compatible.answer import completion_of, decode

ABSENT = object()
lists = st.lists(st.integers(-1, 256), max_size=4)
odd = st.sampled_from(["[", "][", "]", "[1]", "1][2", "null", '["'])
values = st.one_of(
    lists, st.none(), st.just(ABSENT), st.integers(), odd, st.lists(odd), st.lists(lists), st.dictionaries(odd, lists)
)


def expected(value: Any) -> bytes | None:
    if not isinstance(value, list) or not all(type(each) is int and 0 <= each < 256 for each in value):
        return None
    return bytes(value)


def read(values: list[Any]) -> list[Candidate]:
    written = json.dumps([{"token": "x"} if value is ABSENT else {"token": "x", "bytes": value} for value in values])
    return msgspec.json.decode(written, type=list[Candidate])


@given(st.lists(st.one_of(lists, values), max_size=6))
@example([[72, 105], [], [72, 105]])
@example([[[1], [2]], None])  # as many brackets as candidates
@example([None, [[2]]])
@example(["[1]", [2]])
def test_all_at_once_says_what_each_says(values: list[Any]) -> None:
    wanted = [expected(value) for value in values]
    assert [given_bytes(each) for each in read(values)] == wanted
    assert all_given_bytes(read(values)) == wanted


@given(st.lists(lists, min_size=1, max_size=4), st.binary(max_size=4))
@example([[72], [105]], b"[1]")
def test_records_made_by_hand_lie_among_those_off_the_wire(values: list[Any], name: bytes) -> None:
    candidates = [*read(values), Candidate("x", bytes=list(name)), Candidate("x")]
    assert all_given_bytes(candidates) == [*(expected(value) for value in values), name, None]


PRINTABLE = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
OTHERS = [byte for byte in range(256) if byte not in PRINTABLE]
ALPHABET = {byte: chr(byte) for byte in PRINTABLE} | {byte: chr(256 + at) for at, byte in enumerate(OTHERS)}
"""GPT-2's, in which vocabularies are written."""

Write = Callable[[bytes], dict[str, Any]]
END = b"<|im_end|>"


def shown(raw: bytes) -> str:
    return raw.decode("utf-8", "replace")


WAYS: dict[str, Write] = {
    "honest": lambda raw: {"token": shown(raw), "bytes": list(raw)},
    "null bytes": lambda raw: {"token": shown(raw), "bytes": None},
    "no bytes": lambda raw: {"token": shown(raw)},
    "bytes of the replacement (Ollama)": lambda raw: {"token": shown(raw), "bytes": list(shown(raw).encode())},
    "question marks": lambda raw: {"token": shown(raw), "bytes": list(shown(raw).encode("ascii", "replace"))},
    "vocabulary (vLLM)": lambda raw: {
        "token": "".join(ALPHABET[byte] for byte in raw),
        "bytes": list("".join(ALPHABET[byte] for byte in raw).encode()),
    },
    "vocabulary without bytes": lambda raw: {"token": "".join(ALPHABET[byte] for byte in raw), "bytes": None},
    "numbers": lambda raw: {"token": f"token_id:{len(raw)}", "bytes": list(f"token_id:{len(raw)}".encode())},
    "code points (DJL)": lambda raw: {"token": shown(raw), "bytes": [ord(letter) for letter in shown(raw)]},
    "Latin-1 text": lambda raw: {"token": raw.decode("latin-1"), "bytes": list(raw.decode("latin-1").encode())},
    "empty": lambda raw: {"token": "", "bytes": []},
    "null": lambda raw: {"token": None, "bytes": None},
}


def told(
    pieces: list[bytes], content: Any, write: Write = WAYS["honest"], candidates: Write | None = None,
    finish: str | None = "stop", others: tuple[bytes, ...] = (), **message: Any,
) -> Completion:  # fmt: skip
    tokens = []
    for index, raw in enumerate(pieces):
        logprob = -0.5 - index / 64
        ranked = [(raw, logprob), *((other, -4.0 - at) for at, other in enumerate(others) if other != raw)]
        top = [{**(candidates or write)(each), "logprob": value} for each, value in ranked]
        tokens.append({**write(raw), "logprob": logprob, "top_logprobs": top})
    choice = {"message": {"content": content, **message}, "finish_reason": finish, "logprobs": {"content": tokens}}
    body = {"model": "m", "choices": [choice], "usage": {"prompt_tokens": 3, "completion_tokens": len(tokens)}}
    return completion_of(decode(json.dumps(body)), model="m", top_k=1, reasoning="drop", latency_s=0.1)


texts = st.text(st.sampled_from("ab Yé猫字🙂Ω\n"), min_size=1, max_size=10)


@st.composite
def cut_texts(draw: Any) -> tuple[str, list[bytes]]:
    """A text and its bytes, cut anywhere."""
    text = draw(texts)
    whole = text.encode()
    cuts = sorted(draw(st.sets(st.integers(1, len(whole) - 1), max_size=6))) if len(whole) > 1 else []
    return text, [whole[start:stop] for start, stop in zip([0, *cuts], [*cuts, len(whole)], strict=True)]


@given(cut_texts(), st.sampled_from(sorted(WAYS)), st.data())
def test_what_is_kept_is_the_content(said: tuple[str, list[bytes]], way: str, data: Any) -> None:
    """All tokens, or some of them, are written wrongly."""
    text, pieces = said
    wrongly = iter([data.draw(st.booleans()) for _ in range(len(pieces))] * 2)

    def write(raw: bytes) -> dict[str, Any]:
        return (WAYS[way] if next(wrongly, True) else WAYS["honest"])(raw)

    found = told(pieces, text, write, WAYS["honest"], finish="length")
    assert found.text == text.encode()
    spelt = b"".join(found.token_bytes or ())
    assert spelt in (found.text, b" " + found.text)
    starts = set(np.cumsum([0, *map(len, found.token_bytes or ())]).tolist())
    assert starts <= set(np.cumsum([0, *map(len, pieces)]).tolist())
    if len(found.token_bytes or ()) > 1:
        # No number is lost or made up: pieces that became one have all their log-probabilities together.
        total = sum(-0.5 - index / 64 for index in range(len(pieces)))
        assert float(found.token_logprobs.sum()) == pytest.approx(total, abs=1e-4)


NAMED = (b"the", " é".encode(), "猫".encode(), b" a")


@given(cut_texts(), st.sampled_from(sorted(WAYS)), st.booleans())
def test_no_candidate_is_made_up(said: tuple[str, list[bytes]], way: str, everywhere: bool) -> None:
    """Candidates alone are written wrongly, or the tokens too."""
    text, pieces = said
    shows = any(not piece.isascii() or piece.startswith(b" ") for piece in pieces[:-1])
    if way.startswith("vocabulary") and not shows:
        return  # nothing in this answer tells
    if way in ("question marks", "Latin-1 text", "empty", "null", "numbers"):
        return  # these are no names of the candidates
    found = told(pieces, text, WAYS[way if everywhere else "honest"], WAYS[way], finish="length", others=NAMED)
    allowed = {*NAMED, *pieces, *found.token_bytes}  # type: ignore[misc]
    assert set(found.candidate_bytes or ()) <= allowed


@given(cut_texts(), st.sampled_from(["<|user|>", "[|endofturn|]", "<turn|>", "<seed:eos>", "</s>", "<|im_end|>", "終"]),
       st.sampled_from(["honest", "null bytes", "no bytes", "bytes of the replacement (Ollama)"]))  # fmt: skip
def test_what_stands_behind_the_content_ends_the_turn(said: tuple[str, list[bytes]], name: str, way: str) -> None:
    text, pieces = said
    early = [*pieces, name.encode()]
    found = told(early, text, WAYS[way], others=(name.encode(),))
    if found.token_bytes == (text.encode(),) and math.isnan(found.token_logprobs[0]):
        assert way != "honest"  # not proved: the text alone
        return
    assert found.text == text.encode() + END
    assert (found.token_bytes or ())[-1] == END
    assert found.token_logprobs[-1] == pytest.approx(-0.5 - len(pieces) / 64)
    if name.encode() not in (text.encode(), END):
        assert name.encode() not in (found.candidate_bytes or ())  # wherever it stands it is the same token
    cut = told(early, text, WAYS[way], finish="length")
    assert cut.text == text.encode()


@pytest.mark.parametrize("last", [b"\n", b"  "])
def test_white_space_that_the_server_stripped_ends_nothing(last: bytes) -> None:
    found = told([b"Hi", last], "Hi")
    assert (found.text, found.token_bytes) == (b"Hi", (b"Hi",))


def test_several_tokens_behind_the_content_prove_nothing() -> None:
    found = told([b"Hi", b"<|a|>", b"<|b|>"], "Hi")
    assert (found.text, found.token_bytes) == (b"Hi", (b"Hi",))
    assert math.isnan(found.token_logprobs[0])
    assert found.repairs["tokens_unproved"] == 3


def test_an_empty_token_at_the_end_is_the_end() -> None:
    found = told([b"Hi", b""], "Hi")
    assert (found.text, found.token_bytes) == (b"Hi" + END, (b"Hi", END))
    assert found.candidate_bytes == (b"Hi", END)


def test_one_leading_space_is_allowed() -> None:
    found = told([b" Hi", b" you"], "Hi you")
    assert (found.text, found.token_bytes, found.repairs) == (b"Hi you", (b" Hi", b" you"), {})
    null = told([b" Hi", b" you"], "Hi you", WAYS["null bytes"])
    assert (null.text, null.token_bytes) == (b"Hi you", (b" Hi", b" you"))


def test_a_character_cut_by_the_limit_keeps_its_bytes() -> None:
    """Readers take them off the end; a decoder has shown nothing, or a U+FFFD, or several."""
    for content in ("so ", "so \ufffd", "so \ufffd\ufffd"):
        found = told([b"so ", b"\xf0\x9f", b"\x99"], content, finish="length")
        assert (found.text, found.token_bytes) == (b"so \xf0\x9f\x99", (b"so ", b"\xf0\x9f", b"\x99"))


# A character in several tokens, of which the last shows it whole (vllm#27300)


@pytest.mark.parametrize("empty", ["empty", "null"])
@pytest.mark.parametrize(("before", "whole"), [(2, "猫"), (3, "🙂"), (1, "é!"), (2, " 猫"), (4, "猫字")])
def test_pieces_shown_as_empty_become_one_with_the_whole(empty: str, before: int, whole: str) -> None:
    pieces = [b"I", *[b""] * before, whole.encode(), b" ok"]
    found = told(pieces, f"I{whole} ok", lambda raw: WAYS[empty if not raw else "honest"](raw))
    assert found.token_bytes == (b"I", whole.encode(), b" ok")
    joint = sum(-0.5 - index / 64 for index in range(1, before + 2))
    assert found.token_logprobs[1] == pytest.approx(joint)
    assert whole.encode() not in (found.candidate_bytes or ())  # its number was the last piece's
    assert found.repairs["tokens_joined"] == before


def test_more_empty_tokens_than_a_character_has_bytes_are_not_its_pieces() -> None:
    found = told([b"", b"", b"\xc3\xa9"], "é")
    assert found.token_bytes == (b"", b"", "é".encode())
    assert found.token_logprobs[2] == pytest.approx(-0.5 - 2 / 64)
