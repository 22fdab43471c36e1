"""The reference for sampled and tempered targets (docs/targets.md), as `losses`; training runs `chunked_loss`.

Shapes: B sequences, T positions, N aligned positions, K candidates, V vocabulary. In nats. Batches, alignment and
normalisation are those of `losses`.

Sampled. The candidates are draws out of the teacher's whole distribution p with weights ŵ, E[ŵ_v] = p_v for every v
(importance sampling; arXiv:2503.16870). The loss of a position is −Σ ŵ_v·log q_v − H(p) with the student's full softmax
q and the stored entropy H(p). Its gradient by the logits, q_v·Σŵ − ŵ_v, has the expectation q_v − p_v: that of the full
KL(p‖q). The value's expectation is KL(p‖q) itself; a single one may be below 0. At τ = 1 only: the tempered p^(1/τ)/Z
has no unbiased estimate from few draws of p.

Tempered. The teacher gives log p of its K candidates and log Z = log Σ p^(1/τ) over the whole vocabulary. So both sides
are tempered first and coarsened then, exactly: P̂_i = exp(log p_i / τ − log Z), P̂_o = 1 − Σ P̂_i, and the student's
softmax(z/τ) in the same K+1 buckets. The loss is τ²·KL(P̂‖Q̂); zero when student equals teacher. (`topk_other` has to
coarsen first: without Z it can't know how much of the rest there is once it is tempered.)
"""

from collections.abc import Mapping

import torch
from torch import Tensor

from bitnet_core.losses import (
    Metrics,
    kd_mask,
    kl_from_logprobs,
    predictions,
    student_buckets,
    targets,
    token_weight,
    weighted_mean,
    widened,
    with_ce_and_format,
)


def sampled_by_position(
    logits_NV: Tensor, topk_ids_NK: Tensor, topk_logprobs_NK: Tensor, log_z_N: Tensor, entropy_N: Tensor
) -> Tensor:
    """−Σ ŵ·log q − H(p) of each (already aligned) position, [N]; ŵ = exp(log_z + topk_logprobs)."""
    logprobs_NV = widened(logits_NV).log_softmax(dim=-1)
    drawn_NK = torch.isfinite(topk_logprobs_NK)
    weights_NK = torch.where(drawn_NK, topk_logprobs_NK + log_z_N[:, None], -torch.inf).to(logprobs_NV.dtype).exp()
    cross_NK = torch.where(drawn_NK, weights_NK * logprobs_NV.gather(-1, topk_ids_NK), 0.0)
    return -cross_NK.sum(dim=-1) - entropy_N


def tempered_buckets(topk_logprobs_NK: Tensor, log_z_N: Tensor, tau: float, dtype: torch.dtype) -> Tensor:
    """log P̂ of p^(1/τ)/Z [N, K+1], "other" last; −inf where a bucket is empty.

    Where rounding lets the candidates have all mass, or more, nothing is left for other and they are scaled to 1.
    """
    candidates_NK = topk_logprobs_NK.to(dtype) / tau - log_z_N.to(dtype)[:, None]
    rest_N = -torch.expm1(candidates_NK.logsumexp(dim=-1))
    other_N = torch.where(rest_N > 0, rest_N.clamp(min=torch.finfo(dtype).tiny).log(), -torch.inf)
    return torch.cat([candidates_NK, other_N[:, None]], dim=-1).log_softmax(dim=-1)


def tempered_by_position(
    logits_NV: Tensor, topk_ids_NK: Tensor, topk_logprobs_NK: Tensor, log_z_N: Tensor, tau: float
) -> Tensor:
    """τ²·KL(P̂‖Q̂) of each (already aligned) position, both tempered before they are coarsened, [N]."""
    student = student_buckets(widened(logits_NV) / tau, topk_ids_NK, torch.isfinite(topk_logprobs_NK))
    teacher = tempered_buckets(topk_logprobs_NK, log_z_N, tau, student.dtype)
    return tau**2 * kl_from_logprobs(teacher, student)


def sampled_loss(
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    *,
    ce_weight: float = 0.0,
    format_weight: float = 0.0,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """`losses.combined_loss` with the KD term of sampled targets; arguments and metrics are the same, but for tau."""
    divisor = token_weight(batch) if normaliser is None else normaliser
    columns = ("topk_ids", "topk_logprobs", "log_z", "entropy")
    kd_N = sampled_by_position(
        predictions(logits_BTV).flatten(0, 1), *(targets(batch[name]).flatten(0, 1) for name in columns)
    )
    kd = weighted_mean(kd_N, targets(kd_mask(batch)).flatten().to(kd_N.dtype), divisor, "kd")
    return with_ce_and_format(kd, logits_BTV, batch, ce_weight, format_weight, divisor)


def tempered_loss(
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    *,
    tau: float,
    ce_weight: float = 0.0,
    format_weight: float = 0.0,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """`losses.combined_loss` with the KD term of tempered targets; `tau` is the one that log_z was collected for."""
    divisor = token_weight(batch) if normaliser is None else normaliser
    columns = ("topk_ids", "topk_logprobs", "log_z")
    ids_NK, logprobs_NK, log_z_N = (targets(batch[name]).flatten(0, 1) for name in columns)
    kd_N = tempered_by_position(predictions(logits_BTV).flatten(0, 1), ids_NK, logprobs_NK, log_z_N, tau)
    kd = weighted_mean(kd_N, targets(kd_mask(batch)).flatten().to(kd_N.dtype), divisor, "kd")
    return with_ce_and_format(kd, logits_BTV, batch, ce_weight, format_weight, divisor)
