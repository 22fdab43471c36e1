"""The KD term: the student's logits as the teacher's buckets, and how far apart the two sides are; nats.

R rows, K candidates, B = K + 1 buckets, "other" last, V vocabulary. For every kind of target a row's loss is
weight · τ²·D(P̂, Q̂) + offset, and its gradient by the student's bucket weight · τ·∂D/∂u: see `KDTerm`. D is a forward KL
if nothing is said, else a reverse KL or a generalised Jensen-Shannon divergence.

log P̂ and log Q̂ [R, B] are normalised and tempered; −inf means that a bucket isn't there: an unused slot on both sides,
"other" without a token left (student) or without mass (teacher). Q̂ = softmax(u), and a divergence gives ∂D/∂u beside
D. All three are zero, with a zero gradient, where both sides are equal.

    forward KL   Σ P̂ log P̂/Q̂                          ∂D/∂u = Q̂ − P̂
    reverse KL   Σ Q̂ log Q̂/P̂                          ∂D/∂u = Q̂ (h − Σ Q̂h),  h = log Q̂/P̂
    JSD(β)       β KL(P̂‖M) + (1 − β) KL(Q̂‖M),          ∂D/∂u = Q̂ (h − Σ Q̂h),  h = (1 − β) log Q̂/M
                 M = βP̂ + (1 − β)Q̂

JSD is that of GKD (arXiv:2306.13649, section 2): near forward KL times β for β → 0, near reverse KL times 1 − β for
β → 1. Only the reverse KL is infinite where the teacher has no mass, which it has for certain nowhere: see `LEAST`.
"""

import math
from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from bitnet_core.kernels import cpu_training
from bitnet_core.losses.masks_and_rows import NextTokenRows, widened
from bitnet_core.losses.reference import kl_from_logprobs, teacher_buckets, tempered_buckets


@attrs.frozen(eq=False)
class Candidates:
    """What was taken out of the logits; at least float32."""

    z_RK: Tensor
    """The candidates' logits, −inf in unused slots."""
    z_target_R1: Tensor
    """That of the token that stands there."""
    used: tuple[Tensor, Tensor]
    """Row and slot of each candidate."""
    place: tuple[Tensor, Tensor]
    """Row and token of each candidate."""


def take_candidates_(logits_RV: Tensor, rows: NextTokenRows) -> Candidates:
    """Take the rows' candidates; in their places the logits become −inf."""
    valid_RK = torch.isfinite(rows.topk_logprobs)
    z_RK = torch.where(valid_RK, widened(logits_RV.gather(-1, rows.topk_ids)), -torch.inf)
    z_target_R1 = widened(logits_RV.gather(-1, rows.target[:, None]))
    # Unused slots may carry any id, so they are never written: valid ones by index only.
    row, slot = valid_RK.nonzero(as_tuple=True)
    column = rows.topk_ids[row, slot]
    logits_RV[row, column] = -torch.inf
    return Candidates(z_RK, z_target_R1, (row, slot), (row, column))


def log_sum_exp(logits_RV: Tensor) -> Tensor:
    """Over the vocabulary, [R, 1], at least float32; −inf where all logits are."""
    if not cpu_training.takes(logits_RV):
        return widened(logits_RV).logsumexp(dim=-1, keepdim=True)
    largest_R1, total_R1 = cpu_training.softmax_parts(logits_RV)
    return torch.where(torch.isfinite(largest_R1), largest_R1 + total_R1.log(), largest_R1)


def bucket_logprobs(z_RK: Tensor, lse_other_R1: Tensor) -> tuple[Tensor, Tensor]:
    """log Q [R, B], "other" last, and the log-sum-exp of all logits [R, 1]."""
    z_RB = torch.cat([z_RK, lse_other_R1], dim=-1)
    lse_R1 = z_RB.logsumexp(dim=-1, keepdim=True)
    return z_RB - lse_R1, lse_R1


LEAST = 2.0**-24
"""The teacher's mass, in a reverse KL, of an "other" that has none: what float32 can't tell from nothing beside 1."""

Pair = Callable[[Tensor, Tensor], Tensor]
"""log P̂ [R, B] and log Q̂ [R, B] in"""


@attrs.frozen
class Divergence:
    """One way to compare the buckets."""

    value: Pair
    """D [R], differentiable by log Q̂"""
    gradient: Pair
    """∂D/∂u [R, B]; 0 in a bucket that the student hasn't got"""
    kernel: int | None = None
    """Its number in `losses.chunk_triton`; None: it has no kernel, and is computed by the two functions above"""
    beta: float = 0.0


