"""One task of a sweep, in a process of its own: ``python -m bitnet_cli.sweeping.run_variant JSON``.

Prints the events of the run (docs/events.md). What it shares with others it takes from their run folders.
"""

import json
import sys
from pathlib import Path

import attrs

from bitnet_cli.errors import UserError, user_errors
from bitnet_cli.pipeline import run_or_skip
from bitnet_cli.pipeline.engine import Run, RunOptions, open_run, run_pipeline
from bitnet_cli.pipeline.run_lock import run_lock
from bitnet_cli.pipeline.run_or_skip import State
from bitnet_cli.pipeline.share_results import share_results
from bitnet_cli.pipeline.stop_signals import end_as_ctrl_c
from bitnet_cli.reporter.progress import Reporter, open_reporter
from bitnet_cli.stages.storage import prepare_storage
from bitnet_cli.sweeping.schedule import OF_ITS_OWN


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
