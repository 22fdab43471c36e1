"""Thousands of lists of numbers read at once say what each of them says alone, whatever a server writes there."""

import json
from typing import Any

import msgspec
from hypothesis import example, given
from hypothesis import strategies as st

from bitnet_providers.teachers.common.token_bytes import Candidate, all_given_bytes, given_bytes

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