def _forward_gradient(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
    # A bucket that the student doesn't have is left out of the KL: the teacher's mass that counts may be below 1.
    mass_RB = torch.where(torch.isfinite(student_RB), teacher_RB.exp(), 0.0)
    return student_RB.exp() * mass_RB.sum(dim=-1, keepdim=True) - mass_RB


def _common(teacher_RB: Tensor, student_RB: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """log P̂ over the buckets that the student has, log Q̂, and which they are; both 0 in the others."""
    there_RB = torch.isfinite(student_RB)
    teacher_RB = torch.where(there_RB, teacher_RB, -torch.inf).log_softmax(dim=-1)
    return torch.where(there_RB, teacher_RB, 0.0), torch.where(there_RB, student_RB, 0.0), there_RB


def _reverse_log_ratio(teacher_RB: Tensor, student_RB: Tensor) -> tuple[Tensor, Tensor]:
    """Q̂ and log Q̂/P̂, both 0 where the student has no bucket."""
    floored_RB = torch.where(torch.isfinite(teacher_RB), teacher_RB, math.log(LEAST))
    log_p_RB, log_q_RB, there_RB = _common(floored_RB, student_RB)
    return torch.where(there_RB, log_q_RB.exp(), 0.0), log_q_RB - log_p_RB


def _reverse_value(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
    q_RB, ratio_RB = _reverse_log_ratio(teacher_RB, student_RB)
    return (q_RB * ratio_RB).sum(dim=-1)


def _reverse_gradient(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
    q_RB, ratio_RB = _reverse_log_ratio(teacher_RB, student_RB)
    return _softmax_gradient(q_RB, ratio_RB)


def _softmax_gradient(q_RB: Tensor, slope_RB: Tensor) -> Tensor:
    """From ∂D/∂Q̂, up to a constant, to ∂D/∂u."""
    return q_RB * (slope_RB - (q_RB * slope_RB).sum(dim=-1, keepdim=True))


def jensen_shannon(beta: float) -> Divergence:
    """JSD(β), 0 < β < 1."""

    def value(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
        log_p_RB, log_q_RB, there_RB = _common(teacher_RB, student_RB)
        log_m_RB = torch.logaddexp(log_p_RB + math.log(beta), log_q_RB + math.log1p(-beta))
        has_p_RB = torch.isfinite(log_p_RB)
        to_p_RB = torch.where(has_p_RB, log_p_RB.exp() * (torch.where(has_p_RB, log_p_RB, 0.0) - log_m_RB), 0.0)
        to_q_RB = log_q_RB.exp() * (log_q_RB - log_m_RB)
        return torch.where(there_RB, beta * to_p_RB + (1 - beta) * to_q_RB, 0.0).sum(dim=-1)

    def gradient(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
        log_p_RB, log_q_RB, there_RB = _common(teacher_RB, student_RB)
        log_m_RB = torch.logaddexp(log_p_RB + math.log(beta), log_q_RB + math.log1p(-beta))
        q_RB = torch.where(there_RB, log_q_RB.exp(), 0.0)
        return _softmax_gradient(q_RB, (1 - beta) * (log_q_RB - log_m_RB))

    return Divergence(value, gradient, kernel=2, beta=beta)


FORWARD_KL = Divergence(kl_from_logprobs, _forward_gradient, kernel=0)
REVERSE_KL = Divergence(_reverse_value, _reverse_gradient, kernel=1)


@attrs.frozen
class KDTerm:
    """How a row's target becomes P̂, and Q̂ is made to fit it."""

    tau: float
    temper_first: bool
    """Q̂ is softmax(z/τ) coarsened to the buckets; else softmax(z) coarsened, then tempered."""
    teacher: Callable[[NextTokenRows, torch.dtype], Tensor]
    """log P̂ [R, B], −inf where a bucket is empty"""
    weigh: Callable[[NextTokenRows, Tensor], tuple[Tensor, Tensor]] | None = None
    """Rows and log P̂ in, (weight [R], offset [R]) out; None: 1 and 0"""
    divergence: Divergence = FORWARD_KL

    def value(self, rows: NextTokenRows, teacher_RB: Tensor, student_RB: Tensor) -> tuple[Tensor, Tensor]:
        """Each row's loss [R] of log P̂ and log Q̂, and its weight [R]."""
        kd_R = self.tau**2 * self.divergence.value(teacher_RB, student_RB)
        if self.weigh is None:
            return kd_R, torch.ones_like(kd_R)
        weight_R, offset_R = self.weigh(rows, teacher_RB)
        return weight_R * kd_R + offset_R, weight_R


def topk_other_term(tau: float, divergence: Divergence = FORWARD_KL) -> KDTerm:
    """`reference.kd_by_position`."""

    def teacher(rows: NextTokenRows, dtype: torch.dtype) -> Tensor:
        return teacher_buckets(rows.topk_logprobs, rows.other_logprob, tau, dtype)

    return KDTerm(tau, False, teacher, divergence=divergence)


def tempered_term(tau: float) -> KDTerm:
    """`reference.tempered_by_position`."""
    return KDTerm(tau, True, lambda rows, dtype: tempered_buckets(rows.topk_logprobs, rows.log_z, tau, dtype))


def sampled_term() -> KDTerm:
    """`reference.sampled_by_position`: with shares P̂ = ŵ/W, W = Σŵ, it is W·(KL(P̂‖Q̂) + H(P̂)) − H(p)."""

    def teacher(rows: NextTokenRows, dtype: torch.dtype) -> Tensor:
        return teacher_buckets(rows.topk_logprobs, rows.other_logprob, 1.0, dtype)

    def weigh(rows: NextTokenRows, teacher_RB: Tensor) -> tuple[Tensor, Tensor]:
        weight_R = rows.log_z.to(teacher_RB.dtype).exp()
        shares_entropy_R = torch.special.entr(teacher_RB.exp()).sum(dim=-1)
        return weight_R, weight_R * shares_entropy_R - rows.entropy.to(teacher_RB.dtype)

    return KDTerm(1.0, False, teacher, weigh)
