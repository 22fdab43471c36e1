"""The snapped student: the checkpoint with the very values that exports store. Every comparison uses this one.

Shapes: O output rows, I input width.
"""

import copy
from typing import TypeVar, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_core.errors import CoreError
from bitnet_core.model.find_layers_and_head import embedding, head
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.progress_bars import no_progress_bars
from bitnet_core.ternary.bitlinear import BitLinear, ternary_layers
from bitnet_core.ternary.packed_linear import PackedBitLinear, pack_codes
from bitnet_core.ternary.packed_table import pack_table, unpack_table

Model = TypeVar("Model", bound=PreTrainedModel)


def snapped(model: Model) -> Model:
    """A copy of `model` for inference, float32 on the CPU, with the values that every export holds exactly.

    - Ternary layers become `PackedBitLinear`: the codes stay as they are, each row scale is rounded to float16. A row
      whose scale is below float16 (under 3e-8) becomes a row of zeros.
    - Embedding and head are rounded to 8 bits with a float16 scale for each 32 (`packed_table`).
    - Dense matrices are rounded to float16. Norm gains and biases stay float32, as in GGUF.

    Raises:
        CoreError: a value is not finite, or beyond float16 (65504), with the tensor's name.
    """
    if isinstance(model, BitNetKDEForCausalLM):
        return cast(Model, _snapped_own(model))
    return _snapped_in_place(copy.deepcopy(model).cpu().float())


@torch.no_grad()
def _snapped_in_place(model: Model) -> Model:
    """A model of another architecture, whose tables stay dense with the values of their 8 bits."""
    for name, layer in list(ternary_layers(model)):
        packed = PackedBitLinear(layer.in_features, layer.out_features)
        codes_OI, packed.row_scale = snapped_codes(name, layer)
        packed.codes, packed.bias, packed.input_quantiser = pack_codes(codes_OI), layer.bias, layer.input_quantiser
        model.set_submodule(name, packed)
    tables = {id(embedding(model).weight), id(head(model).weight)}
    for name, parameter in model.named_parameters():
        if id(parameter) in tables:
            parameter.copy_(_table(name, parameter, packed=False)[name])
        elif parameter.dim() > 1:
            parameter.copy_(_in_float16(name, parameter))
    return model.eval().requires_grad_(False)


def _snapped_own(model: BitNetKDEForCausalLM) -> BitNetKDEForCausalLM:
    layers = dict(ternary_layers(model))
    state: dict[str, Tensor] = {}
    for name, layer in layers.items():
        codes_OI, scale_O = snapped_codes(name, layer)
        state[f"{name}.codes"], state[f"{name}.row_scale"] = pack_codes(codes_OI), scale_O
    for name, tensor in model.state_dict().items():
        owner, _, last = name.rpartition(".")
        if owner in layers and last in ("weight", "log_scale"):
            continue
        tensor = tensor.detach().cpu()
        if name in ("model.embed_tokens.weight", "lm_head.weight"):
            state |= _table(name, tensor, packed=model.config.quantise_weights)
            continue
        state[name] = _in_float16(name, tensor) if tensor.dim() > 1 and tensor.is_floating_point() else tensor
    config = copy.deepcopy(model.config)
    config.packed = config.packed_tables = config.quantise_weights
    if config.packed and config.tie_word_embeddings:
        state = {name: tensor for name, tensor in state.items() if not name.startswith("lm_head.")}
    config.dtype = torch.float32
    with no_progress_bars():
        packed: BitNetKDEForCausalLM = BitNetKDEForCausalLM.from_pretrained(
            None, config=config, state_dict=state, dtype=torch.float32, trust_remote_code=False
        )
    packed.generation_config = copy.deepcopy(model.generation_config)
    return packed.eval().requires_grad_(False)


@torch.no_grad()
def snapped_codes(name: str, layer: BitLinear) -> tuple[Tensor, Tensor]:
    """The codes [O, I], int8, and the scales [O], float32 values of float16, of one ternary layer."""
    scale_O = _in_float16(f"{name}.log_scale, as scales,", layer.row_log_scale().detach().cpu().float().exp())
    return layer.codes().cpu() * (scale_O > 0)[:, None].to(torch.int8), scale_O


def _table(name: str, weight_VD: Tensor, *, packed: bool) -> dict[str, Tensor]:
    """The tensors of a table in 8 bits; where the model isn't packed, its values."""
    if not torch.isfinite(weight_VD).all():
        _in_float16(name, weight_VD)  # says so
    codes_VD, scale_VB = pack_table(weight_VD)
    _in_float16(f"{name}'s scales", scale_VB)
    if not packed:
        return {name: unpack_table(codes_VD, scale_VB)}
    owner = name.removesuffix(".weight")
    return {f"{owner}.codes": codes_VD, f"{owner}.block_scale": scale_VB}


def _in_float16(name: str, tensor: Tensor) -> Tensor:
    rounded = tensor.half().float()
    if not torch.isfinite(rounded).all():
        worst = tensor.abs().nan_to_num(nan=float("inf")).max()
        raise CoreError(
            f"{name} holds {worst:g}, which float16 can't (at most 65504): this checkpoint can't be exported",
            "train it again with a lower learning rate, or export an earlier checkpoint",
        )
    return rounded
