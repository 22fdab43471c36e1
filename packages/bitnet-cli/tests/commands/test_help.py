"""Every command says what it is for, shows examples that it takes itself, and is completed by the shells."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from click.shell_completion import ShellComplete
from click.testing import CliRunner, Result

from bitnet_cli.main import GROUPS, cli

SCRIPTS = Path(sys.executable).parent
PATH = f"{SCRIPTS}{os.pathsep}{os.environ['PATH']}"


Words = tuple[str, ...]


def commands(found: click.Command = cli, words: Words = ()) -> Iterator[tuple[Words, click.Command]]:
    yield words, found
    if isinstance(found, click.Group):
        for name, command in found.commands.items():
            yield from commands(command, (*words, name))


ALL = [pytest.param(words, command, id=" ".join(words) or "bitnet") for words, command in commands()]


def examples(command: click.Command) -> list[str]:
    """The command lines of the help's examples, without what is said beside them."""
    _, _, text = (command.help or "").partition("Example")
    lines = re.findall(r"^ {2,}(bitnet .+)$", text, re.MULTILINE)
    return [re.split(r" {2,}", line)[0] for line in lines]


def parsed(line: str) -> list[Words]:
    """The command that each part of the line names; raises click's usage error where a part is none."""
    return [_named(shlex.split(part)[1:]) for part in line.split(">")[0].split("&&")]


def _named(words: list[str]) -> Words:
    found: click.Command = cli
    names: list[str] = []
    while isinstance(found, click.Group) and words and words[0] in found.commands:
        names.append(words.pop(0))
        found = found.commands[names[-1]]
    found.make_context("bitnet", words, parent=click.Context(cli, **cli.context_settings))
    return tuple(names)


@pytest.mark.parametrize(("words", "command"), ALL)
def test_help_says_what_and_shows_how(words: tuple[str, ...], command: click.Command) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "110"}).output
    assert "Example" in shown
    said = examples(command)
    assert said
    for line in said:
        assert any(each[: len(words)] == words for each in parsed(line)), line
        assert line in shown, "click wrapped it"
    for parameter in command.params:
        assert not isinstance(parameter, click.Option) or parameter.help, f"{parameter.name} has no help"


@pytest.mark.parametrize(("words", "command"), [each for each in ALL if isinstance(each.values[1], click.Group)])
def test_each_summary_is_a_whole_line_at_80_columns(words: Words, command: click.Group) -> None:
    shown = CliRunner().invoke(cli, [*words, "--help"], env={"COLUMNS": "80"}).output
    titles = GROUPS if command is cli else ("Commands",)
    sections = [shown.partition(f"\n{title}:\n")[2].partition("\n\n")[0].splitlines() for title in titles]
    lines = [line for section in sections for line in section]
    assert sorted(line.split()[0] for line in lines) == sorted(command.commands), "click wrapped a summary"
    assert not [line for line in lines if line.endswith("...")], "click cut a summary"


def test_an_example_that_is_none_would_be_found() -> None:
    with pytest.raises(click.UsageError, match="No such option"):
        parsed("bitnet run m.toml --nope")


# Completion


def bitnet(*arguments: str, **environment: str) -> Result:
    return CliRunner().invoke(cli, arguments, env=environment)


def completed(words: str) -> list[str]:
    count = len(words.split()) - (not words.endswith(" "))
    done = subprocess.run(
        [str(SCRIPTS / "bitnet")], capture_output=True, text=True, check=True,
        env=os.environ | {"_BITNET_COMPLETE": "bash_complete", "COMP_WORDS": words, "COMP_CWORD": str(count)},
    )  # fmt: skip
    return [line.partition(",")[2] for line in done.stdout.splitlines()]


def test_what_may_come_next() -> None:
    assert completed("bitnet ru") == ["run", "runs"]
    assert "validate" in completed("bitnet traces ")
    assert completed("bitnet run m.toml --retry") == ["--retry-failed"]


def offered(*words: str) -> list[str]:
    *before, typed = words
    return [item.value for item in ShellComplete(cli, {}, "bitnet", "").get_completions(before, typed)]


def test_what_an_option_takes_is_offered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("mine.toml", "pyproject.toml", "manifests/a.toml", "manifests/deep/b.toml", "runs/tea/stages/x"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert offered("run", "") == ["manifests/a.toml", "mine.toml", "manifests/", "runs/"]
    assert offered("plan", "./manifests/") == ["./manifests/a.toml", "./manifests/deep/"]
    assert offered("run", "m.toml", "--from", "c") == ["collect", "calibrate"]
    assert offered("run", "m.toml", "--stages", "train,e") == ["train,evaluate", "train,export"]
    assert offered("run", "m.toml", "--stages", "export,e") == ["export,evaluate"]
    assert offered("export", "runs/tea", "--to", "gguf,") == ["gguf,hf", "gguf,packed"]
    assert offered("run", "m.toml", "--set", "train.warmup") == ["train.warmup_steps="]
    assert offered("run", "m.toml", "--set", "export.gguf.t") == ["export.gguf.types="]
    assert offered("run", "m.toml", "--set", "teacher.api_key") == ["teacher.api_key_env="]
    assert offered("run", "m.toml", "--set", "train.schedule=c") == ["train.schedule=cosine"]
    assert offered("chat", "") == offered("push", "ru") == ["runs/tea"]


@pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")
def test_bash_completes_with_the_script() -> None:
    script = (
        'eval "$(bitnet completion bash)"; COMP_WORDS=(bitnet manifests s); COMP_CWORD=2; '
        '_bitnet_completion bitnet; echo "${COMPREPLY[@]}"; complete -p bitnet'
    )
    done = subprocess.run(
        ["bash", "-c", script], capture_output=True, text=True, check=True, env=os.environ | {"PATH": PATH}
    )
    assert done.stdout.splitlines()[0] == "schema"
    assert "-F _bitnet_completion bitnet" in done.stdout


@pytest.mark.parametrize(
    ("shell", "path"),
    [
        ("bash", ".local/share/bash-completion/completions/bitnet"),
        ("fish", ".config/fish/completions/bitnet.fish"),
        ("zsh", ".zfunc/_bitnet"),
    ],
)
def test_it_is_installed_where_the_shell_looks(tmp_path: Path, shell: str, path: str) -> None:
    home = {"HOME": str(tmp_path), "SHELL": f"/usr/bin/{shell}", "XDG_DATA_HOME": "", "XDG_CONFIG_HOME": ""}
    done = bitnet("completion", "--install", **home)
    assert done.exit_code == 0, done.output
    assert (tmp_path / path).read_text().strip() == bitnet("completion", shell).output.strip()
    assert ("fpath" in done.output) == (shell == "zsh")


def test_what_goes_wrong_is_said(tmp_path: Path) -> None:
    unknown = bitnet("completion", SHELL="/bin/ksh")
    assert unknown.exit_code == 2
    assert "name it: bitnet completion bash" in unknown.output
    (tmp_path / "file").write_text("")
    refused = bitnet("completion", "fish", "--install", XDG_CONFIG_HOME=str(tmp_path / "file"))
    assert refused.exit_code == 2
    assert "can't be written" in refused.output
