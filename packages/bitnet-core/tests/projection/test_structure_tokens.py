import re
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.projection.structure_tokens import is_struct_token
from bitnet_core.traces.tokenizer import id_to_bytes, special_ids


def by_regex(token: bytes) -> bool:
    return bool(re.fullmatch(rb'[ \t\r\n]*([{}\[\]:,"][ \t\r\n]*)+', token)) or b"```" in token


@given(st.lists(st.binary(max_size=6) | st.text('{}[]:,"` \na', max_size=6).map(str.encode), max_size=60))
def test_agrees_with_a_regular_expression(vocabulary: list[bytes]) -> None:
    assert is_struct_token(vocabulary).tolist() == [by_regex(token) for token in vocabulary]


def test_examples() -> None:
    yes = [b"{", b' "', b'":', b'"},\n', b" [ ]", b"```", b"```json", b":"]
    no = [b"", b" ", b"\n", b"a", b'"name', b"`", b"``", b"(", b"=", b"\xe2\x82\xac"]
    assert is_struct_token([*yes, *no]).tolist() == [True] * len(yes) + [False] * len(no)
    assert is_struct_token([b"``", b"`"]).tolist() == [False, False]  # a fence does not reach over two tokens
    assert is_struct_token([b"{", b"}"], special_ids=[1]).tolist() == [True, False]


def test_on_a_tokenizer(tokenizer: Any) -> None:
    table = id_to_bytes(tokenizer)
    found = is_struct_token(table, special_ids(tokenizer))
    assert not found[special_ids(tokenizer)].any()
    assert {table[i] for i in found.nonzero()[0]} >= {b"{", b"}", b"[", b"]", b":", b",", b'"'}
