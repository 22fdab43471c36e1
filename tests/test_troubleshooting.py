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
    """Every string of a module, … where it is filled in; strings and f-strings that stand side by side are one."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            yield node.value
        elif isinstance(node, ast.JoinedStr):
            parts = [part.value if isinstance(part, ast.Constant) else "…" for part in node.values]
            yield "".join(map(str, parts))


SAID = [
    template
    for path in ROOT.glob("packages/*/src/**/*.py")
    for template in templates(ast.parse(path.read_text(encoding="utf-8")))
]


def is_said(message: str) -> bool:
    """A fix stands behind the arrow; in the source it is a string of its own."""
    return all(any(part in template for template in SAID) for part in message.split("  → "))


@pytest.mark.parametrize("message", MESSAGES, ids=lambda message: message[:60])
def test_the_code_says_so(message: str) -> None:
    assert is_said(message)


def test_what_nobody_says_is_found() -> None:
    assert len(MESSAGES) > 25
    assert not is_said("this message is quoted, and … raises it")
