"""What to say when a training step fails: it doesn't fit, or its loss is no number."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from bitnet_core.config.train import TrainConfig
from bitnet_core.distributed import ProcessGroup
from bitnet_core.errors import CoreError
from bitnet_core.files import write_json


def does_not_fit(model: nn.Module, train: TrainConfig, device: torch.device, processes: int) -> CoreError:
    """Names what to lower and by how much: the activations of a sequence are what the fixed part leaves over."""
    # Masters, gradients and two moments, all float32, shared by the processes.
    fixed = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters()) // processes
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    facts = f"weights, gradients and moments take {fixed / 1e9:.1f} GB"
    if there is not None:
        facts += f" of the device's {there / 1e9:.1f} GB"
    if there is not None and fixed > 0.9 * there:
        facts += ", beside which no batch fits"
        advice = (
            "spread them over more devices (train.devices), "
            'set train.optimizer = "adamw8bit", or choose a smaller student'
        )
    elif train.batch_size > processes:
        smaller = max(processes, train.batch_size // 2)
        advice = (
            f"set train.batch_size = {smaller} and train.accumulation = "
            f"{-(-train.accumulation * train.batch_size // smaller)} (the same gradient), "
            "or train.gradient_checkpointing = true"
        )
    else:
        advice = (
            "set train.gradient_checkpointing = true"
            if not train.gradient_checkpointing
            else f"set train.max_seq_len = {train.max_seq_len // 2}"
        )
    return CoreError(f"out of memory on {device}: {facts}; the last checkpoint is intact", advice)


def non_finite(
    micro_batches: Sequence[Mapping[str, Tensor]], step: int, logs: Path, value: float, group: ProcessGroup
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
        f"the loss or its gradient became {value} at step {step}; the batch is in {file}, and the last "
        "checkpoint is intact",
        'lower train.learning_rate or train.scale_learning_rate, or set train.precision = "fp32"',
    )
