"""Forward and backward of one optimizer step: the training loop's, and the dry run's."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from bitnet_core.config import TrainConfig
from bitnet_core.hardware import autocast
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.training.inputs import hidden_states
from bitnet_core.training.intermediate import Intermediate
from bitnet_core.world import ProcessGroup, Root

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""``loss(hidden_BTD, head_weight_VD, batch, normaliser)``"""


def checkpoint_activations(model: BitNetKDEForCausalLM) -> None:
    """Keep a layer's input alone; the rest is computed again in the backward pass."""
    # transformers gave it a new name in 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


def gradients_of(
    root: Root,
    loss: Loss,
    micro_batches: Sequence[dict[str, Tensor]],
    normaliser: Tensor,
    scaler: torch.amp.GradScaler,
    train: TrainConfig,
    group: ProcessGroup,
    intermediate: Intermediate | None = None,
) -> dict[str, Tensor]:
    """Adds the gradients of all micro-batches to the parameters'; gives back the sums of the loss's parts."""

    def batch_loss(model: BitNetKDEForCausalLM, batch: dict[str, Tensor], normaliser: Tensor) -> Any:
        if intermediate is None:
            return loss(hidden_states(model.model, batch), model.lm_head.weight, batch, normaliser)
        hidden_BTD, seen = intermediate.hidden_states(model.model, batch)
        value, parts = loss(hidden_BTD, model.lm_head.weight, batch, normaliser)
        terms, more = intermediate.terms(seen, batch, normaliser)
        return value + terms, parts | more | {"loss": parts["loss"] + terms.detach()}

    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        on_device = {name: tensor.to(group.device) for name, tensor in batch.items()}
        with autocast(train.precision, group.device):
            value, parts = root(batch_loss, on_device, normaliser)
        # Sharded gradients are averaged over the processes, and are to be summed.
        scaler.scale(value * group.size).backward()
        for name, part in parts.items():  # all are sums over positions, divided by the one normaliser
            sums[name] = sums[name] + part if name in sums else part
    return sums
