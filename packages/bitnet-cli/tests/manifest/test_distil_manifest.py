"""The manifest that `bitnet distil` writes: `own.toml` with what it was told, and a file that loads."""

from pathlib import Path

import pytest

from bitnet_cli.errors import UserError
from bitnet_cli.manifest import Manifest
from bitnet_cli.manifest.distil_manifest import OWN, OwnCase, layers_of, own_manifest, own_name
from bitnet_cli.manifest.load import load_manifest
from bitnet_cli.plugins.load import load_plugins
from bitnet_storage.names_and_paths import run_name_problem


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
