"""The engine on small fake stages: what runs, what is skipped and why, what survives a stop."""

import errno
import io
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from rich.console import Console

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError
from bitnet_cli.manifest.stage_needs import StageFacts
from bitnet_cli.pipeline.engine import Run, RunOptions, run_pipeline
from bitnet_cli.pipeline.run_or_skip import Request
from bitnet_cli.reporter.progress import Reporter
from bitnet_cli.stages.open_teacher import TeacherHandle
from bitnet_cli.stages.stage import Context, Stage
from bitnet_providers.contract import Capabilities, ProviderError, TeacherPlugin
from bitnet_storage.contract import StorageError


@attrs.frozen
class RunSection:
    name: str = "fake"
    seed: int = 7
    stages: tuple[str, ...] | None = None


@attrs.frozen
class Tagged:
    kind: str = "folder"
    options: Any = None


@attrs.frozen
class Collect:
    top_k: int = 20
    prompts: Path | None = attrs.field(default=None, metadata={"path": True})


@attrs.frozen
class Train:
    steps: int = 200


@attrs.frozen
class Fake:
    run: RunSection = RunSection()
    store: Tagged = Tagged()
    teacher: Tagged | None = Tagged(kind="fake")
    collect: Collect | None = Collect()
    train: Train | None = Train()


