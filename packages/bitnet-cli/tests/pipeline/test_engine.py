"""The engine on small fake stages: what survives a stop, errors, checks, locks and the log."""

import errno
import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError
from bitnet_cli.stages.stage import Context
from bitnet_providers.contract import ProviderError
from bitnet_storage.contract import StorageError
from stage_bench import (
    COLLECT,
    PIPELINE,
    REPORT,
    TRAIN,
    Bench,
    Collect,
    Train,
    failing,
    train,
)


def test_skip_external_refuses_a_direct_call(bench: Bench) -> None:
    bench.external = True
    sneaky = attrs.evolve(COLLECT, asks_teacher=False)
    bench.pipeline = (sneaky, TRAIN, REPORT)
    assert bench.run(skip_external=True) == 2
    assert 'SKIP_EXTERNAL=1 forbids calling teacher "fake"' in bench.output
    assert bench.opened == 0


def test_a_crash_keeps_finished_stages_and_a_traceback(bench: Bench) -> None:
    bench.replace("train", failing(ValueError("the sums\ndo not add up")))
    assert bench.run() == 1
    assert "stage train failed unexpectedly: ValueError: the sums do not add up" in bench.output
    assert "go on with: bitnet run m.toml" in bench.output
    assert "Traceback" not in bench.output
    assert "in failing" not in bench.output
    assert "ValueError: the sums" in (bench.folder / "logs" / "error.txt").read_text()
    bench.replace("train", train)
    assert bench.run() == 0
    assert bench.ran() == ["train", "report"]
    assert "skipped: done" in bench.line("collect")


@pytest.mark.parametrize("stage", ["collect", "train", "report"])
def test_ctrl_c_in_every_stage(bench: Bench, stage: str) -> None:
    bench.replace(stage, failing(KeyboardInterrupt()))
    assert bench.run() == 130
    assert f"stopped in stage {stage}; finished stages are kept; go on with: bitnet run m.toml" in bench.output
    assert "Traceback" not in bench.output
    bench.pipeline = PIPELINE
    assert bench.run() == 0
    names = ["collect", "train", "report"]
    assert bench.ran() == names[names.index(stage) :]


def test_the_teacher_is_closed_when_no_stage_needs_it_any_more(bench: Bench) -> None:
    closed: list[int] = []

    def look(context: Context) -> dict[str, Any]:
        closed.append(bench.teacher.closed)
        return train(context)

    bench.replace("train", look)
    bench.run()
    assert closed == [1]
    assert (bench.opened, bench.teacher.asked, bench.teacher.closed) == (1, 1, 1)


@pytest.mark.parametrize("error", [UserError("why", "fix"), ProviderError("why  → fix"), StorageError("why", "fix")])
def test_user_errors_have_no_traceback(bench: Bench, error: Exception) -> None:
    bench.replace("train", failing(error))
    assert bench.run() == 2
    assert bench.output.splitlines()[-2:] == [
        "stage train failed: why  → fix",
        "Finished stages are kept; go on with: bitnet run m.toml",
    ]
    assert not (bench.folder / "logs" / "error.txt").exists()


def test_core_errors_and_bundles_of_errors(bench: Bench) -> None:
    from bitnet_core.errors import CoreError

    bundle = ExceptionGroup("tasks", [ValueError("a follow-up"), ExceptionGroup("more", [CoreError("why")])])
    bench.replace("train", failing(bundle))
    assert bench.run() == 2
    assert "stage train failed: why" in bench.output


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device", "/data/x.parquet"),
        OSError(errno.EDQUOT, "Disk quota exceeded", "/data/x.parquet"),
        RuntimeError('Error while serializing: IoError(Os { code: 28, kind: StorageFull, message: "..." })'),
    ],
)
def test_full_disk(bench: Bench, error: Exception) -> None:
    bench.replace("train", failing(error))
    assert bench.run() == 2
    assert "stage train failed: the disk is full" in bench.output
    assert "Free some space" in bench.output
    assert "go on with: bitnet run m.toml" in bench.output


def test_a_full_disk_within_another_error(bench: Bench) -> None:
    def run(context: Context) -> dict[str, Any]:
        try:
            raise OSError(errno.ENOSPC, "full")
        except OSError as error:
            raise RuntimeError("could not save") from error

    bench.replace("train", run)
    assert bench.run() == 2
    assert "stage train failed: the disk is full" in bench.output


def test_out_of_memory(bench: Bench) -> None:
    bench.replace("train", failing(MemoryError("cannot allocate 8 GB")))
    assert bench.run() == 2
    assert "Lower the batch size" in bench.output


def test_a_store_that_does_not_open(bench: Bench) -> None:
    def refuse(options: Any) -> Any:
        raise StorageError("store.root: read-only  → point it elsewhere")

    bench.store = SimpleNamespace(open=refuse)
    assert bench.run() == 2
    assert "the preparation failed: store.root: read-only  → point it elsewhere" in bench.output
    assert "Then run: bitnet run m.toml" in bench.output


def test_a_stage_that_writes_nothing_is_a_defect(bench: Bench) -> None:
    bench.replace("train", lambda context: {})
    assert bench.run() == 1
    assert "stage train finished, but wrote no checkpoints/**/*" in bench.output
    assert not run_folder.done_path(bench.folder, "train").exists()


