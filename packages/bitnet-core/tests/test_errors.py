"""Errors of this package: what is wrong and its fix stand apart, at every place that raises one."""

import ast
import copy
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitnet_core
from bitnet_core.benchmarks.contract import NotMeasured
from bitnet_core.errors import CoreError
from bitnet_core.kernels.compile import NoCompilerError

SOURCE = Path(bitnet_core.__file__).parent
NOTHING_HELPS: dict[str, tuple[str, ...]] = {}
"""File → what is wrong, where no fix is known."""
IMPERATIVE = re.compile(
    r"([;:,] |\. )(or )?(add|choose|collect|copy|correct|delete|export|free|give|install|leave|lower|make|move|name|"
    r"pip install|put|raise|remove|report|run|save|set|take|train|try|use|write) ",
    re.IGNORECASE,
)


def template(node: ast.expr) -> str:
    """A literal's text, … where it is filled in."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


def errors_made(tree: ast.AST, names: set[str]) -> Iterator[tuple[str, str]]:
    """What is wrong and the fix ("" for none, … for what isn't literal) of each error that a module makes."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in names:
            given = {"why": "…", "fix": ""}
            given |= dict(zip(("why", "fix"), map(template, node.args), strict=False))
            given |= {each.arg: template(each.value) for each in node.keywords if each.arg}
            yield given["why"], given["fix"]


def fault(why: str, fix: str, file: str = "") -> str | None:
    if not fix and why not in NOTHING_HELPS.get(file, ()):
        return "no fix"
    if "→" in why + fix:
        return "the arrow is put in where the error is shown"
    return "a fix stands in what is wrong" if IMPERATIVE.search(why) else None


MODULES = {path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text("utf-8")) for path in SOURCE.rglob("*.py")}


def names_of_errors() -> set[str]:
    """CoreError and what derives from it, anywhere in the package."""
    bases = {
        node.name: {ast.unparse(base).rpartition(".")[2] for base in node.bases}
        for tree in MODULES.values()
        for node in ast.walk(tree)
        if isinstance(node, ast.ClassDef)
    }
    names: set[str] = {"CoreError"}
    while more := {name for name, its in bases.items() if its & names} - names:
        names |= more
    return names


NAMES = names_of_errors()
MADE = [(file, *error) for file, tree in MODULES.items() for error in errors_made(tree, NAMES)]


def test_every_error_names_its_fix() -> None:
    assert len(MADE) > 150
    assert [(file, why, told) for file, why, fix in MADE if (told := fault(why, fix, file))] == []


def test_each_exception_to_it_is_still_needed() -> None:
    without = {(file, why) for file, why, fix in MADE if not fix}
    assert without == {(file, why) for file, whys in NOTHING_HELPS.items() for why in whys}


@pytest.mark.parametrize(
    ("code", "told"),
    [
        ('raise CoreError("a.json: damaged")', "no fix"),
        ('raise CoreError(f"{file}: damaged", "")', "no fix"),
        ('return NotMeasured(why="no teacher")', "no fix"),
        ('raise errors.CoreError("a.json: damaged; delete it", "run again")', "a fix stands in what is wrong"),
        ('raise CoreError("damaged. Set it to 3", fix)', "a fix stands in what is wrong"),
        ('raise CoreError("damaged  → delete it", fix)', "the arrow is put in where the error is shown"),
        ('raise CoreError("a.json: damaged", fix="delete it")', None),
        ("raise CoreError(why, fix) from error", None),
    ],
)
def test_an_error_without_its_fix_is_found(code: str, told: str | None) -> None:
    ((why, fix),) = errors_made(ast.parse(code), NAMES)
    assert fault(why, fix) == told


def test_derived_errors_are_looked_at_too() -> None:
    assert {"CoreError", "NotMeasured", "NoCompilerError"} <= NAMES


@pytest.mark.parametrize("kind", [CoreError, NotMeasured, NoCompilerError])
def test_it_is_shown_with_an_arrow_and_can_be_pickled(kind: type[CoreError]) -> None:
    error = kind("a.json: damaged", "delete it")
    for each in (error, pickle.loads(pickle.dumps(error)), copy.copy(error)):
        assert type(each) is kind
        assert (each.why, each.fix, str(each)) == ("a.json: damaged", "delete it", "a.json: damaged  → delete it")
    without = pickle.loads(pickle.dumps(kind(why="a.json: damaged")))
    assert (without.why, without.fix, str(without)) == ("a.json: damaged", "", "a.json: damaged")


def test_it_keeps_its_cause() -> None:
    cause = OSError("disk")
    with pytest.raises(CoreError, match=r"^a\.json: damaged  → delete it$") as raised:
        raise CoreError("a.json: damaged", fix="delete it") from cause
    assert raised.value.__cause__ is cause
