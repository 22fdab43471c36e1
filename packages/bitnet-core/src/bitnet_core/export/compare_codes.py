"""Reads ternary codes and row scales back out of exported files, and counts what differs from the checkpoint's.

Shapes: O output rows, I input width. Independent of how the files were written: from the bytes to codes and scales.
"""

from collections.abc import Callable, Mapping
from pathlib import Path

import attrs
import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor
from transformers import PreTrainedModel

from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.model.ternarise import TransposedBitLinear
from bitnet_core.ternary.bitlinear import BitLinear, ternary_layers
from bitnet_core.ternary.packed_linear import unpack_codes
from bitnet_core.ternary.ternary_linear import ternary_codes

_GGUF_NAMES = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}  # fmt: skip


@attrs.frozen
class CodeComparison:
    codes: int
    differing_codes: int
    scales: int
    differing_scales: int


def compare_safetensors(model: PreTrainedModel, folder: Path) -> CodeComparison:
    """The ``hf`` or ``packed`` folder against the checkpoint's model."""
    tensors = _read(folder)

    def stored(name: str, layer: BitLinear) -> Tensor:
        if f"{name}.codes" in tensors:
            codes_OI = unpack_codes(tensors[f"{name}.codes"], layer.in_features)
            return codes_OI * tensors[f"{name}.row_scale"].float()[:, None]
        weight = tensors[f"{name}.weight"].float()
        return weight.T if isinstance(layer, TransposedBitLinear) else weight

    return _compare(model, stored)


def compare_gguf(model: BitNetKDEForCausalLM, file: Path) -> CodeComparison:
    """A GGUF file against the checkpoint's model; what padding added must be zero and counts as codes that differ."""
    from bitnet_core.export.gguf.q2_0 import Reader, read_matrix  # gguf is an extra

    reader = Reader(file)
    tensors = {tensor.name: tensor for tensor in reader.tensors}
    is_llama = bytes(reader.fields["general.architecture"].parts[-1]) == b"llama"
    width = model.config.head_dim
    assert width is not None

    def stored(name: str, layer: BitLinear) -> Tensor:
        _, _, number, rest = name.split(".", 3)
        found = tensors[f"blk.{number}.{_GGUF_NAMES[rest]}.weight"]
        values = read_matrix(found)
        if is_llama and rest in ("self_attn.q_proj", "self_attn.k_proj"):
            pairs = values.reshape(-1, width // 2, 2, values.shape[1])
            values = pairs.swapaxes(1, 2).reshape(values.shape)
        return torch.from_numpy(np.ascontiguousarray(values))

    return _compare(model, stored)


def _compare(model: PreTrainedModel, stored: Callable[[str, BitLinear], Tensor]) -> CodeComparison:
    codes = differing_codes = scales = differing_scales = 0
    for name, layer in ternary_layers(model):
        values = stored(name, layer)
        rows, columns = layer.weight.shape
        inside, wanted = values[:rows, :columns], ternary_codes(layer.weight, layer.row_log_scale())
        scale_O = layer.row_log_scale().detach().float().exp().half().float()
        present_O = (wanted != 0).any(1) & (scale_O > 0)
        codes += wanted.numel()
        differing_codes += int((inside.sign() != wanted * (scale_O > 0)[:, None]).sum())
        differing_codes += int(torch.count_nonzero(values)) - int(torch.count_nonzero(inside))
        scales += int(present_O.sum())
        differing_scales += int((inside.abs().amax(1) != scale_O)[present_O].sum())
    return CodeComparison(codes, differing_codes, scales, differing_scales)


def _read(folder: Path) -> Mapping[str, Tensor]:
    tensors: dict[str, Tensor] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as opened:
            tensors |= {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 -- no mapping
    return tensors
