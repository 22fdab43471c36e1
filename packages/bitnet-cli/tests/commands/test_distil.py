"""`bitnet distil`: what it writes, what it refuses; the whole way is in tests/test_hub_run.py."""

from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_cli.main import cli


def distil(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, ["distil", *arguments])
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "chats.json").write_text('[{"prompt": "Hi"}, {"prompt": "Ho"}]')
    return tmp_path


def test_print_writes_nothing(here: Path) -> None:
    code, output = distil("--teacher", "org/name", "--prompts", "chats.json", "--minutes", "5", "--print")
    assert code == 0
    assert output.startswith("# Written by: bitnet distil --teacher org/name --prompts chats.json --minutes 5\n")
    assert [path.name for path in here.iterdir()] == ["chats.json"]


def test_what_is_wrong_is_told_by_the_plan_and_the_manifest_is_there_to_mend(here: Path) -> None:
    code, output = distil("--teacher", "./nowhere", "--prompts", "none.json", "--name", "mine")
    assert code == 2
    problems = output.partition("Stages")[0]
    assert f"{here}/none.json: there is no such file" in problems
    assert f"teacher: model: {here}/nowhere is neither a folder nor a .gguf file" in problems
    assert not (here / "runs").exists()
    (here / "mine.toml").write_text("# mended by hand")
    code, output = distil("--teacher", "./nowhere", "--prompts", "none.json", "--name", "mine")
    assert (code, output) == (
        2,
        "error: mine.toml is there already, with another content; nothing was written  → go on with `bitnet run "
        "mine.toml`, or give another --name\n",
    )
    assert (here / "mine.toml").read_text() == "# mended by hand"


def test_nothing_to_ask_about() -> None:
    code, output = distil("--teacher", "org/name")
    assert code == 2
    assert "there is nothing to ask about  → give --prompts FILE, --texts FILE, or both" in output


def test_with_minutes_bad_data_is_told_before_the_teacher_is_timed(here: Path) -> None:
    (here / "chats.json").write_text('[{"prompt": ""}, {"prompt": null}]')
    code, output = distil("--teacher", "org/name", "--prompts", "chats.json", "--minutes", "5")
    assert code == 2
    assert "2 of 2 rows hold no prompt that can be used" in output
    assert [path.name for path in here.iterdir()] == ["chats.json"]


def test_a_failure_while_the_teacher_is_timed_names_no_manifest_that_is_gone(
    here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["--teacher", "./nowhere", "--prompts", "chats.json", "--minutes", "3"]
    monkeypatch.setattr("sys.argv", ["bitnet", "distil", *words])
    code, output = distil(*words)
    assert code == 2
    assert f"{here}/nowhere is neither a folder nor a .gguf file" in output
    assert output.rstrip().endswith(f"bitnet distil {' '.join(words)}")
    assert not list(here.glob(".*.toml"))
