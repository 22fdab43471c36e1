"""A worker of a sweep: one process for each task, so that a run that is killed takes nothing with it."""

import asyncio
import contextlib
import json
import sys
from collections import deque
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.contract import Ask
from bitnet_cli.errors import UserError
from bitnet_cli.sweeping.run_variant import VariantRun
from bitnet_cli.sweeping.schedule import Task


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
            "bitnet_cli.sweeping.run_variant",
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
