"""The training loop, top to bottom. B sequences, T positions, D hidden width, V vocabulary.

One optimizer step: `accumulation` batches, each forward → loss on hidden states × head → backward; clip; AdamW. Under
torchrun every process takes its share of each batch, and the sums are those of one process (see `ProcessGroup`).
Counted tokens are those really seen (padding is not), and they decide when activations flip from 8 to 4 bits.
"""

import itertools
import math
import os
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitnet_core.bitlinear import set_ternary_share
from bitnet_core.config import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.heldout import mean_heldout_kl
from bitnet_core.files import write_json
from bitnet_core.hardware import autocast_dtype, move, peak_memory_bytes
from bitnet_core.losses import token_weight
from bitnet_core.model.init_from import build_student
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.batches import batches_from
from bitnet_core.training.checkpoint import TrainingState, best_checkpoint, prune, restore, save_checkpoint
from bitnet_core.training.course import token_schedule
from bitnet_core.training.health import layer_report, layer_states, write_health
from bitnet_core.training.inputs import training_batch
from bitnet_core.training.job import Job
from bitnet_core.training.memory import does_not_fit
from bitnet_core.training.metrics_file import append_row, keep_rows_up_to
from bitnet_core.training.open_intermediate import open_intermediate
from bitnet_core.training.optimizer import apply_schedule, make_optimizer
from bitnet_core.training.resume import resume
from bitnet_core.training.schedule import ternary_share
from bitnet_core.training.step import checkpoint_activations, gradients_of
from bitnet_core.training.targets import find_targets, what_is_lacking
from bitnet_core.training.trackers import open_trackers
from bitnet_core.world import ProcessGroup, join_process_group, shard, whole

OnProgress = Callable[[int, int, str], None]


def train(job: Job, on_progress: OnProgress) -> dict[str, Any]:
    """Train a student as `job` says; returns a summary.

    Checkpoints with the job's fingerprint are gone on from, bit for bit on the CPU; those with another are removed.
    Raises CoreError where nothing can be learnt or read, and where the loss stops being a number.
    """
    data_folder, tokenizer_folder, teacher_folder = job.data_folder, job.tokenizer_folder, job.teacher_folder
    student, loss, train, seed, fingerprint = job.student, job.loss, job.train, job.seed, job.fingerprint
    checkpoint_folder, metrics_file = job.checkpoint_folder, job.metrics_file
    intermediate, intermediate_teacher = job.intermediate, job.intermediate_teacher
    torch.manual_seed(seed)
    with join_process_group() as group, settings_of(train), ExitStack() as stack:
        track = open_trackers(train.track if group.is_first else (), metrics_file.parent, attrs.asdict(train), stack)
        device = group.device
        dtype = autocast_dtype(train.precision, device)
        traces = KDTraceDataset(
            data_folder, split="train", max_seq_len=train.max_seq_len, tokenizer_folder=tokenizer_folder
        )
        heldout = KDTraceDataset(
            data_folder, split="heldout", max_seq_len=train.max_seq_len, tokenizer_folder=tokenizer_folder
        )
        found = find_targets(traces, data_folder, train.max_seq_len)
        warnings = what_is_lacking(found, train.max_seq_len)
        schedule = token_schedule(traces.lengths, train, seed, traces.windows)
        budget = schedule.budget

        with group.first_goes_ahead():
            resumed = resume(checkpoint_folder, fingerprint)
        if resumed is None:
            model = build_student(student, teacher_folder, traces.vocab_size, seed=seed)
            state = TrainingState(
                step=0,
                batches=0,
                seen_tokens=0,
                bits=student.activation_bits,
                fingerprint=fingerprint,
                projection=traces.metadata.projection.get("id") if traces.metadata else None,
            )
        else:
            model, state = resumed.model, resumed.state
        if group.is_first:
            keep_rows_up_to(metrics_file, state.step)
        model = move(model, device).train()
        model.set_activation_bits(state.bits)
        model.lm_head.weight.requires_grad_(not student.freeze_embeddings)
        model.model.embed_tokens.weight.requires_grad_(not student.freeze_embeddings)
        if train.gradient_checkpointing:
            checkpoint_activations(model)
        terms = None
        if intermediate is not None and intermediate_teacher is not None:
            terms = open_intermediate(intermediate, intermediate_teacher, tokenizer_folder, model.model, dtype, device)
        if train.compile:
            for index, layer in enumerate(model.model.layers):
                if terms is None or index not in terms.student_layers:  # a hooked layer isn't compiled
                    layer.compile()
        root = shard(model, list(model.model.layers), group)
        optimizer = make_optimizer(model, train)
        if resumed is not None:
            restore(resumed.moments, model, optimizer)
        scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

        batches = batches_from(traces.lengths, train.batch_size, seed, state.batches, traces.windows)
        layers = layer_states(model)
        started, tokens_at_start = time.monotonic(), state.seen_tokens
        row = dict(state.last)
        if group.is_first and state.step < train.steps and state.seen_tokens < budget:
            on_progress(state.step, train.steps, "; ".join([f"flip to A4: {schedule.flip()}", *warnings]))
        while state.step < train.steps and state.seen_tokens < budget:
            if state.bits > 4 and state.seen_tokens >= schedule.flip_at:
                model.set_activation_bits(4)
                state = attrs.evolve(state, bits=4)
            set_ternary_share(model, ternary_share(state.step, train))
            chosen = list(itertools.islice(batches, train.accumulation))
            micro_batches = [batch_of(traces, group.mine(documents), train) for documents in chosen]
            normaliser = group.total(sum(map(token_weight, micro_batches), torch.zeros(())).to(device))
            try:
                sums = gradients_of(root, loss, micro_batches, normaliser, scaler, train, group, terms)
            except torch.OutOfMemoryError as error:
                raise does_not_fit(model, train, device, group.size) from error
            scaler.unscale_(optimizer)
            grad_norm = float(whole(torch.nn.utils.clip_grad_norm_(root.parameters(), train.clip_norm)))
            metrics = dict(zip(sums, group.total(torch.stack(list(sums.values())).double()).tolist(), strict=True))
            for figure in (metrics["loss"], *([] if scaler.is_enabled() else [grad_norm])):
                if not math.isfinite(figure):
                    raise non_finite(micro_batches, state.step, metrics_file.parent, figure, group)
            if state.step == 0 and not found.has_kd and metrics["loss"] == 0.0:
                raise CoreError(
                    f"{data_folder}: no KD positions, and loss.ce_weight is 0, so nothing is learnt; raise it"
                )
            factor = apply_schedule(optimizer, state.step, train)
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad(set_to_none=True)

            state = attrs.evolve(
                state,
                step=state.step + 1,
                batches=state.batches + len(chosen),
                seen_tokens=state.seen_tokens + sum(int(traces.lengths[documents].sum()) for documents in chosen),
            )
            last = state.step == train.steps or state.seen_tokens >= budget
            speed = (state.seen_tokens - tokens_at_start) / (time.monotonic() - started)
            row = {
                "step": state.step,
                "seen_tokens": state.seen_tokens,
                **metrics,
                "lr": train.learning_rate * factor,
                "grad_norm": grad_norm,
                "bits": state.bits,
                "tokens_per_second": speed,
            }
            if last or (train.validate_every and state.step % train.validate_every == 0):
                row["heldout_kl"] = mean_heldout_kl(
                    root, heldout, train.validation_documents, train.batch_size, train.precision, device
                )
            if group.is_first:
                if last or "heldout_kl" in row or state.step == 1 or state.step % train.log_every == 0:
                    append_row(metrics_file, row)
                    track(row)
                on_progress(state.step, train.steps, progress_note(row, budget, train.steps))
            if last or state.step % train.checkpoint_every == 0:
                state = attrs.evolve(state, last=row)
                save_checkpoint(checkpoint_folder, model, optimizer, state, tokenizer_folder, group)
                now = layer_states(model)
                if group.is_first:
                    counters = row | {"peak_memory_bytes": peak_memory_bytes(device)}
                    health = checkpoint_folder / f"step_{state.step}_health.json"
                    write_health(health, counters, layer_report(now, layers))
                    prune(checkpoint_folder, train.keep_checkpoints)
                layers = now
        if not group.is_first:
            return {}
        return {
            "checkpoint": f"step_{state.step}",
            "best_checkpoint": best_checkpoint(checkpoint_folder).name,
            "steps": state.step,
            "seen_tokens": state.seen_tokens,
            "budget_tokens": budget,
            "bits": state.bits,
            "device": device.type,
            "processes": group.size,
            "autocast": str(dtype).removeprefix("torch."),
            "flip": schedule.flip(),
            "resumed_from": resumed.name if resumed else None,
            "damaged": resumed.damaged if resumed else [],
            "warnings": [*warnings, *(resumed.damaged if resumed else [])],
            "last": row,
        }


