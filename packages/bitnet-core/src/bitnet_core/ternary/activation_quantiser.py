"""Activations as integers with a scale per token: 8 bits by their largest magnitude, 4 by their mean.

Shapes: N tokens (any leading dimensions), I input width. The quantisers are those of BitNet b1.58
(https://arxiv.org/abs/2402.17764) and BitNet a4.8 (https://arxiv.org/abs/2411.04965).
"""

import math
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_core.kernels import cpu_training
from bitnet_core.ternary.ternary_linear import at_least_float32, compute_dtype

SMALLEST_MAGNITUDE = 1e-30
"""Per-token statistics are not taken below this, so that a token of zeros divides by a normal float32."""


def activation_codes(x_NI: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Per-token integer codes [N, I] (as float32) and their scale [N, 1], float32: ``x`` is about ``codes * scale``.

    - 8 bits: scale = max |x| / 127, codes -127..127 (absmax, BitNet b1.58).
    - 4 bits: scale = mean |x| / sqrt(7), codes -8..7, clipped (BitNet a4.8).
    """
    x_NI = at_least_float32(x_NI.detach())
    if bits == 8:
        # Two vectorised passes: on CPUs 4 times quicker than abs().amax(), 25 times than vector_norm(inf).
        magnitude_N1 = torch.maximum(x_NI.amax(-1, keepdim=True), x_NI.amin(-1, keepdim=True).neg_())
        scale_N1 = magnitude_N1.clamp_(min=SMALLEST_MAGNITUDE).div_(127)
        # Nothing to clip: no |x| is above its token's maximum.
        return torch.div(x_NI, scale_N1).round_(), scale_N1
    if bits == 4:
        mean_N1 = x_NI.abs().mean(-1, keepdim=True)
        scale_N1 = mean_N1.clamp_(min=SMALLEST_MAGNITUDE).div_(math.sqrt(7))
        return torch.div(x_NI, scale_N1).round_().clamp_(-8, 7), scale_N1
    raise ValueError(f"activation bits must be 8 or 4, not {bits}")


class _FakeQuantise(torch.autograd.Function):
    """Codes times scale, forward; the identity, backward (straight-through, clipped values too, as BitNet does)."""

    @staticmethod
    def forward(ctx: Any, x_NI: Tensor, bits: int, dtype: torch.dtype) -> Tensor:
        ctx.dtype = x_NI.dtype
        if bits in (8, 4) and cpu_training.takes(x_NI, dtype=dtype):
            return cpu_training.fake_quantise(x_NI, bits, dtype)
        codes_NI, scale_N1 = activation_codes(x_NI, bits)
        return codes_NI.mul_(scale_N1).to(dtype)

    @staticmethod
    def backward(ctx: Any, *grad_NI: Tensor) -> tuple[Tensor, None, None]:
        return grad_NI[0].to(ctx.dtype), None, None


class FakeQuantActivation(nn.Module):
    """Quantises the input of a ternary layer, token by token.

    Gives it back in its own dtype; under autocast in autocast's, so that layers that share it save one copy.

    `low_bits`: whether these inputs go down to 4 bits with the model (the inputs of q, k, v, gate and up, where a norm
    precedes). Where it is False (the inputs of o and down: long-tailed) they stay at 8. `bits` 16 is off.
    """

    def __init__(self, bits: int, *, low_bits: bool) -> None:
        super().__init__()
        self.low_bits = low_bits
        self.set_bits(bits)

    def set_bits(self, bits: int) -> None:
        """Follows the model to `bits` (16, 8 or 4), at most down to what these inputs stand."""
        if bits not in (16, 8, 4):
            raise ValueError(f"activation bits must be 16 (off), 8 or 4, not {bits}")
        self.bits = bits if self.low_bits else max(bits, 8)

    def forward(self, x_NI: Tensor) -> Tensor:
        dtype = compute_dtype(x_NI)
        if self.bits == 16:
            return x_NI.to(dtype)
        return _FakeQuantise.apply(x_NI, self.bits, dtype)

    def extra_repr(self) -> str:
        return f"bits={self.bits}"


def quantise_activations(model: nn.Module, bits: int) -> None:
    """Every `FakeQuantActivation` of `model` follows it to `bits` (16, 8 or 4)."""
    for module in model.modules():
        if isinstance(module, FakeQuantActivation):
            module.set_bits(bits)
