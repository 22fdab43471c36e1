"""The losses in plain PyTorch: the reference for tests and readers. Training runs `bitnet_core.losses.chunked`.

Shapes: B sequences, T positions, N = gathered (aligned) positions, K candidates, V vocabulary, D hidden width.
All losses are in nats. The mathematics is in docs/losses.md and docs/targets.md.

Alignment. Row t of a batch holds token t and the teacher's distribution that it was drawn from; the student's
prediction of it stands at position t − 1. `predictions` and `targets` do that shift, and nothing else does.

Buckets. The teacher gives p_i for its K candidates and p_o for the rest of the vocabulary. The student's full
distribution is *coarsened* to the same K+1 buckets (ℓ_i = z_i − lse(z), ℓ_o = lse of z over the complement − lse(z)),
and only then are *both* tempered: P̂ = softmax([log p_S, log p_o]/τ), Q̂ = softmax([ℓ_S, ℓ_o]/τ). The loss of a position
is τ²·KL(P̂‖Q̂) (τ² as in Hinton et al. 2015, arXiv:1503.02531, section 2); it is zero when the student's distribution
equals the teacher's, at every τ and K. Its gradient is τ(Q̂_i − P̂_i) for a candidate and τ(Q̂_o − P̂_o)·q_v/q_o for a
token v outside.

Sampled targets. The candidates are draws out of the teacher's whole distribution p with weights ŵ, E[ŵ_v] = p_v for
every v (importance sampling; arXiv:2503.16870). The loss of a position is −Σ ŵ_v·log q_v − H(p) with the student's full
softmax q and the stored entropy H(p). Its gradient by the logits, q_v·Σŵ − ŵ_v, has the expectation q_v − p_v: that of
the full KL(p‖q). The value's expectation is KL(p‖q) itself; a single one may be below 0. At τ = 1 only: the tempered
p^(1/τ)/Z has no unbiased estimate from few draws of p.

Tempered targets. The teacher gives log p of its K candidates and log Z = log Σ p^(1/τ) over the whole vocabulary. So
both sides are tempered first and coarsened then, exactly: P̂_i = exp(log p_i / τ − log Z), P̂_o = 1 − Σ P̂_i, and the
student's softmax(z/τ) in the same K+1 buckets. The loss is τ²·KL(P̂‖Q̂); zero when student equals teacher.
(`topk_other` has to coarsen first: without Z it can't know how much of the rest there is once it is tempered.)

Normalisation. Every term is a sum over positions divided by one number, the `normaliser`. In `combined_loss` it is by
default the batch's own `token_weight`: the number of target positions (those that KD or CE reads). Gradient
accumulation and data parallelism pass the total over all micro-batches and ranks instead; the gradients then add up
exactly to those of the one big batch. Metrics are divided by the same number, so they add up too; each term's own mean
is ``metrics["kd"] * normaliser / metrics["kd_tokens"]``.

Padding. Candidate slots beyond a position's own candidates hold log-probability −inf and any id (several may share 0).
A position without KD has weight 0 and P(other) = 1. Valid candidate ids of one position are distinct.
"""

from collections.abc import Callable, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_core.losses.masks_and_rows import (
    Metrics,
    check_batch,
    format_mask,
    kd_mask,
    predictions,
    response_mask,
    targets,
    token_weight,
    weighted_mean,
    widened,
)


def teacher_buckets(topk_logprobs_NK: Tensor, other_logprob_N: Tensor, tau: float, dtype: torch.dtype) -> Tensor:
    """log P̂, the teacher's tempered log-probabilities [N, K+1], "other" last; −inf where a bucket is empty.

    The K+1 masses are renormalised (stored log-probabilities are rounded). A position without any mass at all gets
    P(other) = 1, so that nothing divides by zero.
    """
    logprobs = torch.cat([topk_logprobs_NK.to(dtype), other_logprob_N.to(dtype)[..., None]], dim=-1)
    present = torch.isfinite(logprobs)
    is_other = torch.arange(logprobs.shape[-1], device=logprobs.device) == logprobs.shape[-1] - 1
    empty = ~present.any(dim=-1, keepdim=True) & is_other
    scaled = torch.where(present, logprobs / tau, torch.where(empty, 0.0, -torch.inf).to(dtype))
    return scaled.log_softmax(dim=-1)


