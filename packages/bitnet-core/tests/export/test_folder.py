"""Nothing of anybody else's is overwritten, nothing half-written is seen, and damaged checkpoints are told."""

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from bitnet_core.config.export import PackedOptions
from bitnet_core.errors import CoreError
from bitnet_core.export import folder as exports
from bitnet_core.export.folder import export
from bitnet_core.export.load_student import Student
from bitnet_core.export.packed import packed_exporter
from bitnet_core.hookspecs import Exporter
from bitnet_core.model.read_checkpoint import FORMAT_VERSION


@pytest.fixture
def run(checkpoint: Path, tmp_path: Path) -> Path:
    folder = tmp_path / "run"
    shutil.copytree(checkpoint, folder / "checkpoints/step_7")
    return folder


def note(text: str, *, fails: bool = False) -> Exporter:
    def write(student: Student, folder: Path) -> Mapping[str, Any]:
        (folder / "note.txt").write_text(text)
        (folder / "more").mkdir()
        (folder / "more/deep.txt").write_text(text)
        if fails:
            raise OSError(28, "No space left on device")
        return {"note.txt": {"words": len(text.split())}}

    return Exporter(targets=("note.txt", "more"), write=write)


def write(run: Path, text: str, **options: Any) -> dict[str, Any]:
    return export(run / "checkpoints/step_7", {"note": note(text)}, run / "exports", run=run, **options)


def test_an_earlier_export_of_the_run_is_replaced_even_after_a_move(run: Path) -> None:
    report = write(run, "one two")
    assert report["checkpoint"] == "step_7"
    assert report["exports"]["note.txt"] == {"kind": "note", "bytes": 7, "files": ["note.txt"], "words": 2}
    assert report["exports"]["more"]["files"] == ["more/deep.txt"]
    moved = run.rename(run.with_name("moved"))
    write(moved, "three")
    assert (moved / "exports/note.txt").read_text() == "three"
    assert sorted(path.name for path in (moved / "exports").iterdir()) == ["exports.json", "more", "note.txt"]


@pytest.mark.parametrize("target", ["note.txt", "more"])
def test_what_is_not_ours_is_not_overwritten(run: Path, target: str) -> None:
    (run / "exports" / target).mkdir(parents=True)
    (run / "exports" / target / "mine").write_text("a week's work")
    with pytest.raises(CoreError, match=rf"{target} is there already and is no earlier export of this run.*--force"):
        write(run, "one")
    assert (run / "exports" / target / "mine").read_text() == "a week's work"
    assert [path.name for path in (run / "exports").iterdir()] == [target]


