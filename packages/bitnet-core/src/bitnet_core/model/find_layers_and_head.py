"""Where a causal language model of any architecture keeps its parts: decoder layers, their linears, embedding and head.

What works on a student goes through these, so that it takes the Llama-shaped one and any other of transformers.
"""

from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from bitnet_core.errors import CoreError
from bitnet_core.ternary.activation_quantiser import quantise_activations
from bitnet_core.ternary.packed_linear import PackedBitLinear


def decoder(model: PreTrainedModel) -> Any:
    """The model without its head: token ids in, final hidden states out."""
    return model.base_model


def decoder_layers(model: PreTrainedModel) -> nn.ModuleList:
    """The decoder layers, in their order. Raises CoreError where none are found."""
    count = model.config.get_text_config(decoder=True).num_hidden_layers
    for module in model.get_decoder().modules():
        if isinstance(module, nn.ModuleList) and len(module) == count:
            return module
    raise CoreError(
        f"{type(model).__name__}: no list of {count} decoder layers in it, as its config says",
        "name a causal language model of transformers",
    )


def layers_name(model: PreTrainedModel) -> str:
    """The name of `decoder_layers` in the model, "model.layers" for one."""
    layers = decoder_layers(model)
    return next(name for name, module in model.named_modules() if module is layers)


def linears(module: nn.Module) -> dict[str, Any]:
    """Every linear layer by its name within `module`: plain, transposed (`Conv1D`), ternary or packed."""
    return {
        name: found
        for name, found in module.named_modules(remove_duplicate=False)
        if isinstance(found, nn.Linear | Conv1D | PackedBitLinear)
    }


def widths(linear: Any) -> tuple[int, int]:
    """Inputs and outputs of one of `linears`."""
    if isinstance(linear, Conv1D):
        inputs, outputs = linear.weight.shape
        return inputs, outputs
    return linear.in_features, linear.out_features


def embedding(model: PreTrainedModel) -> Any:
    """The table of the tokens' embeddings, a module with `weight` [V, D]."""
    return model.get_input_embeddings()


def head(model: PreTrainedModel) -> Any:
    """The language model's head, a module with `weight` [V, D]."""
    return model.get_output_embeddings()


def head_input(model: PreTrainedModel, hidden: Tensor) -> Tensor:
    """What the head multiplies with its weight, of final hidden states: some models scale their logits."""
    factor = _logit_factor(model.config)
    return hidden if factor == 1.0 else hidden * factor


def _logit_factor(config: Any) -> float:
    """Granite divides its logits, Cohere multiplies them."""
    return float(getattr(config, "logit_scale", None) or 1.0) / float(getattr(config, "logits_scaling", None) or 1.0)


def activation_bits(model: PreTrainedModel) -> int:
    """Bits of a student's activations: 8, 4 or 16 (off)."""
    return int(_quantisation(model).activation_bits)


def set_activation_bits(model: PreTrainedModel, bits: int) -> None:
    """Quantise a student's activations to 8 or 4 bits from now on; 16 is off. Its config, and so a checkpoint, knows.

    With 4, only inputs that a norm has put out go below 8.
    """
    quantise_activations(model, bits)
    _quantisation(model).activation_bits = bits


def _quantisation(model: PreTrainedModel) -> Any:
    """What says how the model is quantised: of a Llama-shaped student its config, of another a section of it."""
    return getattr(model.config, "quantization_config", None) or model.config
