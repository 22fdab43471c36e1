"""One optimizer step, in two halves: the training loop's, and the dry run's; and what to say when one fails: it doesn't
fit, or its loss is no number.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_core.config.train import TrainConfig
from bitnet_core.distributed import ProcessGroup, Root, whole
from bitnet_core.errors import CoreError
from bitnet_core.files import write_json
from bitnet_core.hardware import autocast
from bitnet_core.losses.masks_and_rows import token_weight
from bitnet_core.model.find_layers_and_head import decoder, head, head_input
from bitnet_core.training.intermediate_loss import Intermediate
from bitnet_core.training.micro_batch import hidden_states
from bitnet_core.training.optimizer import apply_schedule

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
"""``loss(hidden_BTD, head_weight_VD, batch, normaliser)``"""


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Keep a layer's input alone; the rest is computed again in the backward pass."""
    # transformers gave it a new name in 5.23
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    enable({"use_reentrant": False})


@attrs.frozen(kw_only=True, eq=False)
class Learner:
    """What an optimizer step works with."""

    root: Root
    """Around the model; its parameters are whole within a forward pass only."""
    loss: Loss
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    """Enabled for float16 alone."""
    settings: TrainConfig
    group: ProcessGroup
    intermediate: Intermediate | None = None
    """Terms on the inner layers beside the loss."""

    def batch_loss(self, model: PreTrainedModel, batch: dict[str, Tensor], normaliser: Tensor) -> Any:
        """The loss of one micro-batch, and its parts."""
        if self.intermediate is None:
            hidden_BTD = head_input(model, hidden_states(decoder(model), batch))
            return self.loss(hidden_BTD, head(model).weight, batch, normaliser)
        hidden_BTD, captured = self.intermediate.hidden_states(decoder(model), batch)
        value, parts = self.loss(head_input(model, hidden_BTD), head(model).weight, batch, normaliser)
        terms, more = self.intermediate.terms(captured, batch, normaliser)
        return value + terms, parts | more | {"loss": parts["loss"] + terms.detach()}


def clipped_gradients(learner: Learner, micro_batches: Sequence[dict[str, Tensor]]) -> tuple[dict[str, Tensor], Tensor]:
    """Forward and backward of all micro-batches; the parameters then have clipped gradients.

    Returns the sums of the loss's parts over this process's micro-batches, and the norm before clipping.
    """
    group, settings = learner.group, learner.settings
    normaliser = group.total(sent_to_device(sum(map(token_weight, micro_batches), torch.zeros(())), group.device))
    sums: dict[str, Tensor] = {}
    for batch in micro_batches:
        on_device = {name: sent_to_device(tensor, group.device) for name, tensor in batch.items()}
        with autocast(settings.precision, group.device):
            value, parts = learner.root(learner.batch_loss, on_device, normaliser)
        # Sharded gradients are averaged over the processes, and are to be summed.
        learner.scaler.scale(value * group.size).backward()
        for name, part in parts.items():  # all are sums over positions, divided by the one normaliser
            sums[name] = sums[name] + part if name in sums else part
    learner.scaler.unscale_(learner.optimizer)
    return sums, whole(torch.nn.utils.clip_grad_norm_(learner.root.parameters(), settings.clip_norm))


def sent_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, from pinned memory to a GPU: from any other the host waits until all before it is done."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)


def optimizer_step(learner: Learner, step: int) -> float:
    """Move the parameters along their gradients, which are then gone; returns the learning rate of `step` (0-based)."""
    factor = apply_schedule(learner.optimizer, step, learner.settings)
    learner.scaler.step(learner.optimizer)
    learner.scaler.update()
    learner.optimizer.zero_grad(set_to_none=True)
    return float(learner.optimizer.defaults["lr"]) * factor


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
