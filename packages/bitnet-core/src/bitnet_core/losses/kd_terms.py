"""What each kind of target makes of the KD term, for `chunked_loss`. R rows, K candidates, B = K + 1 buckets; nats.

In all of them the loss of a row is weight · τ²·D(P̂, Q̂) + offset over the K+1 buckets, "other" last, and its gradient
by the student's bucket weight · τ·∂D/∂u; D is one of `divergences`, the KL(P̂‖Q̂) if nothing is said.
"""

from collections.abc import Callable

import attrs
import torch
from torch import Tensor

from bitnet_core.losses.divergences import FORWARD_KL, Divergence
from bitnet_core.losses.masks_and_rows import NextTokenRows
from bitnet_core.losses.reference import teacher_buckets, tempered_buckets


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
