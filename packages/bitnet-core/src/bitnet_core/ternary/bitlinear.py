"""The ternary linear layer, and what can be asked of every such layer in a model.

Shapes: N tokens (any leading dimensions), I input width, O output width.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import attrs
import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.packed_linear import PackedBitLinear
from bitnet_core.ternary.ternary_linear import compute_dtype, ternary_codes, ternary_linear, ternary_weight
from bitnet_core.ternary.weight_quantisers import WEIGHT_QUANTISERS


class BitLinear(nn.Linear):
    """A linear layer that computes with ternary codes times one scale per output row.

    `weight` [O, I] is the full-precision master, `log_scale` [O] the logarithm of the learned scales (float32, no
    weight decay, its own learning rate), or None with a `quantiser` that computes them; `row_log_scale` is there with
    both. Quantising the input is the caller's work (`FakeQuantActivation`), so that layers that read the same input
    share it, unless the layer has an `input_quantiser` of its own. Under autocast the product runs in autocast's dtype;
    codes come from the master.
    """

    def __init__(self, in_features: int, out_features: int, bias: bool = False, *, quantiser: str = "lsq") -> None:
        super().__init__(in_features, out_features, bias)
        self.log_scale: nn.Parameter | None
        self.quantiser = WEIGHT_QUANTISERS[quantiser]
        learned = nn.Parameter(torch.zeros(out_features)) if self.quantiser.learned else None
        self.register_parameter("log_scale", learned)
        self.input_quantiser: FakeQuantActivation | None = None
        self.ternary_share: Tensor | None = None  # see `set_ternary_share`
        self._held_weight: Tensor | None = None
        if not self.weight.is_meta:
            self.fit_scale()

    @torch.no_grad()
    def fit_scale(self) -> None:
        """Sets learned scales to where they start for the present weight."""
        if self.log_scale is not None:
            self.log_scale.copy_(self.quantiser.log_scale_of(self.weight))

    def row_log_scale(self) -> Tensor:
        """log s [O], float32."""
        return self.quantiser.log_scale_of(self.weight) if self.log_scale is None else self.log_scale

    def codes(self) -> Tensor:
        """The ternary codes [O, I], int8."""
        return ternary_codes(self.weight, self.row_log_scale()).to(torch.int8)

    def quantised_weight(self, dtype: torch.dtype = torch.float32) -> Tensor:
        """``s * t`` [O, I], without gradient."""
        return ternary_weight(self.weight, self.row_log_scale(), dtype)

    def forward(self, x_NI: Tensor) -> Tensor:
        x_NI = x_NI.to(compute_dtype(x_NI)) if self.input_quantiser is None else self.input_quantiser(x_NI)
        bias = None if self.bias is None else self.bias.to(x_NI.dtype)
        if self._held_weight is not None and not torch.is_grad_enabled():
            return nn.functional.linear(x_NI, self._held_weight.to(x_NI.dtype), bias)
        y_NO = ternary_linear(
            x_NI,
            self.weight,
            self.row_log_scale(),
            gradient_range=self.quantiser.gradient_range,
            no_gradient_beyond=self.quantiser.no_gradient_beyond,
            ternary_share=self.ternary_share,
        )
        return y_NO if bias is None else y_NO + bias


def ternary_layers(model: nn.Module) -> Iterator[tuple[str, BitLinear]]:
    """Every ternary layer with its name, in the model's order."""
    for name, module in model.named_modules():
        if isinstance(module, BitLinear):
            yield name, module


def set_ternary_share(model: nn.Module, share: float) -> None:
    """Ternary layers compute with ``w + share * (s t - w)`` from now on: 0 is full precision, 1 ternary.

    For a gentle start from a full-precision checkpoint. What is generated and evaluated is always wholly ternary.
    """
    for _, layer in ternary_layers(model):
        # A tensor: torch.compile would make a new graph for every number.
        layer.ternary_share = None if share >= 1 else torch.tensor(float(share), device=layer.weight.device)


@contextmanager
def quantised_once(model: nn.Module) -> Iterator[None]:
    """Within it, forward passes without gradients quantise no weight again: for generation and evaluation.

    Costs one dense copy of the ternary layers' weights (in autocast's dtype where it is on), freed at the end. Inside,
    the weights must not change. Sharded layers are quantised as they come, for no process holds them whole, and wholly
    too, whatever their `set_ternary_share`.
    """
    layers = [layer for layer in model.modules() if isinstance(layer, BitLinear | PackedBitLinear)]
    held = [layer for layer in layers if layer._held_weight is None and not isinstance(_like(layer), DTensor)]
    shares = {layer: layer.ternary_share for layer in layers if isinstance(layer, BitLinear)}
    try:
        for layer in held:
            layer._held_weight = layer.quantised_weight(compute_dtype(_like(layer)))
        for each in shares:
            each.ternary_share = None
        yield
    finally:
        for layer in held:
            layer._held_weight = None
        for each, share in shares.items():
            each.ternary_share = share


def _like(layer: BitLinear | PackedBitLinear) -> Tensor:
    return layer.weight if isinstance(layer, BitLinear) else layer.row_scale


@attrs.frozen
class CodeShares:
    """How a layer's codes are distributed; the three shares sum to 1."""

    minus: float
    zero: float
    plus: float


def code_shares(model: nn.Module) -> dict[str, CodeShares]:
    """The share of the codes -1, 0 and +1 of each ternary layer, by the layer's name."""
    return {name: shares_of(layer.codes()) for name, layer in ternary_layers(model)}


def shares_of(codes: Tensor) -> CodeShares:
    """Of ternary codes, int8 of any shape."""
    nonzero = int(torch.count_nonzero(codes))
    total = int(codes.sum(dtype=torch.int64))
    plus = (nonzero + total) // 2
    size = codes.numel()
    return CodeShares(minus=(nonzero - plus) / size, zero=(size - nonzero) / size, plus=plus / size)
