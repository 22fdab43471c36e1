"""AdamW with the groups that a ternary student needs, and the learning rate's course."""

import math

import torch
from torch import nn

from bitnet_core.config import TrainConfig


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.AdamW:
    """Matrices decay; norms, biases and scales do not; log row scales have a learning rate of their own.

    Adam divides by the gradient's size and so cancels LSQ's 1/√fan-in factor: the scales' learning rate is the knob.
    """
    matrices, scales, rest = [], [], []
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        if name.endswith("log_scale"):
            scales.append(parameter)
        elif parameter.ndim >= 2:
            matrices.append(parameter)
        else:
            rest.append(parameter)
    groups = [
        {"params": matrices, "peak_lr": config.learning_rate, "weight_decay": config.weight_decay},
        {"params": scales, "peak_lr": config.scale_learning_rate, "weight_decay": 0.0},
        {"params": rest, "peak_lr": config.learning_rate, "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, config.beta2), fused=True)


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Of the peak, at optimizer step `step` (0-based): linear warm-up, then cosine down to `final_lr_fraction`."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * 0.5 * (1 + math.cos(math.pi * progress))


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
