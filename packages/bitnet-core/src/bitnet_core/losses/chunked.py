"""The losses that training runs: from hidden states, over chunks of tokens, so no [tokens × vocab] matrix exists.

Shapes: B sequences, T positions, N gathered positions, C positions of a chunk, V vocabulary, D hidden width.
Value and gradients equal those of `reference.combined_loss`, or, for sampled and tempered targets, of
`reference.sampled_loss` and `tempered_loss`: the KD term (`divergences.KDTerm`) is all that differs.

Loss and both gradients are computed in the forward pass, chunk by chunk; backward only scales them. For a row with
weights a (KD) and c (CE, both kinds together), S the teacher's candidates, lse_o the log-sum-exp over S's complement:

    v outside S:  (a·g_o + c·q_o)·exp(z_v − lse_o),   g_o = τ(Q̂_o − P̂_o)
    i in S:       a·τ(Q̂_i − P̂_i) + c·q_i              (assigned over the dense part)
    the target:   − c                                  (CE's one-hot)

exp(z − lse_o) is a softmax with S masked to −inf, so nothing is divided by q_o, which can underflow. For another
divergence than the KL, τ(Q̂ − P̂) is τ·∂D/∂u of `divergences`. That is three matrix products and, between them, a few
passes over a tile that stays in the CPU's cache (`chunk_eager`), two of compiled C++ (`chunk_cpp`), or one kernel on
CUDA (`chunk_triton`). Products run in the autocast dtype, the softmax and all sums in at least float32. Where the
student is tempered before it is coarsened, KD's part outside S is a·g_o·exp(z_v/τ − lse_o of z/τ) instead, for one more
pass of exponentials.

The gradient of the head is summed over chunks in float32. The sum of a 16-bit head's gradient would be twice as large
as the gradient itself, and stand beside it at the end. On the CPU it is kept in two halves instead (`HalvedSum`), one
of which lies in the gradient's own memory: bit for bit the same sum, for half of the extra memory and a few passes over
a tile in the cache. (On a GPU such passes go through the device's memory, so there the float32 sum is kept whole.)
"""

import os
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd.function import once_differentiable

from bitnet_core.config.loss import (
    JensenShannonConfig,
    KDLossConfig,
    ReverseKLConfig,
    SampledConfig,
    TemperedConfig,
    TopKOtherConfig,
)
from bitnet_core.losses.chunk_cpp import FusedRows, is_fused
from bitnet_core.losses.chunk_eager import EagerRows
from bitnet_core.losses.divergences import (
    REVERSE_KL,
    KDTerm,
    jensen_shannon,
    sampled_term,
    tempered_term,
    topk_other_term,
)
from bitnet_core.losses.masks_and_rows import Metrics, NextTokenRows, divisor_for, next_token_rows, token_weight

TRITON_SWITCH = "BITNET_TRITON"
"""The environment variable that turns this package's Triton kernels off, at 0."""


Loss = Callable[..., tuple[Tensor, Metrics]]
"""``loss(hidden_BTD, head_weight_VD, batch, normaliser=None)``"""


def load_loss(options: KDLossConfig) -> Loss:
    """The loss function with these options."""
    kd = _kd_term(options)

    def loss(
        hidden_BTD: Tensor,
        head_weight_VD: Tensor,
        batch: Mapping[str, Tensor],
        normaliser: Tensor | float | None = None,
    ) -> tuple[Tensor, Metrics]:
        return chunked_loss(hidden_BTD, head_weight_VD, batch, kd, options, normaliser)

    return loss


def _kd_term(options: KDLossConfig) -> KDTerm:
    match options:
        case TopKOtherConfig():
            return topk_other_term(options.tau)
        case ReverseKLConfig():
            return topk_other_term(options.tau, REVERSE_KL)
        case JensenShannonConfig():
            return topk_other_term(options.tau, jensen_shannon(options.beta))
        case TemperedConfig():
            return tempered_term(options.tau)
        case SampledConfig():
            return sampled_term()
    raise TypeError(f"{options}: not the options of a loss of bitnet-core")


