"""Load the teacher that the student's inner layers are held to, and check before training that they can be compared."""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.errors import CoreError, own_code_refused
from bitnet_core.hardware import move
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.traces.tokenizer import tokenizer_identity
from bitnet_core.training.intermediate_loss import PROJECTIONS, Intermediate
from bitnet_core.weight_format import check_sizes


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
