"""The ``hf`` export of a student of another architecture: its own config, dense weights, 8-bit inputs where possible.

transformers' BitNet integration takes every `nn.Linear` by its name, so of GPT-2, whose layers are `Conv1D`, the folder
has the weights alone and computes without activation quantisation.
"""

import copy
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitnet_core.model.find_layers_and_head import activation_bits
from bitnet_core.ternary.packed_linear import PackedBitLinear


def other_hf(model: PreTrainedModel) -> tuple[PreTrainedConfig, dict[str, Tensor], int]:
    """Config and tensors of the folder for the snapped `model`, and the activation bits at which it computes."""
    config = copy.deepcopy(model.config)
    del config.quantization_config
    config.architectures, config.dtype = [type(model).__name__], torch.float32
    with torch.device("meta"):
        plain = type(model)(copy.deepcopy(config))
    packed = {name: each for name, each in model.named_modules() if isinstance(each, PackedBitLinear)}
    transposed = {name for name in packed if isinstance(plain.get_submodule(name), Conv1D)}
    quantised = activation_bits(model) != 16 and not transposed
    if quantised:
        config.quantization_config = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "use_rms_norm": False,
            "modules_to_not_convert": [
                name for name, each in plain.named_modules() if isinstance(each, nn.Linear) and name not in packed
            ],
        }
    state = _dense_state(model, packed, transposed)
    if quantised:
        state |= {f"{name}.weight_scale": torch.ones(1) for name in packed}
    return config, state, 8 if quantised else 16


def _dense_state(model: PreTrainedModel, packed: dict[str, Any], transposed: set[str]) -> dict[str, Tensor]:
    tied = model.all_tied_weights_keys if model.config.tie_word_embeddings else {}
    state = {}
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        if name in tied or (owner in packed and last != "bias"):
            continue
        state[name] = tensor
    for name, layer in packed.items():
        weight_OI = layer.quantised_weight()
        state[f"{name}.weight"] = weight_OI.T if name in transposed else weight_OI
    return state
