"""A worker of a sweep: one process for each task, so that a run that is killed takes nothing with it.

The process, ``python -m bitnet_cli.sweeping.worker JSON``, prints the events of its run (docs/events.md). What the run
shares with others it takes from their run folders.
"""

import asyncio
import contextlib
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.contract import Ask
from bitnet_cli.errors import UserError, user_errors
from bitnet_cli.pipeline import run_or_skip
from bitnet_cli.pipeline.engine import Run, RunOptions, open_run, run_pipeline
from bitnet_cli.pipeline.run_lock import run_lock
from bitnet_cli.pipeline.run_or_skip import State
from bitnet_cli.pipeline.share_results import share_results
from bitnet_cli.pipeline.stop_signals import end_as_ctrl_c
from bitnet_cli.reporter.progress import Reporter, open_reporter
from bitnet_cli.stages.storage import prepare_storage
from bitnet_cli.sweeping.schedule import OF_ITS_OWN, Task


@attrs.frozen(kw_only=True)
class VariantRun:
    """What to run, as plain JSON values."""

    manifest: str
    overrides: list[str]
    stages: list[str]
    shared: list[str]
    """Stages that another run has done; where none is found to have done it, it is not done here either."""
    others: list[str]
    """Names of the runs to take it from."""
    env_file: str | None
    yes: bool
    again: str
    """The command that goes on."""


@attrs.frozen(kw_only=True)
class Job:
    """What all tasks of a sweep have in common."""

    manifest: Path
    overrides: tuple[str, ...]
    env_file: Path | None
    yes: bool
    runs: tuple[str, ...]
    """Names of all runs that results may be taken from."""
    folder: Path
    """For ``VARIANT.jsonl`` (events) and ``VARIANT.log`` (what else is printed)."""
    cwd: Path
    again: str

    def run_of(self, task: Task) -> VariantRun:
        return VariantRun(
            manifest=str(self.manifest),
            overrides=[*self.overrides, *task.variant.settings],
            stages=list(task.stages),
            shared=list(task.shared),
            others=[name for name in self.runs if name != task.variant.name],
            env_file=None if self.env_file is None else str(self.env_file),
            yes=self.yes,
            again=self.again,
        )


@attrs.frozen
class SweepWorker:
    """A `Worker` (`bitnet_cli.contract`)."""

    job: Job

    async def do(self, task: Task) -> dict[str, Any]:
        """Returns the last event. Raises UserError where the run failed."""
        name, folder = task.variant.name, self.job.folder
        command = [
            sys.executable,
            "-m",
            "bitnet_cli.sweeping.worker",
            json.dumps(attrs.asdict(self.job.run_of(task))),
        ]
        with (folder / f"{name}.jsonl").open("ab") as events, (folder / f"{name}.log").open("ab") as log:
            before = events.tell()
            process = await asyncio.create_subprocess_exec(*command, stdout=events, stderr=log, cwd=self.job.cwd)
            try:
                code = await process.wait()
            finally:
                if process.returncode is None:  # the sweep is stopped: the run keeps what it has
                    with contextlib.suppress(ProcessLookupError):
                        process.terminate()
                    await process.wait()
        last = last_event(folder / f"{name}.jsonl", before)
        if code:
            why = str(last.get("why") or f"its process ended with code {code}; see {folder / f'{name}.log'}")
            raise UserError(f"{last['stage']}: {why}" if last.get("stage") else why, str(last.get("fix") or ""))
        return last

    async def aclose(self) -> None:
        return


@attrs.frozen
class OpenSweepWorker:
    """What opens a worker; it goes to where the worker is."""

    job: Job

    async def __call__(self, number: int, ask: Ask) -> SweepWorker:
        job = self.job
        for place in filter(None, (job.folder, job.manifest, job.cwd, job.env_file)):
            if not place.exists():
                raise UserError(
                    f"worker {number} does not see {place}: it is on another machine",
                    "put the manifest, what it names and store.root on a disk that all machines share, under one path",
                )
        return SweepWorker(job)


def last_event(file: Path, before: int) -> dict[str, Any]:
    """The last line as JSON, of what follows these bytes of earlier attempts; empty where there is none."""
    with file.open("rb") as lines:
        lines.seek(before)
        last = deque(lines, maxlen=1)
    try:
        value = json.loads(last[0]) if last else {}
    except ValueError:  # killed while it wrote
        return {}
    return value if isinstance(value, dict) else {}


def run_variant(task: VariantRun, reporter: Reporter) -> int:
    """Take what is shared, run the rest; returns the exit code. Raises UserError."""
    options = RunOptions(
        overrides=task.overrides,
        env_file=None if task.env_file is None else Path(task.env_file),
        only=tuple(task.stages),
        yes=task.yes,
        again=task.again,
    )
    run = open_run(Path(task.manifest), options, reporter)
    # The workers are the sweep's: a run asks for none of its own.
    run = attrs.evolve(run, manifest=attrs.evolve(run.manifest, cluster=None))
    _take_shared(run, task)
    return run_pipeline(run)


def _take_shared(run: Run, task: VariantRun) -> None:
    _, folder = prepare_storage(run.manifest, run.plugins)
    selected = run_or_skip.select(run.pipeline, run.manifest, run.request)
    state = State(run.pipeline, selected, run.manifest, folder, run.teacher.external, run.request)
    others = [folder.with_name(name) for name in task.others]
    with run_lock(folder):
        taken = share_results(state, others, [stage for stage in task.stages if stage not in OF_ITS_OWN])
        for stage, donor in taken.items():
            run.reporter.stage_line(stage, f"shared with {donor.name}: the same settings and inputs")
        missing = [
            stage.name
            for stage in selected
            if stage.name in task.shared and run_or_skip.decide(state, stage).action == "run"
        ]
    if missing:
        raise UserError(
            f"{', '.join(missing)}: done by another run of this sweep, which can't be seen from here ({folder.parent})",
            "let all workers have the same store.root (one machine, or a file system that they share)",
        )


def main() -> None:
    task = VariantRun(**json.loads(sys.argv[1]))
    with user_errors(), end_as_ctrl_c() as told, open_reporter(task.again, quiet=False, as_json=True) as reporter:
        code = run_variant(task, reporter)
    sys.exit(told.exit_code(code))


if __name__ == "__main__":
    main()
