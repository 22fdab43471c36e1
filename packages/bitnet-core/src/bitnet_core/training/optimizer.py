"""AdamW with the groups that a ternary student needs, in float32 or 8-bit moments."""

from typing import Any

import torch
from torch import nn

from bitnet_core.config.train import RANDOM_START, TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.training.schedule import learning_rate_factor, weight_decay_factor


def optimizer_groups(
    model: nn.Module, *, learning_rate: float, scale_learning_rate: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Parameter groups for any of torch's optimizers, of a model with ternary layers: ``AdamW(optimizer_groups(...))``.

    Matrices decay; norms, biases and scales do not; log row scales have a learning rate of their own (None: the same).
    Adam divides by the gradient's size and so cancels LSQ's 1/√fan-in factor: the scales' learning rate is the knob.
    Frozen parameters are in no group, and a group without parameters is left out.
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
    of_scales = learning_rate if scale_learning_rate is None else scale_learning_rate
    groups: list[dict[str, Any]] = [
        {"params": matrices, "lr": learning_rate, "weight_decay": weight_decay},
        {"params": scales, "lr": of_scales, "weight_decay": 0.0},
        {"params": rest, "lr": learning_rate, "weight_decay": 0.0},
    ]
    return [group for group in groups if group["params"]]


def make_optimizer(model: nn.Module, config: TrainConfig) -> torch.optim.Optimizer:
    """The training's own, of `optimizer_groups`, whose rates `apply_schedule` moves below their peaks.

    Rates that the settings leave out are those for random weights.
    """
    config = config.begun_from(RANDOM_START)
    assert config.learning_rate is not None
    groups = optimizer_groups(
        model,
        learning_rate=config.learning_rate,
        scale_learning_rate=config.scale_learning_rate,
        weight_decay=config.weight_decay,
    )
    groups = [group | {"peak_lr": group["lr"], "peak_decay": group["weight_decay"]} for group in groups]
    betas = (0.9, config.beta2)
    if config.optimizer == "adamw8bit":
        return _adamw_8bit(groups, config.learning_rate, betas)
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=betas, fused=True)


def apply_schedule(optimizer: torch.optim.Optimizer, step: int, config: TrainConfig) -> float:
    """Learning rates and weight decay for this step (0-based); returns the learning rate's factor of the peak."""
    factor, decay = learning_rate_factor(step, config), weight_decay_factor(step, config)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"] * factor
        group["weight_decay"] = group["peak_decay"] * decay
    return factor


def _adamw_8bit(
    groups: list[dict[str, Any]], learning_rate: float, betas: tuple[float, float]
) -> torch.optim.Optimizer:
    """Moments in blocks of 8 bits (Dettmers et al. 2022, https://arxiv.org/abs/2110.02861): 2 bytes a weight, not 8."""
    try:
        from bitsandbytes.optim.adamw import AdamW8bit
    except ImportError as error:
        raise CoreError(
            'train.optimizer = "adamw8bit" needs bitsandbytes',
            "pip install 'bitnet-core[8bit]', or set train.optimizer = \"adamw\"",
        ) from error
    optimizer: torch.optim.Optimizer = AdamW8bit(groups, lr=learning_rate, betas=betas)
    return optimizer
