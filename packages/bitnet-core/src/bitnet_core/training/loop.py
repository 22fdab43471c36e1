"""The training loop, top to bottom. B sequences, T positions, D hidden width, V vocabulary.

One optimizer step: `accumulation` batches, each forward → loss on hidden states × head → backward; clip; AdamW.
Counted tokens are those really seen (padding is not), and they decide when activations flip from 8 to 4 bits.
"""

import itertools
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor

from bitnet_core.config import TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.heldout import mean_heldout_kl
from bitnet_core.files import write_json
from bitnet_core.hardware import autocast, autocast_dtype, best_device, move, peak_memory_bytes
from bitnet_core.losses import token_weight
from bitnet_core.model.init_from import build_student
from bitnet_core.student_config import StudentConfig
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.batches import batches_from
from bitnet_core.training.checkpoint import TrainingState, checkpoints, restore, save_checkpoint
from bitnet_core.training.course import plot_course
from bitnet_core.training.health import code_report, layer_codes, write_health
from bitnet_core.training.inputs import hidden_states, training_batch
from bitnet_core.training.metrics_file import append_row, keep_rows_up_to
from bitnet_core.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate
from bitnet_core.training.resume import resume
from bitnet_core.training.targets import find_targets, what_is_lacking

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
OnProgress = Callable[[int, int, str], None]


