"""Files appear whole or not at all; records come back as they were written."""

import os
from pathlib import Path

import pytest

from bitnet_cli import run_folder
from bitnet_cli.run_folder import Artifact, Done


def done(folder: Path) -> Done:
    (folder / "data").mkdir(parents=True, exist_ok=True)
    (folder / "data" / "a").write_text("12345")
    return Done(
        stage="project", fingerprint="f", finished="2026-11-22T23:00:00+00:00", seconds=1.5, settings={"x": [1]},
        files={"p": "d"}, formats={"raw": 1}, inputs={"i": "d"},
        outputs={"data/*": Artifact(digest="d", files={"data/a": 5})}, summary={"é": None}, packages={"torch": "2"},
    )  # fmt: skip


def test_a_record_comes_back(tmp_path: Path) -> None:
    record = done(tmp_path)
    run_folder.write_done(tmp_path, record)
    assert run_folder.read_done(tmp_path, "project") == record
    assert run_folder.read_done(tmp_path, "train") is None


def test_a_failed_write_leaves_the_old_file_and_no_litter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    run_folder.write_text(path, "old")

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        run_folder.write_text(path, "new")
    assert path.read_text() == "old"
    assert [each.name for each in tmp_path.iterdir()] == ["x.json"]


def test_lost_outputs_are_named(tmp_path: Path) -> None:
    record = done(tmp_path)
    assert run_folder.lost_output(tmp_path, record) is None
    (tmp_path / "data" / "a").write_text("123")
    assert run_folder.lost_output(tmp_path, record) == "data/a was changed (5 → 3 bytes)"
    (tmp_path / "data" / "a").unlink()
    assert run_folder.lost_output(tmp_path, record) == "data/a is missing"


def test_deleting_stays_within_the_pattern(tmp_path: Path) -> None:
    for name in (
        "checkpoints/step_1/deep/model",
        "checkpoints/step_1/model",
        "checkpoints/.step_2.partial/model",
        "raw/a",
    ):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    assert run_folder.delete_files(tmp_path, "checkpoints/**/*") == 3
    assert sorted(path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*")) == [
        "checkpoints",
        "raw",
        "raw/a",
    ]


def test_temporary_files_are_no_outputs(tmp_path: Path) -> None:
    (tmp_path / ".a.123.tmp").write_text("half")
    (tmp_path / "a").write_text("whole")
    assert run_folder.find_files(tmp_path, "*") == [tmp_path / "a"]


def test_what_is_a_run_folder(tmp_path: Path) -> None:
    assert not run_folder.is_run_folder(tmp_path)
    run_folder.make_folders(tmp_path)
    assert run_folder.is_run_folder(tmp_path)
