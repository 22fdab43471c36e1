"""A ternary linear layer as it is deployed: two bits a weight and one scale per output row, for inference only.

Shapes: N tokens (any leading dimensions), I input width, O output width, P bytes of a row (four codes each).
"""

import torch
from torch import Tensor, nn

from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.ternary_linear import compute_dtype

CODES_PER_BYTE = 4


def pack_codes(codes_OI: Tensor) -> Tensor:
    """Ternary codes [O, I] (-1, 0, 1) as uint8 [O, P]: code + 1 in two bits, the first column in the lowest bits."""
    padding = -codes_OI.shape[1] % CODES_PER_BYTE
    digits = nn.functional.pad(codes_OI.to(torch.int8) + 1, (0, padding)).to(torch.uint8)
    quads = digits.unflatten(1, (-1, CODES_PER_BYTE))
    return quads[..., 0] | quads[..., 1] << 2 | quads[..., 2] << 4 | quads[..., 3] << 6


def unpack_codes(packed_OP: Tensor, width: int) -> Tensor:
    """The codes [O, `width`], int8, that `pack_codes` was given."""
    digits = torch.stack([packed_OP >> shift & 3 for shift in (0, 2, 4, 6)], dim=-1)
    return digits.flatten(1)[:, :width].to(torch.int8) - 1


class PackedBitLinear(nn.Module):
    """Computes what `BitLinear` does, from packed codes. Its input is quantised as there.

    `codes` [O, P] uint8; `row_scale` [O] float32 that float16 holds exactly; `bias` [O] or None.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = in_features, out_features
        bytes_a_row = -(-in_features // CODES_PER_BYTE)
        self.codes: Tensor
        self.row_scale: Tensor
        self.register_buffer("codes", torch.zeros(out_features, bytes_a_row, dtype=torch.uint8))
        self.register_buffer("row_scale", torch.ones(out_features))
        self.bias = nn.Parameter(torch.zeros(out_features)) if bias else None
        self.input_quantiser: FakeQuantActivation | None = None
        self._held_weight: Tensor | None = None

    def quantised_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``s * t`` [O, I]."""
        return (unpack_codes(self.codes, self.in_features) * self.row_scale[:, None]).to(dtype)

    def forward(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.to(compute_dtype(x_NI)) if self.input_quantiser is None else self.input_quantiser(x_NI)
        weight = self.quantised_weight(x_NI.dtype) if self._held_weight is None else self._held_weight.to(x_NI.dtype)
        return nn.functional.linear(x_NI, weight, None if self.bias is None else self.bias.to(x_NI.dtype))

    def extra_repr(self) -> str:
        return f"in_features={self.in_features}, out_features={self.out_features}, bias={self.bias is not None}"
