"""What the student's inner layers are held to: a teacher's on this machine (BitDistill, arXiv:2510.13998).

B sequences, T positions, D residual width. Outputs of layers, queries, keys and values are caught in the forward pass.
The teacher reads the same tokens, without gradient, up to the last layer that is compared. Terms are summed over the
positions that predict a target, as the loss is, and divided by the same normaliser, so accumulation and several
processes add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.losses.attention_relation import relation_kl, unit
from bitnet_core.losses.masks_and_rows import (
    TARGET_PLACES,
    Metrics,
    divisor_for,
    kd_mask,
    response_mask,
    targets,
    widened,
)
from bitnet_core.training.micro_batch import hidden_states

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@attrs.frozen
class Captured:
    """What the hooks captured in one forward pass."""

    outputs: dict[int, Tensor] = attrs.field(factory=dict)
    """Layer → its output [B, T, D]."""
    states: dict[str, Tensor] = attrs.field(factory=dict)
    """q_proj, k_proj, v_proj → what it gave, before norms and rotation."""


@contextmanager
def hooked_layers(decoder: nn.Module, layers: Sequence[int], attention: int | None) -> Iterator[Captured]:
    """Keep what these layers put out, and queries, keys and values of layer `attention`, in forward passes within.

    A layer that is recomputed in the backward pass isn't captured a second time. Layers must not be compiled.
    """
    captured = Captured()

    def keep(place: dict[Any, Tensor], key: Any) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            place[key] = output[0] if isinstance(output, tuple) else output

        return hook

    modules: Any = decoder.layers
    handles = [modules[index].register_forward_hook(keep(captured.outputs, index)) for index in dict.fromkeys(layers)]
    if attention is not None:
        block = modules[attention].self_attn
        handles += [getattr(block, name).register_forward_hook(keep(captured.states, name)) for name in PROJECTIONS]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()


@attrs.frozen(eq=False)
class Intermediate:
    """The terms, ready to be computed beside a loss."""

    config: IntermediateConfig
    teacher: nn.Module
    """The decoder without its head, as far as it is needed."""
    pairs: tuple[tuple[int, int], ...]
    """(student's layer, teacher's layer) whose outputs are compared; none without `hidden_weight`."""
    relation: tuple[int, int] | None
    """The layers whose relations are compared."""
    heads: int
    """Of the relations."""

    @property
    def student_layers(self) -> frozenset[int]:
        """Layers that are hooked."""
        return frozenset(student for student, _ in (*self.pairs, *([self.relation] if self.relation else [])))

    def hidden_states(self, decoder: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, Captured]:
        """The student's hidden states [B, T, D], and what the hooks captured."""
        layers, attention = [student for student, _ in self.pairs], self.relation[0] if self.relation else None
        with hooked_layers(decoder, layers, attention) as captured:
            return hidden_states(decoder, batch), captured

    def terms(
        self, student: Captured, batch: Mapping[str, Tensor], normaliser: Tensor | float
    ) -> tuple[Tensor, Metrics]:
        """The weighted sum of the terms, and each without its weight: ``hidden``, ``relation``."""
        layers, attention = [teacher for _, teacher in self.pairs], self.relation[1] if self.relation else None
        with torch.no_grad(), hooked_layers(self.teacher, layers, attention) as teacher:
            hidden_states(self.teacher, batch)
        device = batch["input_ids"].device
        weight_BT = torch.zeros(batch["input_ids"].shape, device=device)
        weight_BT[:, :-1] = targets(kd_mask(batch) | response_mask(batch)).float()
        total, metrics = torch.zeros((), device=device), {}
        with torch.autocast(device.type, enabled=False):
            divisor = divisor_for(normaliser, total)
            if self.pairs:
                metrics["hidden"] = self._hidden(student, teacher, weight_BT, batch.get(TARGET_PLACES)) / divisor
                total = total + self.config.hidden_weight * metrics["hidden"]
            if self.relation is not None:
                document_BT = batch.get("document_ids", batch["attention_mask"].long())
                metrics["relation"] = self._relation(student, teacher, document_BT, weight_BT) / divisor
                total = total + self.config.relation_weight * metrics["relation"]
        return total, {name: value.detach() for name, value in metrics.items()}

    def _hidden(self, student: Captured, teacher: Captured, weight_BT: Tensor, places_N2: Tensor | None) -> Tensor:
        """Σ over positions of the mean over layers."""
        distances = [
            hidden_distance(
                student.outputs[mine], teacher.outputs[theirs], weight_BT, self.config.hidden_distance, places_N2
            )
            for mine, theirs in self.pairs
        ]
        return torch.stack(distances).mean()

    def _relation(self, student: Captured, teacher: Captured, document_BT: Tensor, weight_BT: Tensor) -> Tensor:
        """Σ over positions of the sum over queries, keys and values."""
        kinds = [
            relation_kl(
                student.states[name],
                teacher.states[name],
                self.heads,
                self.config.relation_temperature,
                document_BT,
                weight_BT,
            )
            for name in PROJECTIONS
        ]
        return torch.stack(kinds).sum()


def hidden_distance(
    student_BTD: Tensor, teacher_BTD: Tensor, weight_BT: Tensor, kind: str, places_N2: Tensor | None = None
) -> Tensor:
    """Σ over positions of weight · distance: the mean squared difference ("mse"), or 1 − cosine; at least float32.

    places_N2: where the weight isn't 0; left out, they are looked for, for which the host waits.
    """
    counted = tuple(((weight_BT > 0).nonzero() if places_N2 is None else places_N2).unbind(dim=1))
    student_ND, teacher_ND = widened(student_BTD[counted]), widened(teacher_BTD[counted])
    if kind == "mse":
        distance_N = (student_ND - teacher_ND).square().mean(dim=-1)
    else:
        # Half the squared distance of the directions: 1 − cos itself would lose the digits of a small angle.
        distance_N = 0.5 * (unit(student_ND) - unit(teacher_ND)).square().sum(dim=-1)
    return (distance_N * weight_BT[counted]).sum()