def test_secrets_and_paths_are_not_in_the_record(bench: Bench, tmp_path: Path) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("x")
    bench.change(collect=Collect(prompts=prompts))
    bench.run()
    record = json.loads(run_folder.done_path(bench.folder, "collect").read_text())
    assert str(tmp_path) not in json.dumps(record)
    assert record["settings"] == {"collect.top_k": 20, "run.seed": 7, "teacher.kind": "fake", "teacher": None}


HOLDER = """
import sys, time
from pathlib import Path
from bitnet_cli.pipeline.run_lock import run_lock
with run_lock(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(300)
"""


def test_two_runs_in_one_folder(bench: Bench) -> None:
    holder = subprocess.Popen([sys.executable, "-c", HOLDER, str(bench.folder)], stdout=subprocess.PIPE, text=True)
    try:
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        assert bench.run() == 2
        assert f"another run is at work in {bench.folder} (process {holder.pid} on " in bench.output
        assert not run_folder.done_path(bench.folder, "collect").exists()
    finally:
        holder.kill()
        holder.communicate()
    # a killed run leaves its note behind, which holds nobody up
    assert (bench.folder / "stages" / ".lock.json").exists()
    assert bench.run() == 0


def test_lines_are_kept_in_the_log(bench: Bench) -> None:
    bench.run()
    log = (bench.folder / "logs" / "run.log").read_text()
    assert "collect   1/1 · 0 s · one answer" in log
    assert log.splitlines()[0].startswith("BitNet KDE · run fake")


def test_a_bit_that_flips_in_what_a_stage_reads_is_told(bench: Bench) -> None:
    """The size is as it was, so nothing is made again by itself; the stage that reads it says so before it starts."""
    bench.run()
    raw = bench.folder / "raw" / "shard_000.txt"
    raw.write_text("k=21")
    bench.change(train=Train(steps=201))
    assert bench.run() == 2
    assert "stage train can't read what stage collect made: raw/shard_000.txt is not what was written" in bench.output
    assert "make it again: bitnet run m.toml --from collect" in bench.output
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"
    assert run_folder.read_done(bench.folder, "train") is not None
    raw.write_text("k=20")
    assert bench.run() == 0


def test_all_stages_are_checked_before_the_first_starts(bench: Bench) -> None:
    bench.pipeline = tuple(
        attrs.evolve(stage, check=lambda manifest, plugins: [Problem("the package gguf is missing", "install it")])
        if stage.name == "report"
        else stage
        for stage in PIPELINE
    )
    assert bench.run() == 2
    assert "the package gguf is missing" in bench.output
    assert bench.ran() == []
    assert bench.opened == 0
    bench.pipeline = PIPELINE
    bench.run()
    paid = (bench.folder / "raw" / "journal").stat().st_mtime_ns
    bench.replace("collect", failing(UserError("never asked")))
    bench.pipeline = tuple(
        attrs.evolve(stage, check=lambda manifest, plugins: [Problem("no template")])
        if stage.name == "train"
        else stage
        for stage in bench.pipeline
    )
    assert bench.run(discard_paid=True) == 2
    assert (bench.folder / "raw" / "journal").stat().st_mtime_ns == paid, "nothing is deleted for a run that can't be"


def durable_bench(root: Path, work: str) -> Bench:
    """A machine whose runs are durable in ``root/durable``."""
    from bitnet_storage.backends.mounted_folder import FolderObjects
    from bitnet_storage.sync.synced_store import SyncedStore

    store = SyncedStore(objects=FolderObjects(root / "durable"), work=root / work, lease_seconds=5.0)
    return Bench(root=root / work, store=SimpleNamespace(open=lambda options: store))


def test_a_run_goes_on_at_another_machine(tmp_path: Path) -> None:
    first = durable_bench(tmp_path, "first")
    first.replace("train", failing(RuntimeError("the machine has had enough")))
    assert first.run() == 1
    assert "collect   durable: " in first.output
    second = durable_bench(tmp_path, "second")
    assert second.run() == 0
    assert second.ran() == ["train", "report"]
    assert second.opened == 0, "the teacher was asked on the first machine"
    third = durable_bench(tmp_path, "third")
    assert third.run() == 0
    assert third.ran() == []
    assert (third.folder / "report.md").read_text() == "report"


def test_what_a_stopped_stage_has_is_pushed_meanwhile(tmp_path: Path) -> None:
    first = durable_bench(tmp_path, "first")
    store = first.store.open(None)
    seen: list[set[str]] = []

    def train_for_long(context: Context) -> dict[str, Any]:
        (context.folder / "checkpoints" / "steps.txt").write_text("50")
        context.on_progress(1, 2, "")
        seen.append(set(store.snapshot("fake").files))
        raise SystemExit  # as if it were killed

    first.replace("train", train_for_long)
    object.__setattr__(store, "push_every", 0.0)
    with pytest.raises(SystemExit):
        first.run()
    assert {"checkpoints/steps.txt", "stages/train/started.json"} <= seen[0]
    second = durable_bench(tmp_path, "second")
    assert second.run() == 0
    assert "resuming" in second.line("train")
    assert (second.folder / "checkpoints/steps.txt").read_text() == "50 then 200 on k=20"