def chunked_combined_loss(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    batch: Mapping[str, Tensor],
    options: TopKOtherConfig,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """`combined_loss` of ``logits = hidden_BTD @ head_weight_VD.T`` without the logits: `chunked_loss` of the top K.

    A head with a bias has no place here: take `combined_loss` of its logits.
    """
    return chunked_loss(hidden_BTD, head_weight_VD, batch, topk_other_term(options.tau), options, normaliser)


@torch.compiler.disable  # type: ignore[untyped-decorator]
def chunked_loss(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    batch: Mapping[str, Tensor],
    kd: KDTerm,
    options: KDLossConfig,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """KD + ce_weight·CE + format_weight·format of ``logits = hidden_BTD @ head_weight_VD.T`` without the logits.

    hidden_BTD: float [B, T, D]; head_weight_VD: float [V, D], tied or not, frozen or not; `batch` is what `collate_fn`
    gives, or `batch_from_topk`. Only positions that KD or CE reads meet the head. The gradient may be taken once for
    each call. In a compiled function it is a graph break and runs as it stands: how many rows there are depends on the
    data, and its memory and its gradients are its own.
    """
    rows = next_token_rows(hidden_BTD, batch)
    divisor = token_weight(batch) if normaliser is None else normaliser
    loss, kd_sum, ce, structure = _ChunkedLoss.apply(
        rows.hidden_ND, head_weight_VD, rows, kd, options, divisor, torch.is_grad_enabled()
    )
    return loss, {
        "loss": loss.detach(),
        "kd": kd_sum,
        "kd_tokens": rows.has_kd.sum().to(kd_sum.dtype),
        "ce": ce,
        "ce_tokens": rows.is_response.sum().to(kd_sum.dtype),
        "format": structure,
        "format_tokens": rows.is_format.sum().to(kd_sum.dtype),
    }


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        rows: NextTokenRows,
        kd: KDTerm,
        options: KDLossConfig,
        normaliser: Tensor | float,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.promote_types(hidden_ND.dtype, head_VD.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            sums_3, hidden_grad, head_grad = _loss_and_gradients(
                hidden_ND,
                head_VD,
                rows,
                kd,
                options,
                normaliser,
                dtype,
                *(grad_enabled and n for n in ctx.needs_input_grad[:2]),
            )
        ctx.gradients = (hidden_grad, head_grad)
        kd_sum, ce, structure = (sums_3 / divisor_for(normaliser, sums_3)).unbind()
        loss = kd_sum + options.ce_weight * ce + options.format_weight * structure
        ctx.mark_non_differentiable(kd_sum, ce, structure)
        return loss, kd_sum, ce, structure

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the chunked loss keeps its gradients for one backward pass; call the loss again for a second one"
            )
        # In place: the gradient of the head is as large as the head.
        hidden_grad, head_grad = (None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None
        return hidden_grad, head_grad, None, None, None, None, None


def _loss_and_gradients(
    hidden_ND: Tensor,
    head_VD: Tensor,
    rows: NextTokenRows,
    kd: KDTerm,
    options: KDLossConfig,
    normaliser: Tensor | float,
    dtype: torch.dtype,
    want_hidden: bool,
    want_head: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ KD, Σ CE, Σ format [3], and the gradients of the normalised loss by the hidden states and the head."""
    positions, vocabulary = len(hidden_ND), len(head_VD)
    hidden, head = hidden_ND.detach().to(dtype), head_VD.detach().to(dtype)
    sums_3 = hidden.new_zeros(3, dtype=torch.promote_types(dtype, torch.float32))
    scale = 1.0 / divisor_for(normaliser, sums_3)
    hidden_grad = torch.zeros_like(hidden_ND) if want_hidden else None
    head_sum = head_sum_like(head_VD.detach(), dtype) if want_head else None
    logits_buffer = hidden.new_empty(min(options.chunk_tokens, positions), vocabulary)
    make_rows = _rows_for(logits_buffer, kd)
    to_gradient = make_rows(logits_buffer, rows, kd, options.ce_weight, options.format_weight, want_hidden or want_head)

    for start in range(0, positions, options.chunk_tokens):
        chunk = slice(start, start + options.chunk_tokens)
        hidden_CD = hidden[chunk]
        logits_CV = torch.mm(hidden_CD, head.T, out=logits_buffer[: len(hidden_CD)])
        sums_3 += to_gradient(logits_CV, start)
        if hidden_grad is not None:  # logits_CV now holds the gradient by the logits, without the 1/normaliser
            hidden_grad[chunk] = torch.mm(logits_CV, head)
        if head_sum is not None:
            head_sum.add_product(logits_CV, hidden_CD)

    if hidden_grad is not None:
        hidden_grad.mul_(scale)
    return sums_3, hidden_grad, None if head_sum is None else head_sum.finish(scale)


def _rows_for(logits_CV: Tensor, kd: KDTerm) -> Callable[..., Callable[[Tensor, int], Tensor]]:
    """What does the work between the products."""
    if has_kernel(logits_CV, kd):
        from bitnet_core.losses.chunk_triton import TritonRows  # no torch for a CPU alone brings triton

        return TritonRows.for_chunks
    return FusedRows.for_chunks if is_fused(logits_CV, kd) else EagerRows.for_chunks


def has_kernel(logits_CV: Tensor, kd: KDTerm) -> bool:
    """Whether `chunk_triton` does the work between the products: on CUDA, unless ``BITNET_TRITON=0`` says no."""
    fits = logits_CV.device.type == "cuda" and logits_CV.dtype != torch.float64 and kd.divergence.kernel is not None
    if isinstance(logits_CV, FakeTensor):  # the dry run's: nothing is launched on what isn't there
        return False
    return fits and os.environ.get(TRITON_SWITCH, "1") != "0" and find_spec("triton") is not None


_TILE_ROWS = 4096
"""Rows of the head whose product is computed at a time where it can't be summed by the product itself, on the CPU."""


class HeadSum(Protocol):
    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add grad_CVᵀ · hidden_CD."""

    def finish(self, scale: Tensor) -> Tensor:
        """The sum times `scale`, in the head's dtype. Nothing can be added any more."""


def head_sum_like(head_VD: Tensor, product_dtype: torch.dtype) -> HeadSum:
    """Zero, for products in `product_dtype`."""
    wide = torch.promote_types(product_dtype, torch.float32)
    rows, width = head_VD.shape
    on_cpu = head_VD.device.type == "cpu"
    buffer_rows = min(_TILE_ROWS, rows) if on_cpu else rows
    buffer = head_VD.new_empty(0 if product_dtype == wide else buffer_rows, width, dtype=product_dtype)
    if on_cpu and head_VD.dtype.itemsize == 2 and product_dtype == head_VD.dtype:
        lower = torch.zeros_like(head_VD, dtype=torch.int16)
        return HalvedSum(torch.zeros_like(head_VD), lower, buffer.to(wide), buffer)
    return WholeSum(torch.zeros_like(head_VD, dtype=wide), head_VD.dtype, buffer)


@attrs.frozen(eq=False)
class WholeSum:
    """One tensor in float32, or float64 where products are."""

    total_VD: Tensor
    dtype: torch.dtype
    buffer: Tensor

    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        if self.total_VD.dtype == grad_CV.dtype:
            self.total_VD.addmm_(grad_CV.T, hidden_CD)
            return
        for first in range(0, len(self.total_VD), len(self.buffer)):
            last = min(first + len(self.buffer), len(self.total_VD))
            self.total_VD[first:last] += torch.mm(grad_CV[:, first:last].T, hidden_CD, out=self.buffer[: last - first])

    def finish(self, scale: Tensor) -> Tensor:
        return self.total_VD.mul_(scale).to(self.dtype)


@attrs.frozen(eq=False)
class HalvedSum:
    """A float32 sum as an upper and a lower half of 16 bits each.

    With s the sum's 32 bits as an integer: lower = s mod 2¹⁶, taken from −2¹⁵ to 2¹⁵ − 1, and upper = (s − lower)/2¹⁶,
    which are the bits of a bfloat16 number. So the sum comes back exactly, by a conversion and an integer addition.
    """

    gradient_VD: Tensor
    """In the head's dtype; holds the upper halves until `finish`."""
    lower_VD: Tensor
    tile: Tensor
    """float32"""
    buffer: Tensor

    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        for first in range(0, len(self.gradient_VD), len(self.buffer)):
            rows = slice(first, min(first + len(self.buffer), len(self.gradient_VD)))
            product = torch.mm(grad_CV[:, rows].T, hidden_CD, out=self.buffer[: rows.stop - first])
            total, bits = self._joined(rows)
            total.add_(product)
            self.lower_VD[rows].copy_(bits)  # an integer's conversion keeps the low bits
            bits.sub_(self.lower_VD[rows])
            self._upper(rows).copy_(total)

    def finish(self, scale: Tensor) -> Tensor:
        for first in range(0, len(self.gradient_VD), len(self.buffer)):
            rows = slice(first, min(first + len(self.buffer), len(self.gradient_VD)))
            total, _ = self._joined(rows)
            self.gradient_VD[rows].copy_(total.mul_(scale))
        return self.gradient_VD

    def _upper(self, rows: slice) -> Tensor:
        return self.gradient_VD[rows].view(torch.bfloat16)

    def _joined(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The sum of these rows, in the tile, and its bits."""
        total = self.tile[: rows.stop - rows.start].copy_(self._upper(rows))
        bits = total.view(torch.int32)
        bits.add_(self.lower_VD[rows])
        return total, bits