def student_buckets(logits_NV: Tensor, topk_ids_NK: Tensor, valid_NK: Tensor) -> Tensor:
    """[ℓ_S, ℓ_o]: the student's log-probabilities of the K+1 buckets [N, K+1]; −inf where a bucket is empty.

    ℓ_o is a log-sum-exp over the complement of the valid candidates: 1 − Σ would lose all digits of a small rest.
    """
    logits = widened(logits_NV)
    lse_N1 = logits.logsumexp(dim=-1, keepdim=True)
    # A sum and not an assignment: an unused slot may share its id with a valid candidate, and must not unmask it.
    inside = torch.zeros_like(logits, dtype=torch.int32).scatter_add_(-1, topk_ids_NK, valid_NK.int()) > 0
    has_other_N1 = ~inside.all(dim=-1, keepdim=True)
    other_N1 = torch.where(inside & has_other_N1, -torch.inf, logits).logsumexp(dim=-1, keepdim=True)
    candidates_NK = torch.where(valid_NK, logits.gather(-1, topk_ids_NK) - lse_N1, -torch.inf)
    return torch.cat([candidates_NK, torch.where(has_other_N1, other_N1 - lse_N1, -torch.inf)], dim=-1)


def kl_from_logprobs(teacher_NB: Tensor, student_NB: Tensor) -> Tensor:
    """KL(P‖Q) [N] in nats from log-probabilities over the last dimension; −inf means a bucket without mass.

    Where the student's bucket doesn't exist (no token is left for "other") the bucket is left out on both sides.
    """
    both = torch.isfinite(teacher_NB) & torch.isfinite(student_NB)
    teacher, student = torch.where(both, teacher_NB, 0.0), torch.where(both, student_NB, 0.0)
    return torch.where(both, teacher.exp() * (teacher - student), 0.0).sum(dim=-1)