def train(
    *,
    data_folder: Path,
    tokenizer_folder: Path,
    teacher_folder: Path | None,
    student: StudentConfig,
    loss: Loss,
    train: TrainConfig,
    seed: int,
    checkpoint_folder: Path,
    metrics_file: Path,
    fingerprint: str,
    on_progress: OnProgress,
) -> dict[str, Any]:
    """Train a student on the KD traces in `data_folder`; returns a summary.

    `fingerprint` names everything that shapes the training (data, student, loss, settings). Checkpoints with the same
    one are gone on from, bit for bit on the CPU; those with another belong to another training and are removed.
    Raises CoreError where nothing can be learnt or read, and where the loss stops being a number.
    """
    torch.manual_seed(seed)
    device = best_device()
    dtype = autocast_dtype(train.precision, device)
    traces = KDTraceDataset(
        data_folder, split="train", max_seq_len=train.max_seq_len, tokenizer_folder=tokenizer_folder
    )
    heldout = KDTraceDataset(
        data_folder, split="heldout", max_seq_len=train.max_seq_len, tokenizer_folder=tokenizer_folder
    )
    found = find_targets(traces, data_folder, train.max_seq_len)
    warnings = what_is_lacking(found, train.max_seq_len)
    course = plot_course(traces.lengths, train, seed, traces.windows)
    budget = course.budget

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
        metrics_file.unlink(missing_ok=True)
    else:
        model, state = resumed.model, resumed.state
        keep_rows_up_to(metrics_file, state.step)
    model = move(model, device).train()
    model.set_activation_bits(state.bits)
    model.lm_head.weight.requires_grad_(not student.freeze_embeddings)
    model.model.embed_tokens.weight.requires_grad_(not student.freeze_embeddings)
    optimizer = make_optimizer(model, train)
    if resumed is not None:
        restore(resumed.moments, model, optimizer)
    scaler = torch.amp.GradScaler(device.type, enabled=dtype is torch.float16)

    batches = batches_from(traces.lengths, train.batch_size, seed, state.batches, traces.windows)
    codes = layer_codes(model)
    started, tokens_at_start = time.monotonic(), state.seen_tokens
    row = dict(state.last)
    if state.step < train.steps and state.seen_tokens < budget:
        on_progress(state.step, train.steps, "; ".join([f"flip to A4: {course.flip()}", *warnings]))
    while state.step < train.steps and state.seen_tokens < budget:
        if state.bits > 4 and state.seen_tokens >= course.flip_at:
            model.set_activation_bits(4)
            state = attrs.evolve(state, bits=4)
        micro_batches = [
            training_batch(traces, documents, train.max_seq_len if train.packing else None)
            for documents in itertools.islice(batches, train.accumulation)
        ]
        normaliser = sum(token_weight(batch) for batch in micro_batches)
        metrics: dict[str, float] = {}
        for batch in micro_batches:
            on_device = {name: tensor.to(device) for name, tensor in batch.items()}
            with autocast(train.precision, device):
                hidden_BTD = hidden_states(model, on_device)
                value, parts = loss(hidden_BTD, model.lm_head.weight, on_device, normaliser)
            if not torch.isfinite(value):
                raise non_finite(batch, state.step, metrics_file.parent, value.detach())
            scaler.scale(value).backward()
            for name, part in parts.items():  # all are sums over positions, divided by the one normaliser
                metrics[name] = metrics.get(name, 0.0) + float(part)
        scaler.unscale_(optimizer)
        grad_norm = torch.nn.utils.clip_grad_norm_(model.parameters(), train.clip_norm)
        if not torch.isfinite(grad_norm) and not scaler.is_enabled():
            raise non_finite(micro_batches[-1], state.step, metrics_file.parent, grad_norm)
        if state.step == 0 and not found.has_kd and metrics["loss"] == 0.0:
            raise CoreError(f"{data_folder}: no KD positions, and loss.ce_weight is 0, so nothing is learnt; raise it")
        factor = learning_rate_factor(state.step, train)
        set_learning_rate(optimizer, factor)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad(set_to_none=True)

        state = attrs.evolve(
            state,
            step=state.step + 1,
            batches=state.batches + len(micro_batches),
            seen_tokens=state.seen_tokens + sum(int(batch["attention_mask"].sum()) for batch in micro_batches),
        )
        last = state.step == train.steps or state.seen_tokens >= budget
        speed = (state.seen_tokens - tokens_at_start) / (time.monotonic() - started)
        row = {
            "step": state.step,
            "seen_tokens": state.seen_tokens,
            **metrics,
            "lr": train.learning_rate * factor,
            "grad_norm": float(grad_norm),
            "bits": state.bits,
            "tokens_per_second": speed,
        }
        if last or (train.validate_every and state.step % train.validate_every == 0):
            row["heldout_kl"] = mean_heldout_kl(
                model, heldout, train.validation_documents, train.batch_size, train.precision
            )
        if last or "heldout_kl" in row or state.step == 1 or state.step % train.log_every == 0:
            append_row(metrics_file, row)
        on_progress(
            state.step, train.steps, f"loss {row['loss']:.3f}  kd {row['kd']:.3f}  A{state.bits}  {speed:,.0f} tok/s"
        )
        if last or state.step % train.checkpoint_every == 0:
            state = attrs.evolve(state, last=row)
            save_checkpoint(checkpoint_folder, model, optimizer, state, tokenizer_folder)
            now = layer_codes(model)
            counters = row | {"peak_memory_bytes": peak_memory_bytes(device)}
            write_health(checkpoint_folder / f"step_{state.step}_health.json", counters, code_report(now, before=codes))
            codes = now
            for old in checkpoints(checkpoint_folder)[: -train.keep_checkpoints]:
                shutil.rmtree(old)
    return {
        "checkpoint": f"step_{state.step}",
        "steps": state.step,
        "seen_tokens": state.seen_tokens,
        "budget_tokens": budget,
        "bits": state.bits,
        "device": device.type,
        "autocast": str(dtype).removeprefix("torch."),
        "flip": course.flip(),
        "resumed_from": resumed.name if resumed else None,
        "damaged": resumed.damaged if resumed else [],
        "warnings": [*warnings, *(resumed.damaged if resumed else [])],
        "last": row,
    }


def non_finite(batch: dict[str, Tensor], step: int, logs: Path, value: Tensor) -> CoreError:
    """Keep the batch for inspection; no checkpoint is written from here on."""
    file = logs / f"nonfinite_batch_step_{step}.safetensors"
    logs.mkdir(parents=True, exist_ok=True)
    save_file({name: tensor.contiguous() for name, tensor in batch.items()}, file)
    write_json(file.with_suffix(".json"), {"step": step, "value": repr(float(value))})
    return CoreError(
        f"the loss or its gradient became {float(value)} at step {step}; the batch is in {file}. "
        'Lower train.learning_rate or train.scale_learning_rate, or set train.precision = "fp32"; '
        "the last checkpoint is intact"
    )
