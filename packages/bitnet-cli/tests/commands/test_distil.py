"""`bitnet distil`: the manifest that it writes, what it refuses; the whole way is in tests/test_hub_run.py."""

from pathlib import Path

import pytest
import tomli
from click.testing import CliRunner

from bitnet_cli.commands.distil import OWN, OwnCase, layers_of, own_manifest, own_name
from bitnet_cli.errors import UserError
from bitnet_cli.main import cli
from bitnet_cli.manifest import Manifest
from bitnet_cli.manifest.load import load_manifest
from bitnet_cli.plugins.load import load_plugins
from bitnet_storage.names_and_paths import run_name_problem


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


def test_other_options_write_an_unchanged_manifest_anew(here: Path) -> None:
    """As the error about unusable rows advises; a changed one stays, and is told before the teacher is timed."""
    (here / "chats.json").write_text('[{"prompt": "Hi"}, {"prompt": ""}]')
    words = ("--teacher", "./nowhere", "--prompts", "chats.json", "--name", "mine")
    assert '"prompt" is empty' in distil(*words)[1].partition("Stages")[0]
    first = (here / "mine.toml").read_text()
    assert '"prompt" is empty' not in distil(*words, "--skip-unusable")[1].partition("Stages")[0]
    second = (here / "mine.toml").read_text()
    assert "skip_unusable = true" in second
    assert second.splitlines()[1] != first.splitlines()[1]
    assert load_manifest(here / "mine.toml", (), load_plugins({}), {}).collect.skip_unusable  # type: ignore[union-attr]
    changed = second.replace("steps = 200", "steps = 300")
    (here / "mine.toml").write_text(changed)
    for more in ((), ("--skip-unusable",), ("--minutes", "3")):
        assert "mine.toml is there already, with another content; nothing was written" in distil(*words, *more)[1]
    assert (here / "mine.toml").read_text() == changed
    assert not (here / "runs").exists()


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


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (("--prompts", ""), "--prompts is empty  → name what you mean, or leave --prompts out"),
        (("--prompts", "chats.json", "--student", ""), "--student is empty"),
        (("--prompts", "chats.json", "--minutes", "nan"), "--minutes nan is no length of time"),
        (("--prompts", "chats.json", "--minutes", "inf"), "--minutes inf is no length of time"),
        (("--prompts", "chats.json", "--student", "0-99999999999"), "no model has so many layers"),
        (("--prompts", "chats.json", "--name", "../up"), "--name: a run's name is one folder's name"),
        (("--prompts", "chats.json", "--name", "a/b"), "--name: a run's name is one folder's name"),
    ],
)
def test_what_no_manifest_can_be_made_of_writes_nothing(here: Path, arguments: tuple[str, ...], told: str) -> None:
    before = sorted(here.parent.iterdir())
    code, output = distil("--teacher", "org/name", *arguments)
    assert code == 2
    assert told in output
    assert [path.name for path in here.iterdir()] == ["chats.json"]
    assert sorted(here.parent.iterdir()) == before


def test_what_is_printed_has_what_is_set(here: Path) -> None:
    settings = ("train.steps=3", "collect.budget.tokens = 1_000", "teacher.device=cpu", 'export.kinds=["hf"]')
    options = [word for each in settings for word in ("--set", each)]
    code, output = distil("--teacher", "org/name", "--prompts", "chats.json", *options, "--print")
    assert code == 0
    table = tomli.loads(output)
    assert (table["train"]["steps"], table["teacher"]["device"], table["export"]["kinds"]) == (3, "cpu", ["hf"])
    assert table["collect"]["budget"]["tokens"] == 1000
    assert table["collect"]["prompts"] == "chats.json"
    code, output = distil("--teacher", "org/name", "--prompts", "chats.json", "--set", "train.steps", "--print")
    assert (code, "expected KEY=VALUE" in output) == (2, True)