def kd_by_position(
    logits_NV: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    other_logprob_N: Tensor,
    tau: float,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> Tensor:
    """τ²·D(P̂, Q̂) of each (already aligned) position, [N], nats; D is KL(P̂‖Q̂) or one of `divergences`."""
    student = student_buckets(logits_NV, topk_ids_NK, torch.isfinite(topk_logprobs_NK))
    teacher = teacher_buckets(topk_logprobs_NK, other_logprob_N, tau, student.dtype)
    return tau**2 * divergence(teacher, (student / tau).log_softmax(dim=-1))


# --- losses on logits ------------------------------------------------------------------------------------------------
def kd_cross_entropy_loss(
    logits_BTV: Tensor,
    topk_ids_BTK: Tensor,
    topk_logprobs_BTK: Tensor,
    other_logprob_BT: Tensor,
    weight_BT: Tensor,
    tau: float = 1.0,
    normaliser: Tensor | float | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> tuple[Tensor, Metrics]:
    """Next-token aligned KD over the K+1 buckets, both sides at temperature τ; zero when student equals teacher.

    Arguments are whole batch columns, unshifted: row t is compared with the logits at t − 1 in here. `weight_BT` (bool
    or float, not negative) is 0 where there is no KD. The sum of weight × τ²·D (`kd_by_position`) is divided by
    `normaliser`, by default the sum of the weights (a batch without KD costs 0). Metrics: ``kd``, ``kd_tokens``.
    """
    logits_NV = predictions(logits_BTV).flatten(0, 1)
    weight_N = targets(weight_BT).flatten().to(widened(logits_NV).dtype)
    kd_N = kd_by_position(
        logits_NV,
        targets(topk_ids_BTK).flatten(0, 1),
        targets(topk_logprobs_BTK).flatten(0, 1),
        targets(other_logprob_BT).flatten(),
        tau,
        divergence,
    )
    return weighted_mean(kd_N, weight_N, normaliser, "kd")


def cross_entropy_loss(
    logits_BTV: Tensor, target_BT: Tensor, weight_BT: Tensor, normaliser: Tensor | float | None = None, name: str = "ce"
) -> tuple[Tensor, Metrics]:
    """Next-token aligned −log p(token), weighted, divided by `normaliser` (by default the sum of the weights).

    Metrics: ``name``, ``name_tokens``.
    """
    logits_NV = widened(predictions(logits_BTV).flatten(0, 1))
    weight_N = targets(weight_BT).flatten().to(logits_NV.dtype)
    nll_N = F.cross_entropy(logits_NV, targets(target_BT).flatten(), reduction="none")
    return weighted_mean(nll_N, weight_N, normaliser, name)


def format_loss(
    logits_BTV: Tensor, target_BT: Tensor, is_struct_BT: Tensor, normaliser: Tensor | float | None = None
) -> tuple[Tensor, Metrics]:
    """Cross-entropy on structural tokens only (JSON, code fences). Metrics: ``format``, ``format_tokens``."""
    return cross_entropy_loss(logits_BTV, target_BT, is_struct_BT, normaliser, name="format")


def combined_loss(
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    *,
    tau: float = 1.0,
    ce_weight: float = 0.0,
    format_weight: float = 0.0,
    normaliser: Tensor | float | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> tuple[Tensor, Metrics]:
    """KD + ce_weight·CE + format_weight·format, all divided by one `normaliser` (by default `token_weight(batch)`).

    `batch` is what `collate_fn` gives, or `batch_from_topk`. Metrics: ``loss, kd, ce, format`` (the last three without
    their weights) and ``kd_tokens, ce_tokens, format_tokens``.
    """
    check_batch(batch)
    divisor = token_weight(batch) if normaliser is None else normaliser
    kd = kd_cross_entropy_loss(
        logits_BTV,
        batch["topk_ids"],
        batch["topk_logprobs"],
        batch["other_logprob"],
        kd_mask(batch),
        tau,
        divisor,
        divergence,
    )
    return with_ce_and_format(kd, logits_BTV, batch, ce_weight, format_weight, divisor)


def with_ce_and_format(
    kd: tuple[Tensor, Metrics],
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    ce_weight: float,
    format_weight: float,
    normaliser: Tensor | float,
) -> tuple[Tensor, Metrics]:
    """A KD term, whatever its kind, with the two other terms."""
    sample_ids = batch["teacher_sample_id"]
    ce, ce_metrics = cross_entropy_loss(logits_BTV, sample_ids, response_mask(batch), normaliser)
    structure, format_metrics = format_loss(logits_BTV, sample_ids, format_mask(batch), normaliser)
    loss = kd[0] + ce_weight * ce + format_weight * structure
    return loss, {"loss": loss.detach()} | kd[1] | ce_metrics | format_metrics


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
    """`combined_loss` with the KD term of sampled targets; arguments and metrics are the same, but for tau."""
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
    """`combined_loss` with the KD term of tempered targets; `tau` is the one that log_z was collected for."""
    divisor = token_weight(batch) if normaliser is None else normaliser
    columns = ("topk_ids", "topk_logprobs", "log_z")
    ids_NK, logprobs_NK, log_z_N = (targets(batch[name]).flatten(0, 1) for name in columns)
    kd_N = tempered_by_position(predictions(logits_BTV).flatten(0, 1), ids_NK, logprobs_NK, log_z_N, tau)
    kd = weighted_mean(kd_N, targets(kd_mask(batch)).flatten().to(kd_N.dtype), divisor, "kd")
    return with_ce_and_format(kd, logits_BTV, batch, ce_weight, format_weight, divisor)