def test_another_runs_exports_are_not_overwritten(run: Path, checkpoint: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    export(checkpoint, {"note": note("theirs")}, out)
    with pytest.raises(CoreError, match="no earlier export of this run"):
        export(run / "checkpoints/step_7", {"note": note("ours")}, out, run=run)
    assert (out / "note.txt").read_text() == "theirs"
    export(run / "checkpoints/step_7", {"note": note("ours")}, out, run=run, force=True)
    assert (out / "note.txt").read_text() == "ours"


def test_a_full_disk_leaves_what_was_there(run: Path) -> None:
    write(run, "first")
    with pytest.raises(CoreError, match=r"can't be written .*No space left"):
        export(run / "checkpoints/step_7", {"note": note("second", fails=True)}, run / "exports", run=run)
    assert (run / "exports/note.txt").read_text() == "first"
    assert not [path for path in (run / "exports").iterdir() if path.name.startswith(".")]


def test_a_rename_that_fails_puts_the_old_folder_back(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(run, "first")
    rename = Path.rename

    def broken(self: Path, target: Path) -> Path:
        if self.parent.name == ".note.partial":
            raise OSError(5, "Input/output error")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", broken)
    with pytest.raises(CoreError, match="Input/output error"):
        write(run, "second")
    assert (run / "exports/more/deep.txt").read_text() == "first"


def test_a_damaged_record_makes_nothing_ours(run: Path) -> None:
    write(run, "first")
    (run / "exports" / exports.RECORD).write_text("{")
    with pytest.raises(CoreError, match="no earlier export of this run"):
        write(run, "second")


def test_two_exporters_of_one_target_are_refused(run: Path) -> None:
    with pytest.raises(CoreError, match=r"a and b both make note\.txt"):
        export(run / "checkpoints/step_7", {"a": note("x"), "b": note("y")}, run / "exports", run=run)


def test_publishing_comes_after_the_files_have_their_names_and_can_be_barred(run: Path) -> None:
    seen = []
    base = note("x")
    exporter = Exporter(
        targets=base.targets,
        write=base.write,
        publish=lambda out: seen.append((out / "note.txt").read_text()) or "https://hub.invalid/x",  # type: ignore[func-returns-value]
    )
    export(run / "checkpoints/step_7", {"note": exporter}, run / "exports", run=run, publish=False)
    assert seen == []
    report = export(run / "checkpoints/step_7", {"note": exporter}, run / "exports", run=run)
    assert seen == ["x"]
    assert report["exports"]["note.txt"]["published"] == "https://hub.invalid/x"


# Damaged checkpoints


def refused(run: Path) -> str:
    with pytest.raises(CoreError) as error:
        write(run, "one")
    assert not (run / "exports/note.txt").exists()
    return str(error.value)


def test_truncated_weights(run: Path) -> None:
    file = run / "checkpoints/step_7/model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])
    assert "model.safetensors: not a complete checkpoint" in refused(run)


def test_a_checkpoint_of_another_version(run: Path) -> None:
    record = {"version": FORMAT_VERSION + 1}
    (run / "checkpoints/step_7/training.json").write_text(json.dumps(record))
    assert f"checkpoint format {FORMAT_VERSION + 1}, this version reads 1 and {FORMAT_VERSION}" in refused(run)


def test_a_model_of_another_kind(run: Path) -> None:
    (run / "checkpoints/step_7/config.json").write_text('{"model_type": "llama"}')
    assert "a llama model, not a student" in refused(run)


def test_no_checkpoint_at_all(run: Path) -> None:
    shutil.rmtree(run / "checkpoints/step_7")
    assert "no checkpoint here" in refused(run)


def test_a_damaged_config(run: Path) -> None:
    (run / "checkpoints/step_7/config.json").write_text("[1")
    assert "config.json: can't be read" in refused(run)


def test_a_tokenizer_that_knows_more_words_than_the_model(run: Path) -> None:
    file = run / "checkpoints/step_7/tokenizer.json"
    record = json.loads(file.read_text())
    record["model"]["vocab"]["more"] = 500
    file.write_text(json.dumps(record))
    assert "the tokenizer has 501 tokens, the model knows 400" in refused(run)


def test_a_tokenizer_other_than_the_traces(run: Path) -> None:
    import numpy as np

    from bitnet_core.traces.schema import KDMetadata
    from bitnet_core.traces.write_shards import kd_table, write_kd_shard

    (run / "data").mkdir()
    columns = {
        "prompt_idx": np.zeros(1, np.int64), "sample_idx": np.zeros(1, np.int32), "step_idx": np.zeros(1, np.int32),
        "teacher_sample_id": np.zeros(1, np.int32), "other_logprob": np.zeros(1, np.float32),
        "is_struct_token": np.zeros(1, bool), "teacher_sample_text": [b"a"], "is_prompt": np.ones(1, bool),
        "has_kd": np.zeros(1, bool), "sample_logprob": np.zeros(1, np.float32), "split": ["train"],
    }  # fmt: skip
    write_kd_shard(
        run / "data/kd_shard_000.parquet",
        kd_table(columns, np.zeros((1, 2), np.int32), np.full((1, 2), -np.inf, np.float16)),
        KDMetadata(k=2, vocab_size=400, tokenizer_sha256="0" * 64, raw={}, projection={"id": "x"}),
    )
    assert "its tokenizer is not the one that the traces" in refused(run)


def test_an_export_is_no_checkpoint(checkpoint: Path, tmp_path: Path) -> None:
    export(checkpoint, {"packed": packed_exporter(PackedOptions())}, tmp_path)
    with pytest.raises(CoreError, match="this is a packed export already"):
        export(tmp_path / "packed", {"packed": packed_exporter(PackedOptions())}, tmp_path / "again")
