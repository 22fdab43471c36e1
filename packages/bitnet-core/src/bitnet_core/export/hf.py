"""The ``hf`` export: what plain transformers opens as Llama, Qwen2, Qwen3 or BitNet, with 8-bit activations.

Its layers are transformers' `AutoBitLinear` in offline mode: dense weights, here scale times code, so that one scale
per row costs nothing, and `weight_scale` 1. Not `BitLinear`, the packed one: it has one scale for the whole matrix.

A student of another architecture keeps its own config. transformers' BitNet integration takes every `nn.Linear` by its
name, so of GPT-2, whose layers are `Conv1D`, the folder has the weights alone and computes without activation
quantisation.
"""

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import BitNetConfig, LlamaConfig, PreTrainedConfig, PreTrainedModel, Qwen2Config, Qwen3Config
from transformers.pytorch_utils import Conv1D

from bitnet_core.config.export import HFOptions
from bitnet_core.export.load_student import Student
from bitnet_core.export.published_architecture import Architecture, architecture_of
from bitnet_core.export.readme import hf_card
from bitnet_core.export.upload_to_hub import hub_publisher
from bitnet_core.export.write_weights import write_weights
from bitnet_core.files import write_text
from bitnet_core.hookspecs import Exporter
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.find_layers_and_head import activation_bits
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.ternary.packed_linear import PackedBitLinear
from bitnet_core.ternary.packed_table import PackedTable

TARGET = "hf"


_SHAPE = (
    "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
    "num_key_value_heads", "head_dim", "max_position_embeddings", "initializer_range", "rms_norm_eps",
    "rope_parameters", "hidden_act", "attention_bias", "tie_word_embeddings", "bos_token_id", "eos_token_id",
    "pad_token_id",
)  # fmt: skip


_PUBLISHED: Mapping[Architecture, tuple[type[PreTrainedConfig], str]] = {
    "llama": (LlamaConfig, "LlamaForCausalLM"),
    "bitnet": (BitNetConfig, "BitNetForCausalLM"),
    "qwen2": (Qwen2Config, "Qwen2ForCausalLM"),
    "qwen3": (Qwen3Config, "Qwen3ForCausalLM"),
}


def hf_exporter(options: HFOptions) -> Exporter:
    """Writes a folder that plain transformers opens; for `bitnet_core.export.folder.export`.

    With `options.push_to` it can publish that folder on the Hugging Face Hub, too.
    """
    return Exporter(
        targets=(TARGET,), write=write_hf, publish=hub_publisher(TARGET, options) if options.push_to else None
    )


def write_hf(student: Student, out: Path) -> Mapping[str, Any]:
    """The folder ``hf``: weights, config, generation config, tokenizer with its chat template, and a model card."""
    model = student.model
    if isinstance(model, BitNetKDEForCausalLM):
        a8 = model.config.activation_bits != 16
        config, state = hf_config(model.config), hf_state(model)
    else:
        config, state, bits = other_hf(model)
        a8 = bits == 8
    folder = out / TARGET
    folder.mkdir()
    config.save_pretrained(folder)
    if model.generation_config is not None:
        model.generation_config.save_pretrained(folder)
    # transformers keeps the dtypes of a quantised model's file, and its layers compute in one: float32.
    halve = not a8 and isinstance(model, BitNetKDEForCausalLM)
    write_weights(folder, state, tied_head=bool(config.tie_word_embeddings), halve=halve)
    student.copy_tokenizer(folder)
    write_text(folder / "README.md", hf_card(student, 8 if a8 else 16))
    figures: dict[str, Any] = {"architecture": config.model_type, "activation_bits": 8 if a8 else 16}
    if not a8 and activation_bits(model) != 16:
        figures["notes"] = [
            f"transformers' BitNet layers stand in for no Conv1D, which {config.model_type} is made of: this folder "
            "computes without activation quantisation"
        ]
    return {TARGET: figures}


def hf_config(config: BitNetKDEConfig) -> PreTrainedConfig:
    """The config of the published architecture. Raises CoreError where there is none for the student's switches."""
    fields: dict[str, Any] = {name: getattr(config, name) for name in _SHAPE}
    fields |= {"dtype": torch.float32}
    architecture = architecture_of(config)
    if architecture == "llama":
        fields["mlp_bias"] = config.mlp_bias
    kind, name = _PUBLISHED[architecture]
    published: PreTrainedConfig = kind(**fields, architectures=[name])
    if config.activation_bits != 16:
        published.quantization_config = {
            "quant_method": "bitnet",
            "linear_class": "autobitlinear",
            "quantization_mode": "offline",
            "use_rms_norm": False,
            "modules_to_not_convert": ["lm_head"],
        }
    return published


def hf_state(model: BitNetKDEForCausalLM) -> dict[str, Tensor]:
    """The snapped student's tensors under the published architecture's names: dense weights, exact in float16."""
    config = model.config
    modules = dict(model.named_modules())
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        module = modules[owner]
        if isinstance(module, PackedTable):
            state[f"{owner}.weight"] = module.weight
        elif not isinstance(module, PackedBitLinear):
            state[name] = tensor
        elif last == "codes":
            state[f"{owner}.weight"] = module.quantised_weight()
        elif last == "bias":
            state[name] = tensor
    if config.activation_bits != 16:
        for name in [name for name in state if _is_projection(name)]:
            state[name.removesuffix("weight") + "weight_scale"] = torch.ones(1)
    return state


def _is_projection(name: str) -> bool:
    return name.endswith("_proj.weight")


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
