"""The ternary linear layer, and what can be asked of every such layer in a model.

Shapes: N tokens (any leading dimensions), I input width, O output width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.packed_linear import PackedBitLinear
from bitnet_core.quantisers import compute_dtype, least_squares_log_scale, ternary_codes, ternary_linear, ternary_weight


class BitLinear(nn.Linear):
    """A linear layer that computes with ternary codes times one learned scale per output row.

    `weight` [O, I] is the full-precision master, `log_scale` [O] the logarithm of the scales (float32, no weight
    decay, its own learning rate). Quantising the input is the caller's work (`FakeQuantActivation`): layers that read
    the same input share it. Under autocast the product runs in autocast's dtype; codes come from the master.
    """

    def __init__(
        self, in_features: int, out_features: int, bias: bool = False, *, clip_weight_gradient: bool = False
    ) -> None:
        super().__init__(in_features, out_features, bias)
        self.clip_weight_gradient = clip_weight_gradient
        self.log_scale = nn.Parameter(torch.zeros(out_features))
        self._held_weight: Tensor | None = None
        if not self.weight.is_meta:
            self.fit_scale()

    @torch.no_grad()
    def fit_scale(self) -> None:
        """Sets the scales to the least-squares fit of the present weight."""
        self.log_scale.copy_(least_squares_log_scale(self.weight))

    def codes(self) -> Tensor:
        """The ternary codes [O, I], int8."""
        return ternary_codes(self.weight, self.log_scale).to(torch.int8)

    def quantised_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``s * t`` [O, I], without gradient."""
        return ternary_weight(self.weight, self.log_scale, dtype)

    def forward(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.to(compute_dtype(x_NI))
        bias = None if self.bias is None else self.bias.to(x_NI.dtype)
        if self._held_weight is not None and not torch.is_grad_enabled():
            return nn.functional.linear(x_NI, self._held_weight.to(x_NI.dtype), bias)
        y_NO = ternary_linear(x_NI, self.weight, self.log_scale, self.clip_weight_gradient)
        return y_NO if bias is None else y_NO + bias


def ternary_layers(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Every ternary layer with its name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            yield name, module


@contextmanager
def quantised_once(model: nn.Module) -> Iterator[None]:
    """Within it, forward passes without gradients quantise no weight again: for generation and evaluation.

    Costs one dense copy of the ternary layers' weights (in autocast's dtype where it is on), freed at the end. Inside,
    the weights must not change.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BitLinear | PackedBitLinear)]
    layers = [layer for layer in layers if layer._held_weight is None]
    try:
        for layer in layers:
            like = layer.weight if isinstance(layer, BitLinear) else layer.row_scale
            layer._held_weight = layer.quantised_weight(compute_dtype(like))
        yield
    finally:
        for layer in layers:
            layer._held_weight = None


@attrs.frozen
class CodeShares:
    """How a layer's codes are distributed; the three shares sum to 1."""

    minus: float
    zero: float
    plus: float


def code_shares(model: nn.Module) -> dict[str, CodeShares]:
    """The share of the codes -1, 0 and +1 of each ternary layer, by the layer's name."""
    return {name: _shares_of(layer) for name, layer in ternary_layers(model)}


def _shares_of(layer: BitLinear) -> CodeShares:
    codes = layer.codes()
    nonzero = int(torch.count_nonzero(codes))
    total = int(codes.sum(dtype=torch.int64))
    plus = (nonzero + total) // 2
    size = codes.numel()
    return CodeShares(minus=(nonzero - plus) / size, zero=(size - nonzero) / size, plus=plus / size)
