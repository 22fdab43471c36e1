"""What exporters are given: the snapped student of a checkpoint, its tokenizer, and what is known of its run."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import torch
from transformers import PreTrainedModel

from bitnet_core.config.student import StudentConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.end_tokens import configured_ends, set_end_tokens
from bitnet_core.model.inference_copy import snapped
from bitnet_core.model.init_from import init_from, read_config
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.read_checkpoint import load_model, read_state
from bitnet_core.ternary.bitlinear import BitLinear, ternary_layers
from bitnet_core.traces.dataset import common_metadata
from bitnet_core.traces.tokenizer import chat_template, end_tokens, load_tokenizer, tokenizer_sha256, vocabulary_size
from bitnet_core.traces.tokenizer_files import copy_tokenizer
from bitnet_core.weight_format import bitnet_format, is_student


@attrs.frozen(kw_only=True)
class Student:
    """A student ready to be written."""

    model: PreTrainedModel
    """Snapped: see `bitnet_core.model.inference_copy`. Its activation bits are the checkpoint's."""
    tokenizer: Any
    checkpoint: Path
    facts: Mapping[str, Any]
    """What the model card says of the run, all optional: ``name``, ``teacher``, ``evaluation`` (its report)."""

    def copy_tokenizer(self, folder: Path) -> None:
        """Put the tokenizer's files, chat template included, into `folder`."""
        copy_tokenizer(self.checkpoint, folder)

    @property
    def chat_template(self) -> str | None:
        return chat_template(self.tokenizer)

    @property
    def ends(self) -> list[int]:
        """Tokens that end an answer, the tokenizer's end of sequence before the turn's end, and that before others."""
        return end_tokens(self.checkpoint, self.tokenizer, configured_ends(self.model))


def load_student(checkpoint: Path, facts: Mapping[str, Any] | None = None, traces: Path | None = None) -> Student:
    """The student of a checkpoint's folder. `traces` is the folder of the KD shards that it learned from, if there.

    Raises:
        CoreError: no checkpoint, one of another version, damaged files, or a tokenizer that doesn't fit.
    """
    is_ours = _check_kind(checkpoint)
    if (checkpoint / "training.json").exists():
        read_state(checkpoint)
    if not any((checkpoint / name).is_file() for name in ("tokenizer.json", "tokenizer.model", "vocab.json")):
        raise CoreError(
            f"{checkpoint}: no tokenizer beside the weights",
            "copy tokenizer.json and tokenizer_config.json there, or save it with tokenizer.save_pretrained(folder)",
        )
    model: PreTrainedModel = load_model(checkpoint) if is_ours else _released(checkpoint)
    tokenizer = load_tokenizer(checkpoint)
    known, names = model.config.vocab_size, vocabulary_size(tokenizer)
    if names > known:
        raise CoreError(
            f"{checkpoint}: the tokenizer has {names} tokens, the model knows {known}: they don't belong together",
            "put the tokenizer that it was trained with back (tokenizer.json, tokenizer_config.json)",
        )
    _check_traces(tokenizer, checkpoint, traces)
    student = Student(model=snapped(model), tokenizer=tokenizer, checkpoint=checkpoint, facts=dict(facts or {}))
    set_end_tokens(student.model, student.ends)  # a checkpoint of version 1 may not know its turn's end
    return student


def load_own(checkpoint: Path) -> PreTrainedModel:
    """The model of `checkpoint` as it was trained, before it is snapped. Raises CoreError as `load_student`."""
    return load_model(checkpoint) if _check_kind(checkpoint) else _released(checkpoint)


def _released(folder: Path) -> BitNetKDEForCausalLM:
    """A model that others have published in BitNet's format, with its codes and scales."""
    config = read_config(folder)
    model = init_from(folder, StudentConfig(sublayer_norm=config.model_type == "bitnet"))
    format_ = bitnet_format(config.to_dict())
    assert format_ is not None
    for name, layer in ternary_layers(model):
        # Masters are made ternary at each use; else what a ternary layer makes of its weight must be the weight.
        is_ternary = format_.converts(name) if format_.online else _is_exact(layer)
        if not is_ternary:
            raise CoreError(f"{folder}: its {name} is not ternary", "start a student from it, and train that one")
    return model


@torch.no_grad()
def _is_exact(layer: BitLinear) -> bool:
    return torch.allclose(layer.quantised_weight(), layer.weight, rtol=1e-4, atol=0)


def _check_kind(checkpoint: Path) -> bool:
    """Whether it is a student of this project; False: ternary weights in BitNet's format. CoreError for all others."""
    file = checkpoint / "config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("model_type")
    except OSError as error:
        raise CoreError(
            f"{checkpoint}: no checkpoint here (no config.json)", "name a run folder or one of its checkpoints/step_N"
        ) from error
    except (ValueError, AttributeError) as error:
        raise CoreError(
            f"{file}: can't be read ({error}), so the checkpoint is damaged", "export another one"
        ) from error
    if kind != "bitnet_kde" and bitnet_format(config) is not None:
        return False
    if not is_student(config):
        raise CoreError(
            f"{checkpoint}: a {kind} model, not a student of this project (bitnet_kde), nor one in BitNet's format",
            "export a checkpoint that `bitnet run` made, or one of bitnet_core.build_student",
        )
    if config.get("packed"):
        raise CoreError(f"{checkpoint}: this is a packed export already", "export the checkpoint that it was made from")
    return True


def _check_traces(tokenizer: Any, checkpoint: Path, traces: Path | None) -> None:
    """The checkpoint's tokenizer must be the one that gave the traces their ids."""
    files = sorted(traces.glob("kd_shard_*.parquet")) if traces is not None else []
    metadata = common_metadata(files) if files else None
    if metadata is not None and tokenizer_sha256(tokenizer) != metadata.tokenizer_sha256:
        raise CoreError(
            f"{checkpoint}: its tokenizer is not the one that the traces in {traces} were made with, so its ids "
            "mean other words",
            "put the right tokenizer back (tokenizer.json, tokenizer_config.json)",
        )
