"""How far a run will go, and where its activations flip: known exactly before the first step."""

from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.config import TrainConfig
from bitnet_core.training.batches import epoch_batches


@attrs.frozen(eq=False)
class TokenSchedule:
    """The tokens that a training sees when nothing stops it."""

    budget: int
    """Tokens that the run will see at most: the manifest's budget, or what its `steps` batches hold exactly."""
    seen_tokens: NDArray[np.int64]
    """[steps]: tokens seen after each step that the budget allows."""
    flip_at: float
    """The first step that begins with this many tokens seen runs at 4 bits, and all after it; infinity: none."""

    def flip(self) -> str:
        """ "step N", the first at 4 bits, or "never: ..." with the reason."""
        before = np.concatenate([[0], self.seen_tokens[:-1]])
        at_four_bits = np.flatnonzero(before >= self.flip_at)
        if len(at_four_bits):
            return f"step {at_four_bits[0] + 1}"
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
