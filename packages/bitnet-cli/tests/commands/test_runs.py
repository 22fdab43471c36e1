"""`bitnet runs`: a store's runs from outside, in place and pushed."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner, Result

from bitnet_cli import run_folder
from bitnet_cli.commands.stored_runs import differences, list_runs
from bitnet_cli.main import cli
from bitnet_cli.pipeline.run_lock import run_lock
from bitnet_cli.run_folder import Artifact, Done
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import DurableStore
from bitnet_storage.plugin import _open_local

Where = tuple[str, ...]


def bitnet(*arguments: object) -> Result:
    return CliRunner().invoke(cli, [str(each) for each in arguments])


def write_run(folder: Path, steps: int, kl: float) -> None:
    """A run folder as a run leaves it, with two stages done."""
    run_folder.make_folders(folder)
    table = {"manifest_version": 1, "run": {"name": folder.name}, "train": {"steps": steps, "batch_size": 8}}
    (folder / "manifest.resolved.toml").write_text(tomli_w.dumps(table))
    (folder / "raw/shard_000.parquet").write_bytes(b"x" * 1000)
    for stage, summary in (
        ("train", {"headline": f"{steps} steps", "steps": steps, "last": {"tokens_per_second": steps / 7}}),
        ("evaluate", {"headline": f"KL {kl}", "heldout_kl": kl, "unigram_kl": 4.5}),
    ):
        run_folder.write_done(
            folder,
            Done(
                stage=stage, fingerprint="f", finished="2026-01-02T03:04:05+00:00", seconds=1.5, settings={}, files={},
                formats={}, inputs={}, outputs={"x": Artifact(digest="d", files={})}, summary=summary, packages={},
            ),
        )  # fmt: skip


@pytest.fixture(params=["in place", "pushed", "by manifest"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Where:
    """A store with the runs "short" and "long"; the arguments that name it."""
    work, root = tmp_path / "work", tmp_path / "drive"
    for name, steps, kl in (("short", 4, 3.5), ("long", 400, 2.25)):
        write_run(work / name, steps, kl)
    if request.param == "in place":
        return ("--store", str(work))
    pushing = opened(root, work)
    for name in ("short", "long"):
        pushing.push(name)
    if request.param == "pushed":
        return ("--store", str(root), "--work", str(tmp_path / "elsewhere"))
    (tmp_path / "m.toml").write_text(
        f'manifest_version = 1\n[run]\nname = "long"\nstages = ["storage"]\n'
        f'[store]\nkind = "local"\nroot = "{root}"\nwork = "{tmp_path / "elsewhere"}"\n'
    )
    return ("-m", str(tmp_path / "m.toml"))


def opened(root: Path, work: Path) -> DurableStore:
    store = _open_local(LocalStoreConfig(root=root, work=work))
    assert isinstance(store, DurableStore)
    return store


def test_ls(store: Where) -> None:
    found = json.loads(bitnet("runs", "ls", *store, "--json").output)["runs"]
    assert [(run["name"], run["files"], run["stages"]) for run in found] == [
        ("long", 4, ["train", "evaluate"]),
        ("short", 4, ["train", "evaluate"]),
    ]
    assert all(run["bytes"] > 1000 for run in found)
    long, short = bitnet("runs", "ls", *store).output.splitlines()
    assert long.startswith("long ")
    assert short.endswith(" MB  train evaluate")


def test_show(store: Where) -> None:
    told = json.loads(bitnet("runs", "show", "long", *store, "--json").output)
    assert told["settings"]["train.steps"] == 400
    assert [(stage["stage"], stage["headline"]) for stage in told["stages"]] == [
        ("train", "400 steps"),
        ("evaluate", "KL 2.25"),
    ]
    assert told["folders"]["raw"] == 1000
    text = bitnet("runs", "show", "long", *store).output
    assert "evaluate  2026-01-02T03:04:05       1.5 s  KL 2.25" in text


def test_diff(store: Where) -> None:
    told = json.loads(bitnet("runs", "diff", "short", "long", *store, "--json").output)
    assert told["settings"] == {"run.name": ["short", "long"], "train.steps": [4, 400]}
    assert told["results"] == {"train.steps": [4, 400], "evaluate.heldout_kl": [3.5, 2.25]}
    assert "  evaluate.heldout_kl: 3.5 → 2.25" in bitnet("runs", "diff", "short", "long", *store).output.splitlines()
    assert bitnet("runs", "diff", "long", "long", *store).output == "settings: the same\nresults: the same\n"


@pytest.mark.parametrize("command", ["show", "pull"])
def test_an_unknown_run_has_a_suggestion(store: Where, command: str) -> None:
    result = bitnet("runs", command, "shrt", *store)
    assert result.exit_code == 2
    if command == "show" or "--work" in store or "-m" in store:
        assert 'the store has no run "shrt"  → did you mean "short"?' in result.output


def test_pull_and_push(tmp_path: Path) -> None:
    work, root = tmp_path / "work", tmp_path / "drive"
    write_run(work / "r", 4, 3.5)
    here = ("--store", root, "--work", work)
    root.mkdir()
    pushed = bitnet("runs", "push", "r", *here)
    assert pushed.exit_code == 0, pushed.output
    assert f"4 files, 0.0 MB → {root}, generation 1" in pushed.output
    there = ("--store", root, "--work", tmp_path / "there")
    pulled = bitnet("runs", "pull", "r", *there)
    assert pulled.exit_code == 0, pulled.output
    assert (tmp_path / "there/r/raw/shard_000.parquet").read_bytes() == b"x" * 1000
    assert bitnet("runs", "push", "typo", *here).exit_code == 2
    assert not (work / "typo").exists()


def test_push_is_refused_while_another_machine_is_at_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import bitnet_storage.sync.synced_store

    work, root = tmp_path / "work", tmp_path / "drive"
    write_run(work / "r", 4, 3.5)
    opened(root, work).push("r")

    def busy(*_: Any) -> Any:
        from bitnet_storage.contract import StorageError

        raise StorageError("run r is being worked on by other")

    monkeypatch.setattr(bitnet_storage.sync.synced_store, "lease", busy)
    refused = bitnet("runs", "push", "r", "--store", root, "--work", work)
    assert refused.exit_code == 2
    assert "error: run r is being worked on by other" in refused.output


def test_pull_is_refused_while_a_run_is_at_work_in_the_folder(tmp_path: Path) -> None:
    work, root = tmp_path / "work", tmp_path / "drive"
    write_run(work / "r", 4, 3.5)
    opened(root, work).push("r")
    with run_lock(tmp_path / "there/r"):
        refused = bitnet("runs", "pull", "r", "--store", root, "--work", tmp_path / "there")
    assert refused.exit_code == 2
    assert "another run is at work in" in refused.output
    assert not (tmp_path / "there/r/raw").exists()


def test_a_damaged_file_is_told(tmp_path: Path) -> None:
    work, root = tmp_path / "work", tmp_path / "drive"
    write_run(work / "r", 4, 3.5)
    opened(root, work).push("r")
    for path in (root / "r").rglob("manifest.resolved.*"):
        path.write_bytes(b"other")
    result = bitnet("runs", "show", "r", "--store", root, "--work", work)
    assert result.exit_code == 2
    assert "is damaged" in result.output


MISTAKES: list[tuple[Callable[[Path], Where], str]] = [
    (lambda here: (), "there is no folder runs here"),
    (lambda here: ("--store", str(here / "no")), "there is no folder"),
    (lambda here: ("--store", str(here), "-m", "m.toml"), "both name a store"),
    (lambda here: ("--store", str(here / "drive")), "add --work DIR"),
]


@pytest.mark.parametrize(("arguments", "message"), MISTAKES)
def test_mistakes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, arguments: Callable[[Path], Where], message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "work/r", 4, 3.5)
    opened(tmp_path / "drive", tmp_path / "work").push("r")
    result = bitnet("runs", "ls", *arguments(tmp_path))
    assert result.exit_code == 2
    assert message in result.output


def test_the_folder_runs_is_the_default(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "runs/r", 4, 3.5)
    assert bitnet("runs", "ls").output.startswith("r     ")
    assert "nothing to push or pull" in bitnet("runs", "pull", "r").output


def test_folders_that_are_no_runs_are_left_out(tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    write_run(tmp_path / "r", 4, 3.5)
    store = _open_local(LocalStoreConfig(root=tmp_path))
    assert [run.name for run in list_runs(store, tmp_path)] == ["r"]


def test_differences_tell_what_one_side_lacks() -> None:
    assert differences({"a": 1, "b": 2}, {"b": 2, "c": 3}) == {"a": (1, None), "c": (None, 3)}
