"""One process of a training on several devices or machines: ``torchrun ... -m bitnet_cli.train_worker MANIFEST``.

The manifest says everything, and the run folder that it names holds what the earlier stages have made. The same command
again goes on from the last checkpoint. `bitnet run` starts it too, on this machine's devices.
"""

import json
import os
import sys
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import click

from bitnet_cli.commands.shared_options import manifest_options
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.load import open_manifest
from bitnet_cli.pipeline import hub_names, run_or_skip
from bitnet_cli.pipeline.former_results import may_go_on
from bitnet_cli.pipeline.run_lock import run_lock
from bitnet_cli.stages import PIPELINE
from bitnet_cli.stages.open_teacher import TeacherHandle
from bitnet_cli.stages.stage import Context
from bitnet_cli.stages.storage import known_folder, prepare_storage
from bitnet_cli.stages.train import STAGE, job_of

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest

Event = Callable[[str, Any], None]
"""``event("progress", [done, total, note])``, and "summary", "error" or "done" at the end."""


@click.command()
@manifest_options
@click.option("--within-run", is_flag=True, help="As `bitnet run` starts it, which holds the run folder's lock.")
def worker(manifest: Path, overrides: tuple[str, ...], env_file: Path | None, within_run: bool) -> None:
    """Train what MANIFEST says, as one of the processes that torchrun has started."""
    code = worked(manifest, overrides, env_file, within_run=within_run)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)  # gloo's threads have been seen to abort the interpreter's own way out


def worked(manifest: Path, overrides: Sequence[str], env_file: Path | None, *, within_run: bool) -> int:
    """The training, its end reported; the exit code."""
    from bitnet_core.errors import CoreError
    from bitnet_providers.contract import ProviderError
    from bitnet_storage.contract import StorageError

    is_first = os.environ.get("RANK", "0") == "0"
    event: Event = _as_json if within_run else _as_text
    event = event if is_first else _untold
    try:
        context = open_context(manifest, overrides, env_file, lambda *progress: event("progress", progress))
        if not within_run:
            _check_inputs(context)
        with run_lock(context.folder) if is_first and not within_run else nullcontext():
            from bitnet_core.training.loop import train

            event("summary", train(job_of(context), context.on_progress))
    except (CoreError, UserError, ProviderError, StorageError) as error:
        event("error", problem_of(error))
        return 2
    except RuntimeError as error:
        if not _is_lost_process(error):
            raise
        event("error", Problem(f"another process of this training is gone ({error})", GO_ON))
        return 1
    return 0


GO_ON = "start the same command again on every machine: it goes on from the last checkpoint"


def open_context(
    manifest: Path, overrides: Sequence[str], env_file: Path | None, on_progress: Callable[[int, int, str], None]
) -> Context:
    """The train stage's own, as `bitnet run` would make it. Raises UserError, StorageError."""
    opened = open_manifest(manifest, overrides, env_file)
    pinned = hub_names.pinned_manifest(opened.manifest, known_folder(opened.manifest), ask=True)
    absent = run_or_skip.absent_sections(STAGE, pinned)
    if absent:
        raise UserError(f"{manifest}: there is no [{absent[0]}] table, so there is nothing to train", "add one")
    store, folder = prepare_storage(pinned, opened.plugins)
    plugin = None if pinned.teacher is None else opened.plugins.require_teacher(pinned.teacher.kind)
    options = None if pinned.teacher is None else pinned.teacher.options
    state = _state(pinned, folder)
    identity = run_or_skip.identify(state, state.selected[0])
    return Context(
        manifest=pinned,
        folder=folder,
        plugins=opened.plugins,
        store=store,
        teacher=TeacherHandle(plugin, options, skip_external=skip_external(opened.environment)),
        on_progress=on_progress,
        notify=lambda text: on_progress(0, 0, text),
        confirm=lambda question: None,
        seed=pinned.run.seed,
        fingerprint=identity.fingerprint,
        lineage=identity.without(STAGE.may_grow).fingerprint,
        resume=True,
    )


def _state(manifest: "Manifest", folder: Path) -> run_or_skip.State:
    """The pipeline, of which the train stage alone is wanted."""
    pipeline = run_or_skip.pipeline_for(PIPELINE, manifest)
    selected = tuple(stage for stage in pipeline if stage.name == STAGE.name)
    return run_or_skip.State(pipeline, selected, manifest, folder, False, run_or_skip.Request())


def _check_inputs(context: Context) -> None:
    """Raises UserError where earlier stages have work left, or the folder holds what other settings have trained."""
    state = _state(context.manifest, context.folder)
    stage = state.selected[0]
    verdict = run_or_skip.decide(state, stage)
    if verdict.action == "missing":
        raise UserError(
            f"{context.folder}: train can't start: {verdict.reason}", "do the stages before it first, with `bitnet run`"
        )
    if not may_go_on(context.folder, stage, run_or_skip.identify(state, stage)):
        raise UserError(
            f"{context.folder}: other settings have been trained here ({verdict.reason})",
            "give this training a folder of its own (run.name), or start it with `bitnet run`, which sets that aside",
        )


def _is_lost_process(error: RuntimeError) -> bool:
    from torch.distributed import DistError

    return isinstance(error, DistError) or "gloo" in str(error)


def _as_json(kind: str, value: Any) -> None:
    print(json.dumps({kind: attrs.asdict(value) if attrs.has(type(value)) else value}), flush=True)


def _as_text(kind: str, value: Any) -> None:
    if kind == "progress":
        done, total, note = value
        click.echo(f"{done}/{total} {note}")
    elif kind == "error":
        click.echo(f"error: {value}", err=True)
    else:
        click.echo(f"trained {value['steps']} steps; `bitnet run` goes on with the stages after it")


def _untold(kind: str, value: Any) -> None:
    """The first process talks for all."""


if __name__ == "__main__":
    worker()
