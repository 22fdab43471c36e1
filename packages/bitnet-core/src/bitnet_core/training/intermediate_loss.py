"""What the student's inner layers are held to: a teacher's on this machine (BitDistill, arXiv:2510.13998).

Here the teacher is loaded, its layers are paired with the student's, and the terms are computed beside the loss.
B sequences, T positions, D residual width. Outputs of layers, queries, keys and values are caught in the forward pass.
The teacher reads the same tokens, without gradient, up to the last layer that is compared. Terms are summed over the
positions that predict a target, as the loss is, and divided by the same normaliser, so accumulation and several
processes add up.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.errors import CoreError, own_code_refused
from bitnet_core.hardware import move
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
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.traces.tokenizer import tokenizer_identity
from bitnet_core.training.micro_batch import hidden_states
from bitnet_core.weight_format import check_sizes

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


def check_tokenizers(tokenizer_folder: Path, teacher_folder: Path) -> None:
    """Raise CoreError where the student doesn't read with the teacher's own tokenizer."""
    if tokenizer_identity(tokenizer_folder)[0] != tokenizer_identity(teacher_folder)[0]:
        raise CoreError(
            "loss.intermediate compares student and teacher position by position, so both must read the same "
            f"tokens, but the tokenizer in {tokenizer_folder} isn't the teacher's ({teacher_folder})",
            'set project.tokenizer = "teacher", or take [loss.intermediate] out',
        )


def open_intermediate(
    config: IntermediateConfig,
    teacher_folder: Path,
    tokenizer_folder: Path,
    student: nn.Module,
    dtype: torch.dtype,
    device: torch.device,
) -> Intermediate:
    """Load the teacher's decoder in `dtype` onto `device`. student: the student's decoder.

    Raises CoreError: another tokenizer, no such layer, widths that can't be compared, a decoder that can't be read.
    """
    check_tokenizers(tokenizer_folder, teacher_folder)
    teacher = _load_decoder(teacher_folder, dtype)
    student_config: Any = student.config
    depth, teacher_depth = len(_layers(student)), len(_layers(teacher))
    pairs: tuple[tuple[int, int], ...] = ()
    if config.hidden_weight:
        widths = student_config.hidden_size, teacher.config.hidden_size
        if widths[0] != widths[1]:
            raise CoreError(
                f"loss.intermediate.hidden_weight: the student is {widths[0]} wide and the teacher {widths[1]}",
                'start the student from the teacher\'s layers (student.init_from = "teacher"), or set '
                "hidden_weight = 0 and a relation_weight, which compares any widths",
            )
        pairs = _layer_pairs(config, depth, teacher_depth)
    relation, heads = None, 1
    if config.relation_weight:
        relation = (
            _layer(config.relation_student_layer, depth, "relation_student_layer", "student"),
            _layer(config.relation_teacher_layer, teacher_depth, "relation_teacher_layer", "teacher"),
        )
        heads = config.relation_heads or student_config.num_key_value_heads
        _check_heads(heads, student, teacher, relation, teacher_folder)
    last = max(each[1] for each in (*pairs, *([relation] if relation else [])))
    del _layers(teacher)[last + 1 :]
    return Intermediate(config, move(teacher, device), pairs, relation, heads)


@no_progress_bars()
def _load_decoder(folder: Path, dtype: torch.dtype) -> Any:
    from transformers import AutoModelForCausalLM

    check_sizes(folder)
    try:
        model: Any = AutoModelForCausalLM.from_pretrained(
            folder, dtype=dtype, local_files_only=True, use_safetensors=True, trust_remote_code=False
        )
    except (ValueError, OSError, RuntimeError, KeyError) as error:
        raise own_code_refused(f"loss.intermediate: {folder}", error) or CoreError(
            f"loss.intermediate: the teacher in {folder} can't be read: {error}",
            "copy or download the folder again, or take [loss.intermediate] out",
        ) from error
    decoder = model.base_model
    if not isinstance(getattr(decoder, "layers", None), nn.ModuleList):
        raise CoreError(
            f"loss.intermediate: the teacher in {folder} ({decoder.config.model_type}) keeps its layers where "
            "they are not found",
            "take a Llama-shaped teacher, or take [loss.intermediate] out",
        )
    return decoder.eval().requires_grad_(False)


def _layers(decoder: Any) -> Any:
    return decoder.layers


def _layer(index: int, depth: int, name: str, whose: str) -> int:
    if not -depth <= index < depth:
        raise CoreError(
            f"loss.intermediate.{name}: the {whose} has layers 0 to {depth - 1}, and {index} is none",
            "name one of them",
        )
    return index % depth


def _layer_pairs(config: IntermediateConfig, depth: int, teacher_depth: int) -> tuple[tuple[int, int], ...]:
    if not config.student_layers:  # at the same depth, the last with the last
        return tuple((index, -(-(index + 1) * teacher_depth // depth) - 1) for index in range(depth))
    return tuple(
        (_layer(mine, depth, "student_layers", "student"), _layer(theirs, teacher_depth, "teacher_layers", "teacher"))
        for mine, theirs in zip(config.student_layers, config.teacher_layers, strict=True)
    )


def _check_heads(heads: int, student: Any, teacher: Any, relation: tuple[int, int], teacher_folder: Path) -> None:
    for whose, decoder, index in (("student", student, relation[0]), ("teacher", teacher, relation[1])):
        block = getattr(_layers(decoder)[index], "self_attn", None)
        if not all(hasattr(block, name) for name in PROJECTIONS):
            raise CoreError(
                f"loss.intermediate.relation_weight: the teacher in {teacher_folder} has no q_proj, k_proj and "
                "v_proj of its own in a layer (one projection for all?)",
                "set relation_weight = 0 and a hidden_weight",
            )
        shape = decoder.config
        width = getattr(shape, "head_dim", None) or shape.hidden_size // shape.num_attention_heads
        for name, count in (("queries", shape.num_attention_heads), ("keys and values", shape.num_key_value_heads)):
            if count * width % heads:
                raise CoreError(
                    f"loss.intermediate.relation_heads: the {whose}'s {name} are {count * width} wide, which "
                    f"{heads} heads don't divide",
                    "set it to a divisor of that",
                )
