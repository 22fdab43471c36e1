"""Models named as on the Hugging Face Hub, from `bitnet plan` to a trained student, against a loopback hub."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
import tomli
from click.testing import CliRunner

from bitnet_cli import run
from bitnet_cli.errors import UserError
from bitnet_cli.main import cli
from loopback.hub_server import TOKEN, HubServer, own_hub
from tiny_run import make_teacher

MANIFEST = """
manifest_version = 1
[run]
name = "hub"
stages = ["storage", "collect", "project", "train"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
model = "org/tiny"
dtype = "fp32"
[collect]
prompts = "chats.json"
top_k = 5
max_new_tokens = 4
[project]
tokenizer = "org/tiny"
holdout_fraction = 0.3
[student]
init_from = "org/tiny"
start = "least_squares"
[loss]
kind = "topk_other"
[train]
steps = 1
batch_size = 2
max_seq_len = 64
precision = "fp32"
validate_every = 1
checkpoint_every = 1
"""


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_teacher(tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    monkeypatch.chdir(tmp_path)
    chats = [
        {"conversations": [{"from": "human", "value": f"Say {n}"}, {"from": "gpt", "value": "x"}]} for n in "abcde"
    ]
    (tmp_path / "chats.json").write_text(json.dumps(chats))
    (tmp_path / "hub.toml").write_text(MANIFEST)
    with own_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def plan(*options: str) -> str:
    return CliRunner().invoke(cli, ["plan", "hub.toml", *options]).output


def resolved(tmp_path: Path) -> list[str]:
    table = tomli.loads((tmp_path / "runs/hub/manifest.resolved.toml").read_text())
    return [table["teacher"]["model"], table["project"]["tokenizer"], table["student"]["init_from"]]


@pytest.mark.slow
def test_a_run_by_names_keeps_its_commit(hub: HubServer, tmp_path: Path, tiny: Path) -> None:
    commit = hub.add_folder("org/tiny", tiny)
    told = plan()
    assert hub.requests == [], "a plan asks nobody"
    assert "org/tiny is fetched from the Hub when the run starts" in told
    assert "Problems" not in told
    folder = run("hub.toml", quiet=True)
    assert resolved(tmp_path) == [f"org/tiny@{commit}"] * 3
    assert list((folder / "checkpoints").glob("step_*"))
    assert "is fetched" not in plan()
    # Done is done, without a call; and another commit on the Hub changes no run.
    hub.requests.clear()
    hub.add("org/tiny", {"config.json": b"{}"})
    run("hub.toml", quiet=True)
    assert resolved(tmp_path) == [f"org/tiny@{commit}"] * 3
    assert hub.requests == []
    assert plan().count(" skip ") == 4
    assert "collect   run        teacher.model" in plan("--set", f'teacher.model="org/tiny@{"0" * 40}"')


def test_what_can_not_be_read_is_told_before_anything_runs(
    hub: HubServer, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add_folder("org/tiny", tiny)
    hub.add_folder("org/gated", tiny, gated=True)
    with pytest.raises(UserError, match=r"student.init_from: org/nowhere: the Hub has no such model"):
        run("hub.toml", {"student.init_from": "org/nowhere"}, quiet=True)
    with pytest.raises(UserError, match=r"student.init_from: org/gated@.*: the model is gated"):
        run("hub.toml", {"student.init_from": "org/gated"}, quiet=True)
    assert not list(tmp_path.glob("runs/hub/raw/*")), "the teacher was asked nothing"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    run("hub.toml", {"student.init_from": "org/gated"}, stages=["storage", "collect"], quiet=True)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "student.init_from: org/other is not in the cache, and HF_HUB_OFFLINE is set  → unset" in plan(
        "--set", 'student.init_from="org/other"'
    )
    assert "Problems" not in plan()


def test_a_folder_wins_over_a_name(hub: HubServer, tmp_path: Path, tiny: Path) -> None:
    (tmp_path / "org").mkdir()
    (tmp_path / "org/tiny").symlink_to(tiny)
    run("hub.toml", stages=["storage"], quiet=True)
    assert resolved(tmp_path) == [str(tmp_path / "org/tiny")] * 3
    assert hub.requests == []


@pytest.mark.slow
def test_a_dataset_by_its_name(hub: HubServer, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", hub.url)
    commit = hub.add("org/chats", {"train.jsonl": b'{"prompt": "Hi"}\n{"prompt": "Ho"}\n'}, "datasets")
    text = MANIFEST.replace('prompts = "chats.json"', "").replace("org/tiny", str(tiny))
    (tmp_path / "hub.toml").write_text(text + '\n[collect.dataset]\nname = "org/chats@main:train"\n')
    told = plan()
    assert hub.requests == []
    assert "the dataset org/chats is fetched from the Hub when the run starts: what it asks is known then" in told
    folder = run("hub.toml", stages=["storage", "collect"], quiet=True)
    assert "prompt 0: user: Hi" in plan("--from", "collect")
    table = tomli.loads((folder / "manifest.resolved.toml").read_text())
    assert table["collect"]["dataset"] == {
        "name": "org/chats:train", "revision": commit, "gives": "prompts",
    }  # fmt: skip
    assert json.loads((folder / "reports/collection.json").read_text())["completions"] == 2


@pytest.mark.slow
def test_distil_from_a_name_and_a_file_to_a_student(hub: HubServer, tmp_path: Path, tiny: Path) -> None:
    hub.add_folder("org/tiny", tiny)
    settings = ("collect.max_new_tokens=8", "baseline.max_new_tokens=8", "evaluate.max_new_tokens=8")
    settings += ('train.precision="fp32"', 'teacher.dtype="fp32"', "project.holdout_fraction=0.4")
    settings += ("train.steps=3",)  # what is set wins over what fits
    sets = [word for setting in settings for word in ("--set", setting)]
    words = ["distil", "--teacher", "org/tiny", "--prompts", "chats.json", "--minutes", "30", "--name", "few", *sets]
    result = CliRunner().invoke(cli, words)
    assert result.exit_code == 0, result.output
    written = tomli.loads((tmp_path / "few.toml").read_text())
    assert written["train"]["steps"] >= 20
    student = tmp_path / "runs/few/exports/student-tq2_0.gguf"
    assert student.is_file()
    assert "manifest: few.toml  (change it, and `bitnet run few.toml` goes on" in result.output
    assert result.output.rstrip().endswith(f"student: {student}")
    assert (tmp_path / "runs/few/report.html").is_file()
    assert not list(tmp_path.glob(".*.toml"))
    again = CliRunner().invoke(cli, words)
    assert again.exit_code == 0, again.output
    assert tomli.loads((tmp_path / "few.toml").read_text()) == written