def test_own_columns_are_named_once_for_all_that_reads_the_file(here: Path) -> None:
    (here / "own.csv").write_text("frage,antwort,n\nHi,Ho,1\n")
    words = ("--teacher", "./nowhere", "--prompts", "own.csv", "--texts", "own.csv")
    problems = distil(*words)[1].partition("Stages")[0]
    assert "or name yours in [collect.columns]" in problems
    assert "or name yours in [baseline.columns]" in problems
    columns = ("--set", "collect.columns.prompt=frage", "--set", "collect.columns.response=antwort")
    output = distil(*words, *columns)[1]
    assert "own.csv, line" not in output
    assert "text 2: user: Hi | scored: Ho" in output
    assert output.count("columns that are not read: n") == 1
    printed = tomli.loads(distil(*words, *columns, "--print")[1])
    assert printed["baseline"]["columns"] == printed["collect"]["columns"] == {"prompt": "frage", "response": "antwort"}


def loaded(folder: Path, text: str) -> Manifest:
    path = folder / "m.toml"
    path.write_text(text)
    return load_manifest(path, (), load_plugins({}), {})


def test_the_least_that_can_be_told(tmp_path: Path) -> None:
    case = OwnCase(teacher="org/name", prompts="chats.json")
    text = own_manifest(case, "mine")
    assert text.startswith(
        "# Written by: bitnet distil --teacher org/name --prompts chats.json\nmanifest_version = 1\n"
    )
    found, starter = loaded(tmp_path, text), loaded(tmp_path, OWN.read_text())
    assert found.run.name == "mine"
    assert found.teacher is not None
    assert found.teacher.options.model == "org/name"
    assert found.collect is not None
    assert (found.collect.prompts, found.collect.texts) == (tmp_path / "chats.json", None)
    assert found.baseline is not None
    assert found.baseline.prompts == tmp_path / "chats.json"
    assert str(found.store.options.root) == str(tmp_path / "runs")
    assert found.run.stages == starter.run.stages
    assert "calibrate" in found.run.stages
    assert "export" in found.run.stages
    assert (found.student, found.train, found.export) == (starter.student, starter.train, starter.export)


def test_all_that_can_be_told(tmp_path: Path) -> None:
    case = OwnCase(teacher="./big model", texts="answers.csv", student="org/small@v1", minutes=30, skip_unusable=True)
    text = own_manifest(case, "mine", {"train.steps": 70, "train.budget_tokens": 9000, "collect.max_prompts": 5})
    assert "--teacher './big model' --texts answers.csv --student org/small@v1 --minutes 30 --skip-unusable\n" in text
    found = loaded(tmp_path, text)
    assert found.teacher is not None
    assert found.teacher.options.model == str(tmp_path / "big model")
    assert found.collect is not None
    assert (found.collect.prompts, found.collect.texts) == (None, tmp_path / "answers.csv")
    assert found.collect.max_prompts == 5
    assert found.baseline is not None
    assert (found.collect.skip_unusable, found.baseline.skip_unusable) == (True, True)
    assert found.student is not None
    assert found.project is not None
    assert (found.student.init_from, found.project.tokenizer) == ("org/small@v1", "org/small@v1")
    assert found.train is not None
    assert (found.train.steps, found.train.budget_tokens) == (70, 9000)
    layered = loaded(tmp_path, own_manifest(OwnCase(teacher="a/b", prompts="p", student="0-2,29"), "mine"))
    assert layered.student is not None
    assert (layered.student.init_from, layered.student.layers) == ("teacher", (0, 1, 2, 29))


def test_layers_and_names() -> None:
    long = OwnCase(teacher="ORG/" + "A-very-long-name-" * 5, prompts="my-very-long-file-of-prompts.jsonl")
    assert run_name_problem(own_name(long)) is None
    assert layers_of("0-3,28,29") == [0, 1, 2, 3, 28, 29]
    assert layers_of("7") == [7]
    assert layers_of("org/small-7b") is None
    with pytest.raises(UserError, match=r"--student 3-1: 3-1 runs backwards  → write 1-3"):
        layers_of("3-1")
    assert own_name(OwnCase(teacher="HuggingFaceTB/SmolLM2@v1", prompts="data/My Chats.json")) == "my-chats-smollm2"
    assert own_name(OwnCase(teacher="/models/Tea.Q4.gguf", texts="t.jsonl.gz")) == "t-tea.q4"
    assert own_name(OwnCase(teacher="/", prompts="чат.json")) == "own"
