"""What a newcomer expects to find, and versions in lock step."""

import ast
import functools
import importlib.metadata
import re
from pathlib import Path

import pytest
import tomli

ROOT = Path(__file__).parents[1]
PACKAGES = sorted((ROOT / "packages").iterdir())


def project(folder: Path) -> dict:
    return tomli.loads((folder / "pyproject.toml").read_text())["project"]


@pytest.mark.parametrize(
    "name",
    [
        "README.md", "CONTRIBUTING.md", "CHANGELOG.md", "LICENSE", "Makefile", "uv.lock", ".env.example", ".env.ci",
        ".gitignore", ".ci/run", ".github/workflows/ci.yml", "manifests/quickstart.toml", "manifests/ci.toml",
        "manifests/colab.toml", "notebooks/colab.ipynb",
    ],
)  # fmt: skip
def test_file_is_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 0


@pytest.mark.parametrize("folder", PACKAGES, ids=lambda folder: folder.name)
def test_package(folder: Path) -> None:
    module = folder.name.replace("-", "_")
    assert (folder / "src" / module / "py.typed").exists()
    assert len((folder / "README.md").read_text()) > 400
    assert list((folder / "tests").glob("test_*.py"))
    assert project(folder)["requires-python"] == ">=3.11"
    assert project(folder)["license"] == "Apache-2.0"


def test_versions_are_in_lock_step() -> None:
    version = project(ROOT)["version"]
    assert {project(folder)["version"] for folder in PACKAGES} == {version}
    newest = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert newest is not None
    assert newest[1] == version
    assert {importlib.metadata.version(folder.name) for folder in PACKAGES} == {version}
    pins = [d for d in project(ROOT / "packages/bitnet-cli")["dependencies"] if d.startswith("bitnet-")]
    assert pins == [f"bitnet-{name}=={version}" for name in ("core", "providers", "storage")]
    extras = project(ROOT / "packages/bitnet-cli")["optional-dependencies"]
    assert [
        pin
        for pins in extras.values()
        for pin in pins
        if pin.startswith("bitnet-") and not pin.endswith(f"=={version}")
    ] == []


def test_every_subpackage_directory_has_an_init() -> None:
    for folder in PACKAGES:
        for file in (folder / "src").rglob("*.py"):
            assert (file.parent / "__init__.py").exists(), file


def test_the_architecture_page_has_the_folders_of_the_tree() -> None:
    """Each folder stands once in docs/architecture.md, below its package, in the tree's own nesting."""
    page = (ROOT / "docs/architecture.md").read_text()
    block = next(
        block for block in re.findall(r"```text\n(.*?)```", page, re.DOTALL) if block.startswith("bitnet_core\n")
    )
    told, path = set(), [""]
    for line in filter(None, block.splitlines()):
        depth = (len(line) - len(line.lstrip())) // 2
        path[depth:] = [line.split()[0].strip("/")]
        told.add("/".join(path))
    data = {"starter", "lm_eval_tasks"}  # no code of ours to import
    there = {
        str(file.parent.relative_to(folder / "src"))
        for folder in PACKAGES
        for file in (folder / "src").rglob("*.py")
        if not data.intersection(file.parts)
    }
    assert told == there


def test_few_modules_lie_in_the_packages_roots() -> None:
    flat = [file for folder in PACKAGES for file in (folder / "src").glob("*/*.py") if file.name != "__init__.py"]
    assert len(flat) <= 30, "a new file belongs into a folder: docs/architecture.md"


@functools.cache
def sources() -> dict[Path, tuple[str, list[ast.AST]]]:
    """Text and syntax of every file of the packages."""
    texts = {file: file.read_text(encoding="utf-8") for folder in PACKAGES for file in (folder / "src").rglob("*.py")}
    return {file: (text, list(ast.walk(ast.parse(text)))) for file, text in texts.items()}


def test_no_function_is_longer_than_a_screen() -> None:
    """60 lines, its docstring included; but for GPU kernels, which are one program each."""
    long = []
    for file, (_, nodes) in sources().items():
        for node in nodes:
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.end_lineno:
                lines = node.end_lineno - node.lineno + 1
                if lines > 60 and not any("triton.jit" in ast.unparse(each) for each in node.decorator_list):
                    long.append(f"{file.relative_to(ROOT)}: {node.name}, {lines} lines")
    assert long == [], "split them so that they read from top to bottom"


ELSEWHERE = {"multinomial", "save_to_disk"}
"""Names of other packages that our texts mention."""


def test_names_in_docstrings_are_names_of_the_tree() -> None:
    """What stands in single backquotes and looks like a name of code exists, under this name."""
    known = set(ELSEWHERE) | {part for file in sources() for part in file.with_suffix("").parts}
    known |= {file.stem for file in (ROOT / "benchmarks").glob("*.py")}
    for _, nodes in sources().values():
        for node in nodes:
            for name in ("id", "attr", "name", "arg"):
                known.update(str(getattr(node, name, "")).split("."))
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and "`" not in node.value:
                known.add(node.value)
    gone = {
        f"{file.relative_to(ROOT)}: {name}"
        for file, (text, _) in sources().items()
        for name in re.findall(r"(?<!`)`([A-Za-z_][\w.]*)`(?!`)", text)
        if re.search(r"[_.]|[a-z][A-Z]", name) and not known.issuperset(name.split("."))
    }
    assert gone == set()
