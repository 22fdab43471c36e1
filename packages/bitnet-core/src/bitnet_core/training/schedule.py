"""Schedules of learning rate, weight decay and ternary share, as pure functions of the step (0-based).

How far a run goes and where its activations flip is known exactly before the first step.
"""

import math
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.config.train import TrainConfig
from bitnet_core.traces.batch_order import epoch_batches


@attrs.frozen(eq=False)
class TokenSchedule:
    """The tokens that a training sees when nothing stops it."""

    budget: int
    """Tokens that the run will see at most: the manifest's budget, or what its `steps` batches hold exactly."""
    seen_tokens: NDArray[np.int64]
    """[steps]: tokens seen after each step that the budget allows."""
    flip_at: float
    """The first step that begins with this many tokens seen runs at 4 bits, and all after it; infinity: none."""

    def first_at_four_bits(self) -> int | None:
        """The step, counted from 1; None: there is none."""
        before = np.concatenate([[0], self.seen_tokens[:-1]])
        found = np.flatnonzero(before >= self.flip_at)
        return int(found[0]) + 1 if len(found) else None

    def flip(self) -> str:
        """ "step N", the first at 4 bits, or "never: ..." with the reason."""
        first = self.first_at_four_bits()
        if first is not None:
            return f"step {first}"
        if np.isinf(self.flip_at):
            return "never: train.flip_fraction is 1.0"
        seen = int(self.seen_tokens[-1])
        text = f"never: the run sees {seen:,} of {self.budget:,} tokens"
        return text if seen < self.flip_at else f"{text}, and no step is left after {self.flip_at:,.0f}"


def token_schedule(lengths: Any, config: TrainConfig, seed: int, windows: Any = None) -> TokenSchedule:
    """lengths [documents]: tokens of each document; windows: as in `epoch_batches`."""
    wanted = config.steps * config.accumulation
    tokens: list[int] = []
    epoch = 0
    while len(tokens) < wanted:
        batches = epoch_batches(lengths, config.batch_size, seed, epoch, windows)
        tokens += [int(lengths[batch].sum()) for batch in batches[: wanted - len(tokens)]]
        epoch += 1
    seen = np.cumsum(np.asarray(tokens, dtype=np.int64).reshape(config.steps, config.accumulation).sum(axis=1))
    budget = config.budget_tokens if config.budget_tokens is not None else int(seen[-1])
    flip_at = config.flip_fraction * budget if config.flip_fraction < 1.0 else float("inf")
    return TokenSchedule(budget, seen[: int(np.searchsorted(seen, budget)) + 1], flip_at)


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


def how_it_goes_on(step: int, steps_before: int, config: TrainConfig, usual_warmup: int, *, flipped: bool) -> str:
    """What the schedule makes of a training of `steps_before` steps that goes on at `step` towards `config.steps`.

    usual_warmup: the ternary warm-up of a training that has `config.steps` from the first. flipped: it came to 4 bits
    by a smaller budget.
    """
    before = attrs.evolve(config, steps=steps_before)
    differs = []
    if any(learning_rate_factor(at, before) != learning_rate_factor(at, config) for at in range(step)):
        was, now = (learning_rate_factor(at, each) for at, each in ((max(0, step - 1), before), (step, config)))
        differs.append(
            f"its learning rate goes from {was:.2f} to {now:.2f} of the peak, then as a training of {config.steps:,} "
            f'steps ends (train.schedule = "{config.schedule}")'
        )
    if config.ternary_warmup_steps != usual_warmup:
        differs.append(f"its ternary warm-up stays {config.ternary_warmup_steps} steps, not {usual_warmup}")
    if flipped:
        differs.append("its activations stay at 4 bits")
    if not differs:
        return f"goes on at step {step} as if train.steps had been {config.steps:,} from the first"
    return f"goes on at step {step} of a training of {steps_before:,} steps: {'; '.join(differs)}"


LEAST_UNFINISHED = 0.05
"""Of the peak: so far above its end the learning rate may stop without a word."""


NEARLY_TERNARY = 0.995
"""A share of which nobody would say that it is not all."""


def left_unfinished(schedule: TokenSchedule, config: TrainConfig) -> list[str]:
    """What the training's last step comes too early for; empty where nothing is."""
    steps = len(schedule.seen_tokens)
    last, end = (learning_rate_factor(each - 1, config) for each in (steps, config.steps))
    share, found = ternary_share(steps - 1, config), []
    if last - end > LEAST_UNFINISHED:
        found.append(
            f"train.budget_tokens ends the training with step {steps:,} of {config.steps:,}, at {last:.2f} of the peak "
            f"learning rate: train.steps = {steps} would end its schedule there"
        )
    if config.warmup_steps > steps:
        found.append(f"train.warmup_steps = {config.warmup_steps}: {steps} steps never come to the peak learning rate")
    if share < NEARLY_TERNARY:
        found.append(
            f"train.ternary_warmup_steps = {config.ternary_warmup_steps}: at the last step, {steps}, weights are "
            f"{share:.0%} ternary, and the student is measured and exported wholly ternary"
        )
    return found


def weight_decay_factor(step: int, config: TrainConfig) -> float:
    return 0.0 if config.schedule == "two_stage" and _second_half(step, config) else 1.0


def ternary_share(step: int, config: TrainConfig) -> float:
    """How far weights are from full precision (0) to ternary (1): linear over `ternary_warmup_steps`."""
    return min(1.0, step / config.ternary_warmup_steps) if config.ternary_warmup_steps else 1.0


def _second_half(step: int, config: TrainConfig) -> bool:
    return step >= config.steps / 2
