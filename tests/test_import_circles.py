"""No file imports itself by way of others, in any of the four packages.

Imports inside functions and under TYPE_CHECKING count too: import-linter leaves the latter out, and a reader follows
all of them. Importing a submodule runs the packages above it, which says nothing of who needs whom: that is left out.
"""

import ast
import importlib.util
from pathlib import Path

import networkx
import pytest

PACKAGES = ("bitnet_cli", "bitnet_core", "bitnet_providers", "bitnet_storage")


def sources(package: str) -> dict[str, Path]:
    """Dotted name → file, of every module and package within `package`."""
    found = importlib.util.find_spec(package)
    assert found is not None
    assert found.origin is not None
    top = Path(found.origin).parent
    names = {}
    for path in sorted(top.rglob("*.py")):
        parts = path.relative_to(top).with_suffix("").parts
        names[".".join((package, *(parts[:-1] if parts[-1] == "__init__" else parts)))] = path
    return names


def imported(tree: ast.Module, known: set[str]) -> set[str]:
    """The modules of `known` that are imported anywhere in `tree`. The packages import by full names only."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "a relative import: this test reads full names"
            names = {f"{node.module}.{alias.name}" for alias in node.names}
            # `from package import name` needs the package's own file only where the name is no module
            found |= names & known
            if not names <= known:
                found.add(str(node.module))
    return found & known


def circles(trees: dict[str, ast.Module]) -> list[list[str]]:
    """The groups of modules that reach each other by imports."""
    needs = {name: imported(tree, set(trees)) - {name} for name, tree in trees.items()}
    return groups(needs)


def groups(needs: dict[str, set[str]]) -> list[list[str]]:
    """The strongly connected components with more than one member."""
    graph = networkx.DiGraph([(name, other) for name, others in needs.items() for other in others])
    return sorted(sorted(group) for group in networkx.strongly_connected_components(graph) if len(group) > 1)


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_no_circle_of_files(package: str) -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sources(package).items()}
    assert circles(trees) == []


@pytest.mark.slow
@pytest.mark.parametrize("package", PACKAGES)
def test_no_two_folders_import_each_other(package: str) -> None:
    trees = {name: ast.parse(path.read_text(encoding="utf-8")) for name, path in sources(package).items()}

    def place(name: str) -> str:
        """A file's folder under the package, or the file itself where it lies in the root."""
        return ".".join(name.split(".")[:2])

    needs: dict[str, set[str]] = {}
    for name, tree in trees.items():
        if name != package:  # the package's own names are lazy, and of all folders
            needs.setdefault(place(name), set()).update(map(place, imported(tree, set(trees)) - {package}))
    assert groups({name: others - {name} for name, others in needs.items()}) == []


def test_circles_are_found() -> None:
    """Also those through a function, through TYPE_CHECKING, and through more than two files."""
    texts = {
        "p": "",
        "p.a": "def late():\n    from p import b\n",
        "p.b": "if TYPE_CHECKING:\n    import p.c\n",
        "p.c": "from p.a import thing\n",
        "p.d": "from p import a, b\n",
    }
    assert circles({name: ast.parse(text) for name, text in texts.items()}) == [["p.a", "p.b", "p.c"]]
