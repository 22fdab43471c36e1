"""How far the student's buckets are from the teacher's: forward KL, reverse KL, generalised Jensen-Shannon; nats.

R rows, B = K + 1 buckets. log P̂ and log Q̂ [R, B] are normalised and tempered; −inf means that a bucket isn't there:
an unused slot on both sides, "other" without a token left (student) or without mass (teacher). Q̂ = softmax(u), and a
divergence gives ∂D/∂u beside D. All three are zero, with a zero gradient, where both sides are equal.

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

from bitnet_core.losses.reference import kl_from_logprobs

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
