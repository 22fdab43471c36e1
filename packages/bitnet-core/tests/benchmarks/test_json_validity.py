"""JSON out of answers: what is forgiven and what is not."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.benchmarks.json_validity import conforms, parse_answer, parses, schema_fault

VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3),
    max_leaves=8,
)


@given(VALUES)
def test_what_json_writes_is_read_back(value: Any) -> None:
    assert parse_answer(json.dumps(value)) == value


@given(st.dictionaries(st.text("abc", max_size=3), st.integers(), max_size=3))
def test_words_around_are_forgiven(value: dict[str, int]) -> None:
    text = json.dumps(value, indent=2)
    assert parse_answer(f"Here it is:\n{text}\nI hope this helps.") == value
    assert parse_answer(f"Sure!\n```json\n{text}\n```\nAnything else?") == value


@pytest.mark.parametrize(
    "text",
    [
        "", "no", "Sure: {}", '{"a": 1', "{'a': 1}", '{"a": 1,}', "NaN", '{"a": Infinity}', "```json\nno\n```",
        "[" * 100_000, "[1] is a footnote", '[\n  {"name": "cut off"},\n  {"name', '[\n  {"a": 1}\n',
    ],
)  # fmt: skip
def test_what_is_no_json(text: str) -> None:
    assert not parses(text)


def test_fences_within_and_around() -> None:
    quoted = {"code": "```py\nprint(1)\n```"}
    assert parse_answer(json.dumps(quoted)) == quoted
    assert parse_answer(f"Sure:\n```json\n{json.dumps(quoted)}\n```") == quoted
    assert parse_answer('```python\nprint({})\n```\nwhich prints\n```json\n{"a": 1}\n```') == {"a": 1}


def test_an_answer_that_no_schema_can_take_is_not_of_it() -> None:
    deep: Any = []
    for _ in range(400):
        deep = [deep]
    assert not conforms(deep, {"items": {"$ref": "#"}})
    assert not conforms(float("inf"), {"multipleOf": 0.5})
    assert not conforms(10**400, {"multipleOf": 0.5})


SCHEMA = {"type": "object", "properties": {"n": {"$ref": "#/$defs/count"}}, "required": ["n"],
          "$defs": {"count": {"type": "integer", "minimum": 1}}}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "valid"), [({"n": 2}, True), ({"n": 0}, False), ({"n": "2"}, False), ({}, False), ([], False)]
)
def test_values_against_a_schema(value: Any, valid: bool) -> None:
    assert schema_fault(SCHEMA) is None
    assert conforms(value, SCHEMA) is valid


@pytest.mark.parametrize(
    ("schema", "said"),
    [
        ([], "a schema is an object"),
        ({"type": "objekt"}, "no JSON Schema"),
        ({"properties": {"a": {"$ref": "https://example.org/a.json"}}}, "nothing is fetched"),
        ({"$dynamicRef": "https://example.org/a.json"}, "leads out of the schema"),
        ({"items": {"$ref": "#/$defs/gone"}}, '"$ref": "#/$defs/gone" names nothing in the schema'),
        ({"$ref": "#"}, "without end"),
        ({"$schema": 5}, '"$schema" is a text'),
        ({"pattern": "("}, "is not a 'regex'"),
    ],
)
def test_what_is_no_schema(schema: Any, said: str) -> None:
    assert said in str(schema_fault(schema))


def test_a_reference_counts_where_it_is_one() -> None:
    assert schema_fault({"enum": [{"$ref": "tea.json"}]}) is None
    tree = {"$id": "https://example.org/tree", "$defs": {"leaf": {"$id": "leaf", "$ref": "#/$defs/word",
            "$defs": {"word": {"type": "string"}}}}, "items": {"$ref": "leaf"}}  # fmt: skip
    assert schema_fault(tree) is None
    assert conforms(["tea"], tree)
    assert not conforms([1], tree)
