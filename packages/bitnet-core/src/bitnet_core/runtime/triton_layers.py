"""A packed student's layers on the kernels of `ternary_triton`: the model's own code goes on unchanged around them.

A quantiser hands integers to the layers behind it instead of rounded numbers, once for all that share it.
"""

import torch
from torch import Tensor, nn

from bitnet_core.errors import CoreError
from bitnet_core.packed_linear import PackedBitLinear
from bitnet_core.quantisers import FakeQuantActivation
from bitnet_core.runtime.ternary_triton import QuantisedTokens, padded_codes, product, quantise


class TokenQuantiser(nn.Module):
    """Takes `FakeQuantActivation`'s place."""

    def __init__(self, bits: int) -> None:
        super().__init__()
        self.bits = bits

    def forward(self, x: Tensor) -> QuantisedTokens:
        return quantise(x, self.bits)


class TernaryKernelLinear(nn.Module):
    """Takes `PackedBitLinear`'s place; gives `dtype`."""

    def __init__(self, layer: PackedBitLinear, dtype: torch.dtype) -> None:
        super().__init__()
        self.codes: Tensor
        self.row_scale: Tensor
        self.bias: Tensor | None
        self.register_buffer("codes", padded_codes(layer.codes))
        self.register_buffer("row_scale", layer.row_scale.float())
        self.register_buffer("bias", None if layer.bias is None else layer.bias.detach().float())
        self.dtype = dtype

    def forward(self, x: QuantisedTokens) -> Tensor:
        return product(x, self.codes, self.row_scale, self.bias, dtype=self.dtype).view(*x.shape, -1)


def put_kernels(model: nn.Module, dtype: torch.dtype) -> None:
    """Replace the layers of a packed student. Ternary products come in `dtype`.

    Raises CoreError where activations aren't quantised: there are no integers to multiply then.
    """
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, FakeQuantActivation):
                if child.bits == 16:
                    raise CoreError("the packed runtime has integer activations, 8 or 4 bits; use the runtime torch")
                setattr(module, name, TokenQuantiser(child.bits))
            elif isinstance(child, PackedBitLinear):
                setattr(module, name, TernaryKernelLinear(child, dtype))
