"""The strict converter on types that plugins may use, beyond those of the shipped sections."""

from __future__ import annotations  # as a plugin may: types come as strings

from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any, Literal

import attrs
import pytest

from bitnet_cli.errors import Problem
from bitnet_cli.manifest.check_values import strict_converter, structure
from bitnet_cli.manifest.paths import remember_folder


class Colour(Enum):
    RED = "red"


@attrs.frozen
class Inner:
    size: int = attrs.field(default=1, validator=attrs.validators.ge(1))
    file: Path | None = attrs.field(default=None, metadata={"path": True})


@attrs.frozen
class Options:
    inner: Inner = attrs.field(factory=Inner)
    inners: tuple[Inner, ...] = ()
    pair: tuple[int, str] = (1, "a")
    numbers: list[float] = attrs.field(factory=list)
    words: Sequence[str] = ()
    sizes: Mapping[str, int] = attrs.field(factory=dict)
    either: int | str = 0
    choice: Literal["a", 1, True] = "a"
    colour: Colour = Colour.RED
    anything: Any = None
    files: tuple[Path, ...] = attrs.field(default=(), metadata={"path": True})
    low: int = 0
    high: int = attrs.field(default=9)

    @high.validator
    def _above_low(self, attribute: attrs.Attribute[int], value: int) -> None:
        if value < self.low:
            raise ValueError(f"high = {value} is below low = {self.low}")


def told(table: Any, cls: type = Options) -> list[str]:
    problems: list[Problem] = []
    assert structure(table, cls, strict_converter({}), "x", problems) is None
    return list(map(str, problems))


def made(table: Any) -> Options:
    problems: list[Problem] = []
    options = structure(table, Options, strict_converter({}), "x", problems)
    assert problems == []
    assert options is not None
    return options


def test_what_is_right_is_taken(tmp_path: Path) -> None:
    table = {
        "inner": {"size": 2, "file": "f"},
        "inners": [{}, {"size": 3}],
        "pair": [2, "b"],
        "numbers": [1, 2.5],
        "words": ["a"],
        "sizes": {"a b": 1},
        "either": "text",
        "choice": True,
        "colour": "red",
        "anything": {"deep": ["text", 1.5]},
        "files": ["f", "g/h"],
        "low": 3,
        "high": 4,
    }
    assert made(remember_folder(table, tmp_path)) == Options(
        inner=Inner(2, tmp_path / "f"),
        inners=(Inner(1), Inner(3)),
        pair=(2, "b"),
        numbers=[1.0, 2.5],
        words=("a",),
        sizes={"a b": 1},
        either="text",
        choice=True,
        anything={"deep": ["text", 1.5]},
        files=(tmp_path / "f", tmp_path / "g" / "h"),
        low=3,
        high=4,
    )


@pytest.mark.parametrize(
    ("table", "problem"),
    [
        ({"inner": 3}, "x.inner: expected a table, got 3 (an integer)"),
        ({"inner": {"size": 0}}, "x.inner.size: must be >= 1: 0"),
        ({"inner": {"sise": 1}}, 'x.inner.sise: unknown key  → did you mean "size"?'),
        (
            {"inners": [{}, {"size": "2"}]},
            'x.inners[1].size: expected an integer, got "2" (a string)  → write size = 2',
        ),
        ({"pair": [1]}, "x.pair: expected an array of 2, got one of 1"),
        ({"pair": ["a", "b"]}, 'x.pair[0]: expected an integer, got "a" (a string)'),
        ({"words": "abc"}, 'x.words: expected an array, got "abc" (a string)  → write words = ["abc"]'),
        ({"words": {"a": 1}}, "x.words: expected an array, got a table"),
        ({"pair": "0-3"}, 'x.pair: expected an array, got "0-3" (a string)'),
        ({"sizes": [1]}, "x.sizes: expected a table, got an array"),
        ({"sizes": {"a b": 1.5}}, 'x.sizes."a b": expected an integer, got 1.5 (a float)  → write "a b" = 2'),
        ({"either": 1.5}, "x.either: expected an integer or a string, got 1.5 (a float)"),
        ({"either": "${A}"}, "x.either: ${...} is expanded in paths only  → write the value itself"),
        ({"choice": "b"}, 'x.choice: expected one of "a", 1, true, got "b" (a string)'),
        ({"choice": 1.0}, 'x.choice: expected one of "a", 1, true, got 1.0 (a float)'),
        ({"colour": "blue"}, "x.colour: 'blue' is not a valid Colour"),
        ({"files": ["f", 3]}, "x.files[1]: expected a path in quotes, got 3 (an integer)"),
        ({"anything": [{"deep": "${A}"}]}, "x.anything: ${...} is expanded in paths only  → write the value itself"),
        ({"low": 5, "high": 4}, "x: high = 4 is below low = 5"),
        ("text", 'x: expected a table, got "text" (a string)'),
    ],
)
def test_what_is_wrong_is_told(table: Any, problem: str) -> None:
    assert told(table) == [problem]


def test_every_problem_of_a_nested_table_is_told() -> None:
    assert told({"inner": {"size": 0, "flie": 1}, "inners": [{"size": 0}, 3], "low": True}) == [
        "x.inner.size: must be >= 1: 0",
        'x.inner.flie: unknown key  → did you mean "file"?',
        "x.inners[0].size: must be >= 1: 0",
        "x.inners[1]: expected a table, got 3 (an integer)",
        "x.low: expected an integer, got true (a boolean)",
    ]


@attrs.frozen
class WithSet:
    names: set[str] = attrs.field(factory=set)


@attrs.frozen
class WithBytes:
    data: bytes = b""


def test_types_that_toml_cannot_fill_are_the_plugins_fault() -> None:
    assert told({"names": "abc"}, WithSet) == [
        "x: WithSet has a field that can't be filled: a manifest can't hold set[str]  → tell its author"
    ]
    assert told({"data": 5}, WithBytes) == [
        "x.data: the plugin's options ask for bytes, which TOML doesn't have  → tell its author"
    ]


@attrs.frozen
class WithBrokenValidator:
    size: int = attrs.field()

    @size.validator
    def _check(self, attribute: attrs.Attribute[int], value: int) -> None:
        raise KeyError("oops")


def test_a_validator_that_breaks_is_a_problem_not_a_traceback() -> None:
    assert told({"size": 1}, WithBrokenValidator) == ["x.size: oops"]