@contextmanager
def settings_of(train: TrainConfig) -> Iterator[None]:
    """torch's own settings for this training; as they were afterwards."""
    before = torch.are_deterministic_algorithms_enabled()
    if train.deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS wants for it
        torch.use_deterministic_algorithms(True)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(before)


def batch_of(traces: KDTraceDataset, documents: Any, train: TrainConfig) -> dict[str, Tensor]:
    """This process's documents; where a batch has none left for it, one without any target keeps it in step."""
    width = train.max_seq_len if train.packing else None
    if len(documents):
        return training_batch(traces, documents, width)
    idle = training_batch(traces, np.zeros(1, dtype=np.int64), width)
    nothing = torch.zeros_like(idle["has_kd"])
    return idle | {"has_kd": nothing, "is_prompt": ~nothing}


def progress_note(row: Mapping[str, Any], budget: int, steps: int) -> str:
    """A step in one line: its losses, the speed, and the time to the last step, or to the budget if that is nearer."""
    speed = row["tokens_per_second"]
    parts = "  ".join(f"{name} {row[name]:.3f}" for name in ("loss", "kd", "ce", "hidden", "relation") if name in row)
    seen = row["seen_tokens"]
    left = max(0, min(budget - seen, (steps - row["step"]) * seen / row["step"])) / speed
    rest = f"{left:.0f} s left" if left < 100 else f"{left / 60:.0f} min left"
    return f"{parts}  A{row['bits']}  {speed:,.0f} tok/s  {rest}"


def non_finite(
    micro_batches: list[dict[str, Tensor]], step: int, logs: Path, value: float, group: ProcessGroup
) -> CoreError:
    """Keep the step's batches for inspection; no checkpoint is written from here on."""
    name = f"nonfinite_batch_step_{step}" + (f"_rank_{group.rank}" if group.size > 1 else "")
    file = logs / f"{name}.safetensors"
    logs.mkdir(parents=True, exist_ok=True)
    tensors = {
        f"{index}.{name}" if len(micro_batches) > 1 else name: tensor.contiguous()
        for index, batch in enumerate(micro_batches)
        for name, tensor in batch.items()
    }
    save_file(tensors, file)
    write_json(file.with_suffix(".json"), {"step": step, "value": repr(value)})
    return CoreError(
        f"the loss or its gradient became {value} at step {step}; the batch is in {file}. "
        'Lower train.learning_rate or train.scale_learning_rate, or set train.precision = "fp32"; '
        "the last checkpoint is intact"
    )
