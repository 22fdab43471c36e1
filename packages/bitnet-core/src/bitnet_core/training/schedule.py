"""The schedules of learning rate, weight decay and ternary share, as pure functions of the step (0-based)."""

import math

from bitnet_core.config import TrainConfig

SECOND_PEAK = 2 / 3
"""Of the first: where the two-stage schedule goes on at half time (1.5e-3 to 1e-3 in Microsoft's "The Era of 1-bit
LLMs: Training Tips, Code and FAQ", 2024), from where on weights don't decay."""


def learning_rate_factor(step: int, config: TrainConfig) -> float:
    """Of the peak: a linear warm-up, then the schedule down to `final_lr_fraction` at the last step's end.

    cosine; wsd: constant, then linear over the last `decay_fraction` of the steps (warmup-stable-decay, Hu et al. 2024,
    https://arxiv.org/abs/2404.06395); two_stage: linear, a third lower from half time on.
    """
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    span = max(1, config.steps - config.warmup_steps)
    progress = min(1.0, (step - config.warmup_steps) / span)
    if config.schedule == "wsd":
        remaining = min(1.0, (1 - progress) / config.decay_fraction)
    elif config.schedule == "two_stage":
        remaining = (1 - progress) * (SECOND_PEAK if _second_half(step, config) else 1.0)
    else:
        remaining = 0.5 * (1 + math.cos(math.pi * progress))
    return config.final_lr_fraction + (1 - config.final_lr_fraction) * remaining


def weight_decay_factor(step: int, config: TrainConfig) -> float:
    return 0.0 if config.schedule == "two_stage" and _second_half(step, config) else 1.0


def ternary_share(step: int, config: TrainConfig) -> float:
    """How far weights are from full precision (0) to ternary (1): linear over `ternary_warmup_steps`."""
    return min(1.0, step / config.ternary_warmup_steps) if config.ternary_warmup_steps else 1.0


def _second_half(step: int, config: TrainConfig) -> bool:
    return step >= config.steps / 2
