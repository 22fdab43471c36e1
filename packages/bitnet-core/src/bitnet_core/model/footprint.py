"""How many bytes a model's parameters take, packed and as they lie in memory. A tied parameter counts once."""

from torch import nn

from bitnet_core.bitlinear import ternary_layers
from bitnet_core.packed_linear import PackedBitLinear
from bitnet_core.quantisers import TERNARY_BITS


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters as they are: numel times element size."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def packed_bytes(model: nn.Module) -> int:
    """Bytes that the packed model takes: 2 bits a ternary weight, 2 bytes (fp16) a row scale and everything else."""
    ternary = {id(layer.weight): layer.weight.numel() for _, layer in ternary_layers(model)}
    others = sum(parameter.numel() for parameter in model.parameters() if id(parameter) not in ternary)
    packed = [layer for layer in model.modules() if isinstance(layer, PackedBitLinear)]
    codes = sum((count * TERNARY_BITS + 7) // 8 for count in ternary.values())
    codes += sum(layer.codes.numel() for layer in packed)
    return codes + 2 * (others + sum(layer.row_scale.numel() for layer in packed))
