"""The training loop, top to bottom. B sequences, T positions, D hidden width, V vocabulary.

One optimizer step: `accumulation` batches, each forward → loss on hidden states × head → backward; clip; AdamW. Under
torchrun every process takes its share of each batch, and the sums are those of one process (see `ProcessGroup`).
Counted tokens are those really seen (padding is not), and they decide when activations flip from 8 to 4 bits.
The host reads what a step computed when it is logged or saved; otherwise while the device is at the next step.
"""

import contextlib
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import attrs
import torch
from torch import Tensor

from bitnet_core.config.train import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.heldout import mean_heldout_kl
from bitnet_core.hardware import peak_memory_bytes
from bitnet_core.model.choose_checkpoint import best_checkpoint, checkpoints
from bitnet_core.model.find_layers_and_head import set_activation_bits
from bitnet_core.model.read_checkpoint import TrainingState
from bitnet_core.ternary.bitlinear import set_ternary_share
from bitnet_core.traces.batch_order import batches_from
from bitnet_core.training.code_health import LayerState, layer_report, layer_states, write_health
from bitnet_core.training.metrics import (
    StepFigures,
    append_row,
    metrics_row,
    progress_note,
    sent_to_host,
    tokens_per_second_from,
)
from bitnet_core.training.micro_batch import batch_of
from bitnet_core.training.save_and_resume import TokenizerSource, prune, save_checkpoint
from bitnet_core.training.schedule import ternary_share
from bitnet_core.training.setup import Job, Session, open_session
from bitnet_core.training.sharded_checkpoint import make_plain
from bitnet_core.training.step import clipped_gradients, does_not_fit, non_finite, optimizer_step

OnProgress = Callable[[int, int, str], None]


def train(job: Job, on_progress: OnProgress) -> dict[str, Any]:
    """Train a student as `job` says; returns a summary (of the first process; the others return nothing).

    Checkpoints with the job's fingerprint are gone on from, bit for bit on the CPU, and those of a shorter training
    with its lineage; others are set aside.
    Raises CoreError where nothing can be learnt or read, and where the loss stops being a number.
    """
    with open_session(job) as session:
        found = _train(session, session.job.train, on_progress)
    # Outside: only the first process has work left, and the others would wait in vain.
    for checkpoint in checkpoints(job.checkpoint_folder) if session.group.is_first else ():
        with contextlib.suppress(CoreError):  # a damaged one is told where it is read
            make_plain(checkpoint)
    return found


def _train(session: Session, settings: TrainConfig, on_progress: OnProgress) -> dict[str, Any]:
    """The loop itself."""
    job, group, traces, schedule = session.job, session.group, session.traces, session.schedule
    model, state = session.model, session.state
    batches = batches_from(traces.lengths, settings.batch_size, job.seed, state.batches, traces.windows)
    layers = layer_states(model)
    tokens_per_second = tokens_per_second_from(state.seen_tokens)
    done = is_done(session, state)
    waiting: StepFigures | None = None
    figures: dict[str, float] = {}
    if group.is_first and not done:
        flip = "now at A4" if state.bits <= 4 < job.student.activation_bits else f"flip to A4: {session.flip}"
        on_progress(state.step, settings.steps, "; ".join([*session.others, flip, *session.lacking]))
    while not done:
        if state.bits > 4 and state.seen_tokens >= schedule.flip_at:
            set_activation_bits(model, 4)
            state = attrs.evolve(state, bits=4)
        set_ternary_share(model, ternary_share(state.step, settings))
        chosen = list(itertools.islice(batches, settings.accumulation))
        micro_batches = [batch_of(traces, group.mine(documents), settings) for documents in chosen]
        latest = learn(session, micro_batches, state.step)
        if waiting is not None:  # they have long arrived: the device is at the latest
            figures = checked(session, waiting)
        state = attrs.evolve(
            state,
            step=state.step + 1,
            batches=state.batches + len(chosen),
            seen_tokens=state.seen_tokens + sum(int(traces.lengths[documents].sum()) for documents in chosen),
        )
        done = is_done(session, state)
        speed = tokens_per_second(state.seen_tokens)
        validates = done or (settings.validate_every > 0 and state.step % settings.validate_every == 0)
        saves = done or state.step % settings.checkpoint_every == 0
        logs = validates or state.step == 1 or state.step % settings.log_every == 0
        waiting = latest
        if logs or saves:
            figures, waiting = checked(session, latest), None
        row = metrics_row(state, figures, speed)
        if validates:
            documents, size = settings.validation_documents, settings.batch_size
            row["validation_kl"] = mean_heldout_kl(
                session.learner.root, session.heldout, documents, size, settings.precision, group.device
            )
        if group.is_first:
            if logs:
                append_row(job.metrics_file, row)
                session.track(row)
            on_progress(state.step, settings.steps, progress_note(row, schedule.budget, settings.steps))
        if saves:
            state = attrs.evolve(state, last=row, scaler=session.learner.scaler.state_dict() or None)
            layers = save(session, state, layers)
    return summary(session, state) if group.is_first else {}


