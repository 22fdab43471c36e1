"""train: a ternary student learns from the KD traces."""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.stage_needs import TRAIN
from bitnet_cli.stages import tokenizer_and_start
from bitnet_cli.stages.stage import Context, Stage

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_core.training.setup import Job


def check(manifest: "Manifest", plugins: "Plugins") -> Iterator[Problem]:
    """What the student starts from, and whether this machine can train in the precision that is asked for."""
    yield from tokenizer_and_start.student_problems(manifest, plugins)
    assert manifest.train is not None
    if manifest.train.packing:
        yield from tokenizer_and_start.only_llama(manifest, "train.packing", "leave it out")
    if manifest.train.precision != "fp16":  # the others run anywhere; importing torch takes a second
        return
    from bitnet_core.errors import CoreError
    from bitnet_core.hardware import autocast_dtype, best_device

    try:
        autocast_dtype(manifest.train.precision, best_device())
    except CoreError as error:
        yield problem_of(error)


def run(context: Context) -> dict[str, Any]:
    manifest = context.manifest
    assert manifest.train is not None
    if manifest.train.devices > 1:
        check_loss(context)  # before the processes start
        summary = train_on_devices(manifest.train.devices, context.folder, context.on_progress)
    else:
        from bitnet_core.training.loop import train

        summary = train(job_of(context), context.on_progress)
    last = summary["last"]
    headline = f"{summary['steps']} steps, {summary['seen_tokens']:,} tokens"
    # a finished training that is only recorded again may have lost its metrics
    end = f", loss {last['loss']:.3f}" if "loss" in last else ""
    return {"headline": headline + end} | summary


def check_loss(context: Context) -> None:
    """Raises CoreError where the traces have not got what the loss needs."""
    from bitnet_core.training.data_checks import check_loss_fits

    assert context.manifest.loss is not None
    loss = context.plugins.require_loss(context.manifest.loss.kind)
    check_loss_fits(context.folder / "data", loss, context.manifest.loss.options)


def job_of(context: Context) -> "Job":
    """What is to be trained. Raises CoreError, UserError and ProviderError where something of it is not there."""
    from bitnet_core.training.setup import Job

    manifest = context.manifest
    assert manifest.train is not None
    assert manifest.loss is not None
    check_loss(context)
    return Job(
        data_folder=context.folder / "data",
        tokenizer_folder=tokenizer_and_start.tokenizer_folder(context),
        chat_template=tokenizer_and_start.chat_template(context),
        teacher_folder=tokenizer_and_start.starting_weights(context),
        calibrated_start=tokenizer_and_start.calibrated_start(context),
        intermediate_teacher=tokenizer_and_start.intermediate_teacher(context),
        checkpoint_folder=context.folder / "checkpoints",
        metrics_file=context.folder / run_folder.METRICS,
        seed=context.seed,
        fingerprint=context.fingerprint,
        lineage=context.lineage,
        student=tokenizer_and_start.student_config(manifest),
        train=manifest.train,
        loss=context.plugins.require_loss(manifest.loss.kind).load(manifest.loss.options),
        intermediate=tokenizer_and_start.intermediate_terms(manifest),
    )


def result_files(folder: Path, name: str) -> list[Path]:
    """The newest checkpoint without its optimizer state: older ones may be deleted to save space."""
    if name != run_folder.CHECKPOINTS:
        return run_folder.find_files(folder, name)
    from bitnet_core.model.choose_checkpoint import latest_checkpoint

    return [
        path
        for path in sorted(latest_checkpoint(folder / "checkpoints").rglob("*"))
        if path.is_file() and path.name != "training.safetensors"
    ]


def dependencies(manifest: "Manifest") -> tuple[str, ...]:
    """The template goes into the checkpoint; without one, nothing that was trained before is redone."""
    template = manifest.project is not None and manifest.project.chat_template
    return tokenizer_and_start.teacher_of_training(manifest) + (("project.chat_template",) if template else ())


def train_on_devices(devices: int, folder: Path, on_progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Train what the run folder's manifest says (see `train_worker`) in `devices` processes; returns the summary.

    torchrun starts them on this machine, and the first one talks to us in JSON lines. Across machines, start the same
    worker with torchrun on each: docs/many-machines.md.
    Raises UserError for the training's own errors, and RuntimeError where a process died without a message.
    """
    _check_devices(devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    log = folder / "logs" / "devices.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "-m", "bitnet_cli.train_worker", str(folder / "manifest.resolved.toml"), "--within-run"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # so that all of it can be stopped together
        )
        try:
            result = _listen(process, on_progress)
            process.wait()
        except BaseException:
            _stop(process)
            raise
    if result is None:
        raise RuntimeError(f"a training process ended with code {process.returncode}; its messages are in {log}")
    if "error" in result:
        raise UserError(result["error"]["why"], result["error"]["fix"])
    return dict(result["summary"])


def _listen(process: "subprocess.Popen[str]", on_progress: Callable[[int, int, str], None]) -> dict[str, Any] | None:
    """Pass progress on until the summary or the error, which is returned."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library printed something
        if not isinstance(event, dict):
            continue
        if "progress" in event:
            on_progress(*event["progress"])
        elif "summary" in event or "error" in event:
            return event
    return None


def _check_devices(devices: int) -> None:
    import torch

    there = torch.cuda.device_count()
    if there and devices > there:
        raise UserError(f"train.devices = {devices}, but this machine has {there} GPUs", f"set train.devices = {there}")


def _stop(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


BYSTANDERS = tuple(
    f"train.{name}"
    for name in (
        *("checkpoint_every", "keep_checkpoints", "validate_every", "validation_documents", "log_every"),
        *("devices", "gradient_checkpointing", "compile", "deterministic", "track"),
    )
)
"""Settings that don't shape the weights (but for rounding): changing them redoes nothing."""

STAGE = Stage(
    facts=TRAIN,
    run=run,
    reads=(run_folder.TRACES, run_folder.CALIBRATED),
    writes=(run_folder.CHECKPOINTS, run_folder.METRICS),
    sections=("project.tokenizer", "run.seed"),
    check=check,
    dependencies=dependencies,
    ignores=(*run_folder.TEACHER_SPEED, "teacher.device", "teacher.dtype", *BYSTANDERS, "loss.chunk_tokens"),
    formats={"KD shard": 2, "checkpoint": 1},  # checkpoints of version 2 are written; 1 is still read
    find=result_files,
    unwatched=(run_folder.METRICS,),
    goes_on_from="checkpoints/step_*/training.json",
    may_grow=("train.steps", "train.budget_tokens"),
    keeps_former=True,
)
