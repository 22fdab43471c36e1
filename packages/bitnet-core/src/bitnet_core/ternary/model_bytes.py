"""The bytes that a model takes: as it is, and packed."""

from typing import Any

from torch import nn

from bitnet_core.ternary.bitlinear import BitLinear
from bitnet_core.ternary.packed_linear import CODES_PER_BYTE, PackedBitLinear
from bitnet_core.ternary.packed_table import BLOCK, PackedTable


def dense_bytes(model: nn.Module) -> int:
    """Bytes of all parameters as they are: numel times element size."""
    return sum(parameter.numel() * parameter.element_size() for parameter in model.parameters())


def packed_bytes(model: nn.Module) -> int:
    """Bytes of the tensors in the model's packed export: a byte for four codes of a row, two for a scale, 34 for 32
    weights of embedding or head (a tied one once), two for any other weight of a matrix, four of a vector.
    """
    find: Any = getattr(model, "get_output_embeddings", lambda: None)
    head = find()
    size, seen = 0, set[int]()
    for module in model.modules():
        own = {name: tensor for name, tensor in module.named_parameters(recurse=False) if id(tensor) not in seen}
        seen |= {id(tensor) for tensor in own.values()}
        if isinstance(module, BitLinear | PackedBitLinear):
            own = {name: tensor for name, tensor in own.items() if name == "bias"}
            size += module.out_features * (-(-module.in_features // CODES_PER_BYTE) + 2)
        elif isinstance(module, PackedTable):
            size += module.codes.numel() + 2 * module.block_scale.numel()
        elif isinstance(module, nn.Embedding) or module is head:
            size += sum(len(table) * (table.shape[1] - 2 * (-table.shape[1] // BLOCK)) for table in own.values())
            continue
        size += sum(tensor.numel() * (2 if tensor.dim() > 1 else 4) for tensor in own.values())
    return size
