"""A student of another architecture than Llama's: transformers' own model of a checkpoint, made ternary."""

from pathlib import Path

import torch
from torch import Tensor
from transformers import AutoConfig, PreTrainedModel

from bitnet_core.config.student import StudentConfig
from bitnet_core.errors import CoreError, own_code_refused
from bitnet_core.model.dense_checkpoint import load_dense
from bitnet_core.model.find_layers_and_head import decoder, head, head_input, set_activation_bits
from bitnet_core.model.ternarise import ternarise
from bitnet_core.weight_format import FIX, architecture_problem, check_sizes, start_problem

_SAME_LOGITS = 1e-3
"""Of the largest logit: so far may transformers' logits be from the head's product."""


def ternary_student(folder: Path, config: StudentConfig) -> PreTrainedModel:
    """The model in `folder` as `config.architecture` says, float32, with ternary weights; one that is ternary already
    keeps its scales.

    Raises:
        CoreError: no checkpoint, another architecture than asked for, quantised weights, or logits that are not the
            head's product (a soft cap), so that the losses don't fit.
    """
    model = dense_or_ternary(folder, config)
    section = getattr(model.config, "quantization_config", None)
    if section is None:
        check_logits(folder, model)
        ternarise(
            model,
            weight_quantiser=config.weight_quantiser,
            activation_bits=config.activation_bits,
            leave_out=config.leave_out,
        )
    elif section.weight_quantiser != config.weight_quantiser:
        raise CoreError(
            f"student.init_from: {folder} was made ternary by {section.weight_quantiser}",
            f'set student.weight_quantiser = "{section.weight_quantiser}"',
        )
    else:
        set_activation_bits(model, config.activation_bits)
    return model


def dense_or_ternary(folder: Path, config: StudentConfig) -> PreTrainedModel:
    """The model in `folder` as it is, float32. Raises CoreError as `ternary_student`."""
    check_architecture(folder, config)
    return load_dense(folder)


def check_architecture(folder: Path, config: StudentConfig) -> None:
    """Raises CoreError where the checkpoint in `folder` is none that `config` could start from."""
    if not (folder / "config.json").is_file():
        raise CoreError(
            f"student.init_from: there is no config.json in {folder}",
            "name a folder that transformers' save_pretrained wrote (config.json and *.safetensors)",
        )
    check_sizes(folder)
    if problem := start_problem(folder):
        raise CoreError(f"student.init_from: {folder} can't start a student: {problem}", FIX)
    try:
        found = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # transformers checks a config with a library whose errors are plain Exceptions
        raise own_code_refused(f"student.init_from: {folder}", error) or CoreError(
            f"student.init_from: {folder / 'config.json'} can't be read: {error}", "copy or download the folder again"
        ) from error
    if problem := architecture_problem(config.architecture, found.to_dict()):
        raise CoreError(f"student.architecture: {folder}: {problem}", 'set student.architecture = "teacher\'s"')


@torch.no_grad()
def check_logits(folder: Path, model: PreTrainedModel) -> None:
    """Raises CoreError where the logits are not the head's weight times hidden states: the losses take those two."""
    ids = torch.arange(4)[None] % int(head(model).weight.shape[0])
    model.eval()
    hidden_BTD = head_input(model, decoder(model)(input_ids=ids, use_cache=False).last_hidden_state)
    ours: Tensor = hidden_BTD @ head(model).weight.T
    theirs: Tensor = model(input_ids=ids, use_cache=False).logits
    if ours.shape != theirs.shape or (ours - theirs).abs().max() > _SAME_LOGITS * theirs.abs().max():
        raise CoreError(
            f"student.init_from: the logits of {folder} ({model.config.model_type}) are not its head times its hidden "
            "states (a soft cap, or a bias), and the losses are made for those",
            "start from another checkpoint; in a loop of your own bitnet_core.ternarise and combined_loss take it",
        )
