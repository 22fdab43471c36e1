"""docs/troubleshooting.md quotes what the code says: every message is still in the source, whole."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs/troubleshooting.md"
MESSAGES = re.findall(r"^```text\n(.*?)\n```", PAGE.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)


def templates(tree: ast.AST) -> Iterator[str]:
    """Every string of a module, … where it is filled in, and errors as they are shown: why, arrow, fix."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant | ast.JoinedStr):
            yield template(node)
        elif isinstance(node, ast.Call):
            given = [*node.args[:2], *(each.value for each in node.keywords if each.arg == "fix")]
            yield "  → ".join(map(template, given))


def template(node: ast.expr) -> str:
    """Strings and f-strings that stand side by side are one."""
    if isinstance(node, ast.JoinedStr):
        return "".join(map(template, node.values))
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else "…"


SAID = [
    each
    for path in ROOT.glob("packages/*/src/**/*.py")
    for each in templates(ast.parse(path.read_text(encoding="utf-8")))
]


def is_said(message: str) -> bool:
    return any(message in each for each in SAID)


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_the_code_says_so(message: str) -> None:
    assert is_said(message)


def test_what_nobody_says_is_found() -> None:
    assert len(MESSAGES) > 25
    assert not is_said("this message is quoted, and … raises it")
