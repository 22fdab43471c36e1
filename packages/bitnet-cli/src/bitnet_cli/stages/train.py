"""train: a ternary student learns from the KD traces."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, problem_of
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
        from bitnet_cli.stages.train_on_devices import train_on_devices

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
