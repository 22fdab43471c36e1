"""What to say when a training step doesn't fit."""

import torch
from torch import nn

from bitnet_core.config import TrainConfig
from bitnet_core.errors import CoreError


def does_not_fit(model: nn.Module, train: TrainConfig, device: torch.device, processes: int) -> CoreError:
    """Names what to lower and by how much: the activations of a sequence are what the fixed part leaves over."""
    # Masters, gradients and two moments, all float32, shared by the processes.
    fixed = sum(p.numel() * (16 if p.requires_grad else 4) for p in model.parameters()) // processes
    there = torch.cuda.get_device_properties(device).total_memory if device.type == "cuda" else None
    facts = f"weights, gradients and moments take {fixed / 1e9:.1f} GB"
    if there is not None:
        facts += f" of the device's {there / 1e9:.1f} GB"
    if there is not None and fixed > 0.9 * there:
        advice = (
            "no batch fits beside them: spread them over more devices (train.devices), "
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
    return CoreError(f"out of memory on {device}: {facts}; {advice}. The last checkpoint is intact")
