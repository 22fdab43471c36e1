"""Every StorageError says what is wrong and, apart from it, what to do; few sites know no fix."""

import ast
import pickle
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

import bitnet_storage
from bitnet_storage.contract import ObjectMissingError, StorageError

SOURCE = Path(bitnet_storage.__file__).parent
IMPERATIVE = re.compile(
    r"[;:.] (add|check|choose|correct|drop|export|free|give|install|leave|make|move|name|pip|point|pull|push|put|"
    r"remove|rename|run|set|stop|unset|upgrade|use|wait|write) ",
    re.IGNORECASE,
)
NOTHING_HELPS = {
    ("names_and_paths.py", "can't be the key of an object"),
    ("names_and_paths.py", "can't be a path in"),
    ("sync/snapshots.py", "the snapshot of run"),
}
"""(file, a piece of the message): damage that nobody can undo."""


def error_sites() -> Iterator[tuple[str, str, bool]]:
    """(file, the message with ``…`` for what is filled in, whether a fix stands beside it)."""
    for path in sorted(SOURCE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            # ObjectMissingError brings its own fix.
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "StorageError":
                has_fix = len(node.args) > 1 or any(word.arg == "fix" for word in node.keywords)
                yield path.relative_to(SOURCE).as_posix(), literal(node.args[0]), has_fix


def literal(node: ast.expr) -> str:
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    return "".join(str(part.value) if isinstance(part, ast.Constant) else "…" for part in parts)


def test_every_error_has_a_fix_or_is_known_to_have_none() -> None:
    sites = list(error_sites())
    assert len(sites) > 40
    without = {
        (file, piece)
        for file, text, has_fix in sites
        if not has_fix
        for piece in [next((known for name, known in NOTHING_HELPS if name == file and known in text), text)]
    }
    assert without == NOTHING_HELPS


def test_no_fix_hides_in_what_is_wrong() -> None:
    hiding = [(file, text) for file, text, _ in error_sites() if "→" in text or IMPERATIVE.search(text)]
    assert hiding == []


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (StorageError("the disk is full", "free some"), "the disk is full  → free some"),
        (StorageError("it is gone"), "it is gone"),
        (ObjectMissingError("x is missing"), "x is missing  → push the run again from a working folder that has it"),
    ],
)
def test_the_text_and_its_parts_survive_pickling(error: StorageError, text: str) -> None:
    again = pickle.loads(pickle.dumps(error))
    assert type(again) is type(error)
    assert (str(again), again.why, again.fix) == (str(error), error.why, error.fix)
    assert str(error) == text
