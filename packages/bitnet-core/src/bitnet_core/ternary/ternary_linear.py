"""Ternary weights: codes with a learned scale per output row, and the product with them.

Shapes: N tokens (any leading dimensions), I input width, O output width.

``t = clip(round(w / s), -1, 1)`` with one scale ``s`` per output row, stored as its logarithm so that it stays
positive; its gradient is that of LSQ (Esser et al. 2020, https://arxiv.org/abs/1902.08153).
"""

from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from bitnet_core.kernels import cpu_training

SMALLEST_SCALE = 1e-8
"""A row of zeros still needs a positive scale: small, so that its first gradient steps give it codes."""


def compute_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a product with x runs: autocast's where it is on, else x's own."""
    device = x.device.type
    return torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else x.dtype


def ternary_codes(weight_OI: Tensor, log_scale_O: Tensor) -> Tensor:
    """The codes ``clip(round(w / s), -1, 1)`` [O, I], float32 (float64 of float64).

    Halves round to even: w = s / 2 gives 0. Everything that needs codes (training, export, statistics) takes them from
    here: the same division, the same ties.
    """
    return _ternary_codes_of(weight_OI, _scale_of(log_scale_O))


def _scale_of(log_scale_O: Tensor) -> Tensor:
    return at_least_float32(log_scale_O.detach()).exp()


def at_least_float32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _ternary_codes_of(weight_OI: Tensor, scale_O: Tensor) -> Tensor:
    return torch.div(weight_OI.detach(), scale_O[:, None]).round_().clamp_(-1, 1)


def ternary_weight(weight_OI: Tensor, log_scale_O: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """The quantised weight ``s * t`` [O, I] in `dtype`, without gradient."""
    return _used_weight(weight_OI, log_scale_O, None, dtype)


def least_squares_log_scale(weight_OI: Tensor, iterations: int = 20) -> Tensor:
    """log s [O], float32, where s minimises ``||w - s * t||^2`` of each row, by alternating minimisation.

    Starts at s = mean |w| (BitNet b1.58's absmean) and never ends with a larger error: given s the best codes are
    ``clip(round(w / s))``, given the codes the best scale is ``<w, t> / <t, t>``, the mean magnitude of what is not 0.
    """
    magnitude_OI = at_least_float32(weight_OI.detach()).abs()
    scale_O = magnitude_OI.mean(1).clamp_(min=SMALLEST_SCALE)
    for _ in range(iterations):
        codes_OI = _ternary_codes_of(magnitude_OI, scale_O)
        count_O = codes_OI.sum(1)
        best_O = torch.linalg.vecdot(codes_OI, magnitude_OI) / count_O.clamp(min=1)
        best_O = torch.where(count_O > 0, best_O, scale_O).clamp_(min=SMALLEST_SCALE)
        if torch.equal(best_O, scale_O):
            break
        scale_O = best_O
    return scale_O.log()


def lsq_log_scale_gradient(
    grad_OI: Tensor, weight_OI: Tensor, log_scale_O: Tensor, gradient_range: float = 1.0
) -> Tensor:
    """d loss / d log s [O], float32, from ``grad_OI`` = d loss / d (s t): LSQ's gradient times ds / d log s = s.

    With u = w / s: the step's gradient is t - u where |u| is within `gradient_range` (what the rounding took), t
    outside. LSQ's factor 1 / sqrt(I) is left out: Adam cancels it.
    """
    scale_O = _scale_of(log_scale_O)
    u_OI = torch.div(weight_OI.detach(), scale_O[:, None])
    step_OI = u_OI.round().clamp_(-1, 1).sub_(u_OI)
    # hardshrink(u, r) is u where |u| > r and 0 inside: adding it back leaves t outside, in one vectorised pass.
    step_OI += nn.functional.hardshrink(u_OI, gradient_range)
    return torch.linalg.vecdot(grad_OI.to(step_OI.dtype), step_OI) * scale_O


class _TernaryLinear(torch.autograd.Function):
    """``x @ (s t)^T`` whose backward keeps only x, w and log s, all of which exist anyway: the codes are made again."""

    @staticmethod
    def forward(
        ctx: Any,
        x_NI: Tensor,
        weight_OI: Tensor,
        log_scale_O: Tensor,
        gradient_range: float,
        no_gradient_beyond: float | None,
        ternary_share: Tensor | None,
    ) -> Tensor:
        ctx.save_for_backward(x_NI, weight_OI, log_scale_O, ternary_share)
        ctx.gradient_range, ctx.no_gradient_beyond = gradient_range, no_gradient_beyond
        return nn.functional.linear(x_NI, _used_weight(weight_OI, log_scale_O, ternary_share, x_NI.dtype))

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_NO: Tensor) -> tuple[Tensor | None, ...]:
        x_NI, weight_OI, log_scale_O, ternary_share = ctx.saved_tensors
        needs_x, needs_weight, needs_scale = ctx.needs_input_grad[:3]
        grad_x = grad_weight = grad_log_scale = None
        if needs_x:
            grad_x = grad_NO @ _used_weight(weight_OI, log_scale_O, ternary_share, x_NI.dtype)
        if needs_weight or needs_scale:
            grad_weight, grad_log_scale = _ternary_gradients(
                grad_NO.flatten(0, -2).mT @ x_NI.flatten(0, -2),
                weight_OI,
                log_scale_O,
                gradient_range=ctx.gradient_range,
                no_gradient_beyond=ctx.no_gradient_beyond,
                ternary_share=ternary_share,
                want_weight=needs_weight,
                want_scale=needs_scale,
            )
        if grad_log_scale is not None and ternary_share is not None:
            grad_log_scale *= ternary_share
        return grad_x, grad_weight, grad_log_scale, None, None, None


def _ternary_gradients(
    grad_OI: Tensor,
    weight_OI: Tensor,
    log_scale_O: Tensor,
    *,
    gradient_range: float,
    no_gradient_beyond: float | None,
    ternary_share: Tensor | None,
    want_weight: bool,
    want_scale: bool,
) -> tuple[Tensor | None, Tensor | None]:
    """d loss / d w and d loss / d log s of ``grad_OI`` = d loss / d (s t), whose memory may be used.

    ternary_share: w has the full-precision rest of its gradient beyond the range too.
    """
    scale_O = _scale_of(log_scale_O)
    if _is_fused(weight_OI, scale_O, grad_OI.dtype):
        return cpu_training.ternary_gradients(
            grad_OI,
            weight_OI,
            scale_O,
            gradient_range=gradient_range,
            no_gradient_beyond=no_gradient_beyond,
            ternary_share=ternary_share,
            want_weight=want_weight,
            want_scale=want_scale,
        )
    grad_log_scale = lsq_log_scale_gradient(grad_OI, weight_OI, log_scale_O, gradient_range) if want_scale else None
    if want_weight and no_gradient_beyond is not None:
        beyond_OI = weight_OI.abs() > scale_O[:, None] * no_gradient_beyond
        if ternary_share is None:
            grad_OI.masked_fill_(beyond_OI, 0)
        else:
            grad_OI.mul_(torch.where(beyond_OI, 1 - ternary_share, 1.0))
    return (grad_OI if want_weight else None), grad_log_scale


def _used_weight(weight_OI: Tensor, log_scale_O: Tensor, ternary_share: Tensor | None, dtype: torch.dtype) -> Tensor:
    scale_O = _scale_of(log_scale_O)
    if _is_fused(weight_OI, scale_O, dtype):
        return cpu_training.ternarise(weight_OI, scale_O, ternary_share, dtype)
    ternary_OI = _ternary_codes_of(weight_OI, scale_O).mul_(scale_O[:, None])
    if ternary_share is not None:
        ternary_OI = weight_OI.detach().lerp(ternary_OI.to(weight_OI.dtype), ternary_share)
    return ternary_OI.to(dtype)


def _is_fused(weight_OI: Tensor, scale_O: Tensor, dtype: torch.dtype) -> bool:
    return weight_OI.dtype == scale_O.dtype == torch.float32 and cpu_training.takes(weight_OI, scale_O, dtype=dtype)


def ternary_linear(
    x_NI: Tensor,
    weight_OI: Tensor,
    log_scale_O: Tensor,
    *,
    gradient_range: float = 1.0,
    no_gradient_beyond: float | None = None,
    ternary_share: Tensor | None = None,
) -> Tensor:
    """``x @ (s t)^T`` [N, O] in x's dtype, with LSQ's gradient to log s and a straight-through gradient to w.

    The gradient to w is the identity, and 0 where |w| > s * `no_gradient_beyond` (1 in LSQ's paper). `gradient_range`:
    see `lsq_log_scale_gradient`. With a `ternary_share` (a number between 0 and 1, 0-dim) the product is that of
    ``w + share * (s t - w)``, and the gradient beyond is ``1 - share``.
    """
    return _TernaryLinear.apply(x_NI, weight_OI, log_scale_O, gradient_range, no_gradient_beyond, ternary_share)
