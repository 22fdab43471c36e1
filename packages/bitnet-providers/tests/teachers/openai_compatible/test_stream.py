"""Streams of events: their lines end at CR and LF and nowhere else, however the bytes come in."""

import asyncio
import codecs
import json
from collections.abc import AsyncIterator

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.teachers.openai_compatible.answer import completion_of
from bitnet_providers.teachers.openai_compatible.stream import Assembly, assemble

SEPARATORS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"


async def in_pieces(sent: bytes, size: int) -> AsyncIterator[bytes]:
    for start in range(0, len(sent), size):
        yield sent[start : start + size]


def assembled(sent: bytes, size: int = 1 << 20) -> Assembly:
    assembly = Assembly()
    asyncio.run(assemble(in_pieces(sent, size), assembly))
    return assembly


@given(
    st.lists(st.text(st.sampled_from(f"ab猫🙂{SEPARATORS}\r\n"), max_size=5), min_size=1, max_size=4),
    st.sampled_from(["\n", "\r\n", "\r"]),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.booleans(),
)
def test_a_text_comes_through_whole(
    texts: list[str], end: str, size: int, escaped: bool, many_lines: bool, marked: bool
) -> None:
    events: list[object] = [{"choices": [{"delta": {"content": text}}]} for text in texts]
    events.append({"model": "m", "choices": [{"delta": {}, "finish_reason": "stop"}]})
    written = [json.dumps(event, ensure_ascii=escaped, indent=1 if many_lines else None) for event in events]
    lines = [end.join(f"data: {line}" for line in each.split("\n")) for each in written]
    if not escaped:  # a JSON string may hold these as they are
        lines = [line.replace("\\u0085", "\x85").replace("\\u2028", "\u2028") for line in lines]
    sent = "".join(f"{line}{end}{end}" for line in (": alive", *lines, "data: [DONE]")).encode()
    sent = codecs.BOM_UTF8 * marked + sent
    assembly = assembled(sent, size)
    assert assembly.done
    found = completion_of(assembly.put_together(), model="m", top_k=0, reasoning="drop", latency_s=0.1)
    assert (found.text, found.finish_reason) == ("".join(texts).encode(), "stop")


@pytest.mark.parametrize(
    "sent", [b'data: {"choices": [', b'data: {"choi\n\ndata: {"choices": []}\n\n', b"data: no\n\n"]
)
def test_what_is_no_json_is_no_answer(sent: bytes) -> None:
    with pytest.raises((ValueError, msgspec.DecodeError), match=r"JSON|Expecting|Unterminated"):
        assembled(sent, 3)


def test_events_without_an_empty_line_between_them_are_read_as_they_come() -> None:
    event = b'data: {"choices": [{"delta": {"content": "a"}}]}'
    assembly = Assembly()

    async def broken() -> AsyncIterator[bytes]:
        yield event + b"\n" + event + b"\ndata: [DONE]\n"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(assemble(broken(), assembly))
    assert (assembly.content, assembly.done) == (["a", "a"], True)


def test_a_pair_over_two_events_is_one_character() -> None:
    parts = ["so \ud83d", "\ude42 it", " is\ud83d"]
    events = [{"choices": [{"delta": {"content": part}}]} for part in parts]
    assembly = assembled(b"".join(b"data: " + json.dumps(event).encode() + b"\n\n" for event in events))
    found = completion_of(assembly.put_together(), model="m", top_k=0, reasoning="drop", latency_s=0.1)
    assert found.text == "so 🙂 it is".encode()
    assert found.finish_reason == "length"  # nobody said that it had ended
    assert found.repairs == {"finish_unknown": 1, "finish_unknown null": 1}


def test_thoughts_refusals_and_calls_of_streams() -> None:
    deltas = [{"thinking": "hm"}, {"content": "a"}, {"content": [{"type": "refusal", "refusal": "No"}]},
              {"function_call": {"name": "f"}}]  # fmt: skip
    sent = b"".join(b"data:" + json.dumps({"choices": [{"delta": each}]}).encode() + b"\n" for each in deltas)
    found = completion_of(assembled(sent).put_together(), model="m", top_k=0, reasoning="drop", latency_s=0.1)
    assert (found.text, found.finish_reason) == (b"aNo", "tool_calls")
    assert {"reasoning_dropped", "tool_calls"} <= set(found.repairs)