class FolderStore:
    """A store of one folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def run_folder(self, run_name: str) -> Path:
        folder = self.root / run_name
        folder.mkdir(parents=True, exist_ok=True)
        return folder

    def cache_environment(self) -> dict[str, str]:
        return {}

    def free_bytes(self) -> int:
        return 10**9


class FakeTeacher:
    """Counts how often it is opened and asked."""

    def __init__(self) -> None:
        self.asked = 0
        self.closed = 0

    async def aclose(self) -> None:
        self.closed += 1


def collect(context: Context) -> dict[str, Any]:
    async def ask(teacher: Any) -> None:
        teacher.asked += 1

    context.teacher.ask(ask)
    # the journal: an answer that is there is not asked for again
    (context.folder / "raw" / "journal").write_text("paid")
    run_folder.write_text(context.folder / "raw" / "shard_000.txt", f"k={context.manifest.collect.top_k}")
    context.on_progress(1, 1, "one answer")
    return {"headline": "1 answer"}


def train(context: Context) -> dict[str, Any]:
    raw = (context.folder / "raw" / "shard_000.txt").read_text()
    steps = context.folder / "checkpoints" / "steps.txt"
    before = steps.read_text() + " then " if steps.exists() else ""
    run_folder.write_text(context.folder / "logs" / "metrics.txt", "loss")
    run_folder.write_text(steps, f"{before}{context.manifest.train.steps} on {raw}")
    return {"resume": context.resume}


def report(context: Context) -> dict[str, Any]:
    run_folder.write_text(context.folder / "report.md", "report")
    return {}


COLLECT = Stage(
    facts=StageFacts(name="collect", needs=("teacher", "collect")),
    run=collect,
    writes=("raw/shard_*.txt",),
    sections=("run.seed",),
    asks_teacher=True,
    keeps_writes=True,
    goes_on_from="raw/journal",
)
TRAIN = Stage(
    facts=StageFacts(name="train", needs=("train",)),
    run=train,
    reads=COLLECT.writes,
    writes=("checkpoints/**/*", "logs/metrics.txt"),
    unwatched=("logs/metrics.txt",),
    goes_on_from="checkpoints/steps.txt",
)
REPORT = Stage(facts=StageFacts(name="report"), run=report, reads_if_there=TRAIN.writes, writes=("report.md",))
PIPELINE = (COLLECT, TRAIN, REPORT)


@attrs.define
class Bench:
    """Runs the fake pipeline in one folder, again and again."""

    root: Path
    manifest: Fake = Fake()
    pipeline: tuple[Stage, ...] = PIPELINE
    external: bool = False
    teacher: FakeTeacher = attrs.Factory(FakeTeacher)
    opened: int = 0
    output: str = ""
    store: Any = None

    @property
    def folder(self) -> Path:
        return self.root / "fake"

    def run(self, discard_paid: bool = False, **request: Any) -> int:
        def open_teacher(options: Any) -> Any:
            self.opened += 1
            return self.teacher

        capabilities = Capabilities(
            max_top_logprobs=20, token_ids=True, token_bytes=False, scoring=True, external=self.external
        )
        plugin = TeacherPlugin(name="fake", options=object, capabilities=capabilities, open=open_teacher)
        store = self.store or SimpleNamespace(open=lambda options: FolderStore(self.root))
        plugins = SimpleNamespace(require_store=lambda kind: store, all=())
        stream = io.StringIO()
        wanted = Request(**request)
        code = run_pipeline(
            Run(
                manifest=self.manifest,  # type: ignore[arg-type]
                resolved_toml='[run]\nname = "fake"\n',
                plugins=plugins,  # type: ignore[arg-type]
                pipeline=self.pipeline,
                request=wanted,
                reporter=Reporter(Console(file=stream, width=500)),
                command="bitnet run m.toml",
                teacher=TeacherHandle(plugin, None, skip_external=wanted.skip_external),
                options=RunOptions(discard_paid=discard_paid),
            )
        )
        self.output = stream.getvalue()
        return code

    def change(self, **sections: Any) -> None:
        self.manifest = attrs.evolve(self.manifest, **sections)

    def ran(self) -> list[str]:
        """The stages of the last run that did something."""
        words = (" running: ", " resuming: ", " again: ")
        return [line.split()[0] for line in self.output.splitlines() if any(word in line for word in words)]

    def line(self, stage: str) -> str:
        """The first thing said of a stage."""
        return next(line for line in self.output.splitlines() if line.startswith(f"{stage:<9} "))

    def replace(self, name: str, run: Callable[[Context], dict[str, Any]]) -> None:
        self.pipeline = tuple(attrs.evolve(stage, run=run) if stage.name == name else stage for stage in self.pipeline)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(root=tmp_path / "runs")


def failing(error: BaseException) -> Callable[[Context], dict[str, Any]]:
    def run(context: Context) -> dict[str, Any]:
        raise error

    return run


def test_runs_all_then_skips_all_and_says_why(bench: Bench) -> None:
    assert bench.run() == 0
    assert bench.ran() == ["collect", "train", "report"]
    assert "collect   done in" in bench.output
    assert "· 1 answer" in bench.output
    assert f"run folder: {bench.folder}" in bench.output  # there is no report.html to name

    environment = (bench.folder / "environment.json").stat().st_mtime_ns
    opened = bench.opened
    assert bench.run() == 0
    assert bench.ran() == []
    for stage in ("collect", "train", "report"):
        line = bench.line(stage)
        assert line.startswith(f"{stage:<9} skipped: done 2")
        assert line.endswith("UTC with the same settings and inputs")
    assert bench.opened == opened, "the teacher is not opened when nothing asks it"
    assert (bench.folder / "environment.json").stat().st_mtime_ns == environment


def test_redoes_what_changed_and_says_what(bench: Bench) -> None:
    bench.run()
    bench.change(train=Train(steps=300))
    assert bench.run() == 0
    assert bench.ran() == ["train", "report"]
    assert bench.line("train") == "train     running: train.steps 200 → 300"
    assert bench.line("report") == "report    running: its input checkpoints/**/* has changed (stage train)"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "300 on k=20"


def test_a_redone_stage_with_the_same_output_redoes_nothing_after_it(bench: Bench) -> None:
    bench.run()
    bench.change(run=RunSection(seed=8))
    bench.run()
    assert bench.ran() == ["collect"]
    assert bench.line("collect") == "collect   running: run.seed 7 → 8"


def test_content_of_a_named_file_counts_not_its_place(bench: Bench, tmp_path: Path) -> None:
    first, second = tmp_path / "a.txt", tmp_path / "b.txt"
    first.write_text("one")
    second.write_text("one")
    bench.change(collect=Collect(prompts=first))
    bench.run()
    bench.change(collect=Collect(prompts=second))
    bench.run()
    assert bench.ran() == []
    second.write_text("two")
    bench.run()
    assert bench.line("collect") == "collect   running: what collect.prompts names has changed"


def test_a_moved_run_folder_is_still_done(bench: Bench, tmp_path: Path) -> None:
    bench.run()
    bench.root.rename(tmp_path / "elsewhere")
    bench.root = tmp_path / "elsewhere"
    bench.run()
    assert bench.ran() == []


def test_from_redoes_that_stage_and_all_after(bench: Bench) -> None:
    bench.run()
    bench.run(start="train")
    assert bench.ran() == ["train", "report"]
    assert bench.line("train") == "train     running: --from train"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20", "nothing of the old run is left"


def test_fresh_redoes_all_and_keeps_the_journal(bench: Bench) -> None:
    bench.run()
    bench.run(fresh=True)
    assert bench.ran() == ["collect", "train", "report"]
    assert (bench.folder / "raw" / "journal").read_text() == "paid"


def test_fresh_does_not_pay_an_external_teacher_again(bench: Bench) -> None:
    bench.external = True
    bench.run()
    bench.run(fresh=True)
    assert bench.ran() == ["train", "report"]
    assert "kept: done" in bench.line("collect")
    assert "`--from collect` asks the teacher again" in bench.line("collect")
    bench.run(start="collect")
    assert bench.ran() == ["collect", "train", "report"]
    assert (bench.folder / "raw" / "journal").exists()


def test_only_discard_paid_deletes_what_was_paid_for(bench: Bench) -> None:
    bench.external = True
    bench.run()
    seen: list[bool] = []

    def look(context: Context) -> dict[str, Any]:
        seen.append(all((context.folder / "raw" / name).exists() for name in ("journal", "shard_000.txt")))
        return collect(context)

    bench.replace("collect", look)
    bench.run(start="collect")
    bench.change(collect=Collect(top_k=5))
    bench.run()
    assert seen == [True, True]
    assert bench.run(discard_paid=True) == 0
    assert seen == [True, True, False]
    assert "--discard-paid: deleted" in bench.output


def test_missing_output_is_made_again(bench: Bench) -> None:
    bench.run()
    (bench.folder / "checkpoints" / "steps.txt").unlink()
    bench.run()
    assert bench.line("train") == "train     running: checkpoints/steps.txt is missing"
    (bench.folder / "report.md").write_text("someone wrote here")
    bench.run()
    assert bench.ran() == ["report"]
    assert "report.md was changed (6 → 18 bytes)" in bench.line("report")


def test_a_damaged_record_counts_as_not_done(bench: Bench) -> None:
    bench.run()
    done = run_folder.done_path(bench.folder, "train")
    for damage in ("{", "[]", '{"format": 1}', done.read_text().replace('"format": 1', '"format": 99')):
        done.write_text(damage)
        assert bench.run() == 0
        assert "train" in bench.ran()


def test_missing_input_names_the_stage_that_makes_it(bench: Bench) -> None:
    assert bench.run(only=("train",)) == 2
    assert "train can't run: it reads raw/shard_*.txt, which stage collect makes  → make it with: " in bench.output
    assert "make it with: bitnet run m.toml --stages collect" in bench.output


def test_lost_input_of_a_stage_left_out_names_it_too(bench: Bench) -> None:
    bench.run()
    (bench.folder / "raw" / "shard_000.txt").unlink()
    assert bench.run(only=("train",)) == 2
    assert "which stage collect makes, and raw/shard_000.txt is missing" in bench.output


def test_files_put_there_by_hand_are_an_input(bench: Bench) -> None:
    folder = bench.folder / "raw"
    folder.mkdir(parents=True)
    (folder / "shard_000.txt").write_text("from another run")
    assert bench.run(only=("train",)) == 0
    bench.run(only=("train",))
    assert bench.ran() == []
    (folder / "shard_000.txt").write_text("from a third")
    bench.run(only=("train",))
    assert bench.line("train") == "train     running: its input raw/shard_*.txt has changed (stage collect)"


def test_unknown_stage_names(bench: Bench) -> None:
    assert bench.run(only=("trian",)) == 2
    assert '--stages: there is no stage "trian"  → did you mean "train"?' in bench.output
    assert bench.run(start="colect") == 2
    assert '--from: "colect" is no stage of this run  → did you mean "collect"?' in bench.output
    assert "Then run" not in bench.output, "the same again would be refused again"
    assert not bench.folder.exists()


def test_a_stage_without_its_section_is_left_out_or_an_error(bench: Bench) -> None:
    bench.change(train=None)
    assert bench.run() == 0
    assert bench.ran() == ["collect", "report"]
    assert bench.run(only=("train",)) == 2
    assert "stage train needs a [train] table in the manifest" in bench.output


def test_skip_external_skips_what_needs_the_teacher_and_what_needs_that(bench: Bench) -> None:
    bench.external = True
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["report"]
    assert bench.line("collect") == "collect   skipped: SKIP_EXTERNAL=1, and its teacher is external"
    assert bench.line("train") == (
        "train     skipped: it reads raw/shard_*.txt, which stage collect makes, which SKIP_EXTERNAL=1 skipped"
    )
    assert bench.opened == 0
    assert bench.run() == 0
    assert bench.run(skip_external=True) == 0
    assert "with the same settings" in bench.line("collect")
    bench.change(collect=Collect(top_k=3), train=Train(steps=1))
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["train", "report"], "what is there is used"


def test_skip_external_leaves_a_local_teacher_alone(bench: Bench) -> None:
    assert bench.run(skip_external=True) == 0
    assert bench.ran() == ["collect", "train", "report"]


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


def test_a_stopped_stage_resumes_with_the_same_settings_only(bench: Bench) -> None:
    def stop_half_way(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "checkpoints" / "steps.txt", "half")
        raise KeyboardInterrupt

    bench.replace("train", stop_half_way)
    assert bench.run() == 130
    bench.replace("train", train)
    bench.run()
    assert bench.line("train") == "train     resuming: was stopped before it finished"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "half then 200 on k=20"

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    bench.run()
    bench.replace("train", train)
    bench.change(train=Train(steps=6))
    bench.run()
    assert bench.line("train") == "train     again: was stopped before it finished"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "6 on k=20"


def test_from_starts_a_stopped_stage_over(bench: Bench) -> None:
    def stop_half_way(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "checkpoints" / "steps.txt", "half")
        raise KeyboardInterrupt

    bench.replace("train", stop_half_way)
    bench.run()
    bench.replace("train", train)
    bench.run(start="train")
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


def test_the_teacher_is_closed_when_no_stage_needs_it_any_more(bench: Bench) -> None:
    closed: list[int] = []

    def look(context: Context) -> dict[str, Any]:
        closed.append(bench.teacher.closed)
        return train(context)

    bench.replace("train", look)
    bench.run()
    assert closed == [1]
    assert (bench.opened, bench.teacher.asked, bench.teacher.closed) == (1, 1, 1)


def test_a_stage_that_was_stopped_is_no_input(bench: Bench) -> None:
    def stop_half_way(context: Context) -> dict[str, Any]:
        (context.folder / "raw" / "shard_000.txt").write_text("half")
        raise KeyboardInterrupt

    bench.replace("collect", stop_half_way)
    bench.run()
    assert bench.run(only=("train",)) == 2
    assert "that stage was stopped before it finished" in bench.output


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


@pytest.mark.slow
@pytest.mark.parametrize("error", [UserError("no layer 99"), KeyboardInterrupt(), MemoryError()])
@pytest.mark.parametrize("forced", [False, True])
def test_a_failed_stage_leaves_what_was_there_before(bench: Bench, error: BaseException, forced: bool) -> None:
    bench.run()
    bench.change(collect=Collect(top_k=3), train=Train(steps=5))
    bench.run()
    record = run_folder.done_path(bench.folder, "train").read_text()

    def fail(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "logs" / "metrics.txt", "a first row, no checkpoint")
        raise error

    bench.replace("train", fail)
    if not forced:
        bench.change(train=Train(steps=6))
    assert bench.run(start="train" if forced else None) != 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "5 on k=3"
    assert (bench.folder / "logs" / "metrics.txt").read_text() == "loss"
    assert run_folder.done_path(bench.folder, "train").read_text() == record
    bench.pipeline = PIPELINE
    bench.change(train=Train(steps=5))
    assert bench.run() == 0
    assert bench.ran() == []
    bench.change(train=Train(steps=6))
    assert bench.run() == 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "6 on k=3"
    assert not run_folder.before_path(bench.folder, "train").exists()


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


def grown(bench: Bench) -> None:
    bench.pipeline = tuple(
        attrs.evolve(stage, may_grow=("train.steps",), keeps_former=True) if stage.name == "train" else stage
        for stage in bench.pipeline
    )


def test_more_of_what_may_grow_goes_on(bench: Bench) -> None:
    grown(bench)
    bench.run()
    bench.change(train=Train(steps=300))
    assert bench.run() == 0
    assert bench.line("train") == "train     resuming: train.steps 200 → 300"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20 then 300 on k=20"
    assert not (bench.folder / "set_aside").exists()

    def stop(context: Context) -> dict[str, Any]:
        raise KeyboardInterrupt

    bench.replace("train", stop)
    bench.change(train=Train(steps=350))
    assert bench.run() == 130
    bench.replace("train", train)
    bench.change(train=Train(steps=400))
    assert bench.run() == 0
    assert (bench.folder / "checkpoints" / "steps.txt").read_text().endswith("then 300 on k=20 then 400 on k=20")


def test_what_other_settings_have_made_is_set_aside_and_named(bench: Bench) -> None:
    grown(bench)
    bench.run()
    done = run_folder.read_done(bench.folder, "train")
    assert done is not None
    bench.change(train=Train(steps=100))
    assert bench.run() == 0
    aside = bench.folder / "set_aside" / done.fingerprint[:8]
    assert f"what other settings had made is set aside in {aside}" in bench.output
    assert (aside / "checkpoints" / "steps.txt").read_text() == "200 on k=20"
    assert run_folder.read_done(aside, "train") == done
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "100 on k=20"
    bench.change(collect=Collect(top_k=3))
    assert bench.run() == 0
    assert len(list((bench.folder / "set_aside").iterdir())) == 2
    assert bench.run(start="train") == 0, "the same once more"
    assert len(list((bench.folder / "set_aside").iterdir())) == 2


def test_an_attempt_that_gives_way_is_set_aside_too(bench: Bench) -> None:
    grown(bench)
    bench.run()

    def stop_half_way(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "checkpoints" / "steps.txt", "half")
        raise KeyboardInterrupt

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    assert bench.run() == 130
    bench.replace("train", train)
    bench.change(train=Train(steps=4))
    assert bench.run() == 0
    kept = {path.read_text() for path in (bench.folder / "set_aside").glob("*/checkpoints/steps.txt")}
    assert kept == {"half", "200 on k=20"}


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


def test_a_former_training_waits_beside_a_stopped_one(bench: Bench) -> None:
    bench.run()

    def stop_half_way(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "checkpoints" / "steps.txt", "half")
        raise KeyboardInterrupt

    bench.replace("train", stop_half_way)
    bench.change(train=Train(steps=5))
    assert bench.run() == 130
    assert "what it had made before is kept in" in bench.output
    bench.replace("train", train)
    bench.change(train=Train(steps=200))
    assert bench.run() == 0
    assert "train     skipped: what was done before with the same settings is put back" in bench.output
    assert bench.ran() == []
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


def test_a_kill_while_results_are_moved_loses_nothing(bench: Bench) -> None:
    bench.run()
    run_folder.set_aside(bench.folder, "train", TRAIN.writes)
    assert not (bench.folder / "checkpoints" / "steps.txt").exists()
    assert bench.run() == 0
    assert bench.ran() == []
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20"


@pytest.mark.slow
@pytest.mark.parametrize("damage", ["{", "", '{"format": 1, "stage": "train"}'])
def test_an_unreadable_record_does_not_clear_what_can_be_gone_on_from(bench: Bench, damage: str) -> None:
    bench.run()
    run_folder.done_path(bench.folder, "train").write_text(damage)
    assert bench.run() == 0
    assert bench.line("train") == "train     running: its record stages/train/done.json can't be read"
    assert (bench.folder / "checkpoints" / "steps.txt").read_text() == "200 on k=20 then 200 on k=20"


def test_changed_metrics_do_not_redo_a_training(bench: Bench) -> None:
    bench.run()
    (bench.folder / "logs" / "metrics.txt").write_text("somebody looked at it and saved it")
    bench.run()
    assert bench.ran() == []


def test_a_stage_that_starts_over_does_not_say_that_it_resumes(bench: Bench) -> None:
    bench.replace("report", failing(KeyboardInterrupt()))
    bench.run()
    bench.pipeline = PIPELINE
    bench.run()
    assert bench.line("report") == "report    again: was stopped before it finished"


@pytest.mark.slow
@pytest.mark.parametrize(
    ("field", "value"),
    [("finished", 5), ("outputs", {"checkpoints/**/*": {"digest": "x", "files": 3}}), ("inputs", []), ("settings", 1),
     ("seconds", "long"), ("outputs", {"checkpoints/**/*": {"digest": "x", "files": {"a": "b"}}})],
)  # fmt: skip
def test_a_record_of_wrong_types_is_no_record(bench: Bench, field: str, value: Any) -> None:
    bench.run()
    path = run_folder.done_path(bench.folder, "train")
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    assert run_folder.read_done(bench.folder, "train") is None
    assert bench.run() == 0
    assert "can't be read" in bench.line("train")


def test_a_stage_left_out_that_is_out_of_date_is_no_input(bench: Bench) -> None:
    def judge(context: Context) -> dict[str, Any]:
        run_folder.write_text(context.folder / "reports" / "judged.txt", "good")
        return {}

    facts = StageFacts(name="evaluate")
    evaluate = Stage(facts=facts, run=judge, reads=TRAIN.writes[:1], writes=("reports/judged.txt",))
    bench.pipeline = (COLLECT, TRAIN, evaluate, REPORT)
    assert bench.run(only=("collect", "train")) == 0
    bench.change(collect=Collect(top_k=3))
    assert bench.run(only=("collect",)) == 0
    assert bench.run(only=("evaluate",)) == 2
    assert "evaluate can't run: train, which it builds on, was done with other inputs" in bench.output
    assert "  → do it again with: bitnet run m.toml --stages train,evaluate" in bench.output
    assert bench.run(only=("train", "evaluate")) == 0
    bench.change(collect=Collect(top_k=4))
    assert bench.run(only=("collect", "evaluate")) == 2
    assert "--stages collect,train,evaluate" in bench.output


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