def is_done(session: Session, state: TrainingState) -> bool:
    """Whether all steps are made, or the budget of tokens is seen."""
    return state.step >= session.job.train.steps or state.seen_tokens >= session.schedule.budget


def learn(session: Session, micro_batches: Sequence[dict[str, Tensor]], step: int) -> StepFigures:
    """One optimizer step: the loss and its parts, ``lr``, and ``grad_norm`` before clipping; none of them is read."""
    learner, group = session.learner, session.group
    try:
        sums, norm = clipped_gradients(learner, micro_batches)
    except torch.OutOfMemoryError as error:
        raise does_not_fit(session.model, session.job.train, group.device, group.size) from error
    total = group.total(torch.stack(list(sums.values())).double())
    rate = optimizer_step(learner, step)
    values, arrived = sent_to_host(torch.cat([total, total.new_full((1,), rate), norm.double().reshape(1)]))
    names = (*sums, "lr", "grad_norm")
    return StepFigures(step=step, micro_batches=micro_batches, names=names, values=values, arrived=arrived)


def checked(session: Session, figures: StepFigures) -> dict[str, float]:
    """The figures of a step. Raises CoreError where they are no numbers, or nothing is learnt."""
    job, found = session.job, figures.read()
    # A scaled gradient may overflow: the scaler then leaves the step out.
    for name in ("loss", *([] if session.learner.scaler.is_enabled() else ["grad_norm"])):
        if not math.isfinite(found[name]):
            logs = job.metrics_file.parent
            raise non_finite(figures.micro_batches, figures.step, logs, found[name], session.group)
    if figures.step == 0 and not session.has_kd and found["loss"] == 0.0:
        raise CoreError(
            f"{job.data_folder}: no KD positions, and loss.ce_weight is 0, so nothing is learnt", "raise loss.ce_weight"
        )
    return found


def save(session: Session, state: TrainingState, before: dict[str, LayerState]) -> dict[str, LayerState]:
    """Write the checkpoint and its health, remove what is too old; returns the layers as they are now."""
    job, group, folder = session.job, session.group, session.job.checkpoint_folder
    tokenizer = TokenizerSource(job.tokenizer_folder, session.template)
    save_checkpoint(folder, session.model, session.learner.optimizer, state, tokenizer, group)
    now = layer_states(session.model)
    report = layer_report(now, before, group)
    if group.is_first:
        counters = {**state.last, "peak_memory_bytes": peak_memory_bytes(group.device)}
        write_health(folder / f"step_{state.step}_health.json", counters, report)
        prune(folder, job.train.keep_checkpoints, job.fingerprint)
    return now


def summary(session: Session, state: TrainingState) -> dict[str, Any]:
    """What came of a training that has reached its last step; plain JSON values."""
    resumed = session.resumed
    damaged = resumed.damaged if resumed else []
    return {
        "checkpoint": f"step_{state.step}",
        "best_checkpoint": best_checkpoint(session.job.checkpoint_folder).name,
        "steps": state.step,
        "seen_tokens": state.seen_tokens,
        "budget_tokens": session.schedule.budget,
        "bits": state.bits,
        "device": session.group.device.type,
        "processes": session.group.size,
        "autocast": str(session.dtype).removeprefix("torch."),
        "flip": session.flip,
        "resumed_from": resumed.folder.name if resumed else None,
        "damaged": damaged,
        "warnings": [*session.others, *session.lacking, *damaged],
        "last": dict(state.last),
    }
