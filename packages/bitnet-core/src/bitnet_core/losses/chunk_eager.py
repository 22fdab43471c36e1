"""The work between the loss's matrix products, in plain PyTorch: a chunk's logits become their gradient, in place.

C positions of a chunk, R rows of a tile, K candidates, B = K + 1 buckets, V vocabulary. `chunked` tells the formulas;
`chunk_triton` does the same in one kernel.
"""

import attrs
import torch
from torch import Tensor

from bitnet_core.losses.divergences import Candidates, KDTerm, bucket_logprobs, take_candidates_
from bitnet_core.losses.masks_and_rows import NextTokenRows

_TILE_BYTES = 4 << 20
"""A softmax tile on the CPU: small enough for the cache, large enough to hide the calls."""


@attrs.frozen(eq=False)
class EagerRows:
    """Works on a few rows at a time, widened to float32 in scratch space."""

    rows: NextTokenRows
    kd: KDTerm
    ce_weight: float
    format_weight: float
    want_gradient: bool
    logits_RV: Tensor
    softmax_RV: Tensor

    @classmethod
    def for_chunks(
        cls,
        logits_CV: Tensor,
        rows: NextTokenRows,
        kd: KDTerm,
        ce_weight: float,
        format_weight: float,
        want_gradient: bool,
    ) -> "EagerRows":
        """With scratch space for chunks like `logits_CV`."""
        wide = torch.promote_types(logits_CV.dtype, torch.float32)
        chunk, vocabulary = logits_CV.shape
        on_cpu = logits_CV.device.type == "cpu"
        size = max(1, min(chunk, _TILE_BYTES // (vocabulary * wide.itemsize))) if on_cpu else chunk
        logits_RV = logits_CV.new_empty(size, vocabulary, dtype=wide)
        return cls(rows, kd, ce_weight, format_weight, want_gradient, logits_RV, torch.empty_like(logits_RV))

    def __call__(self, logits_CV: Tensor, start: int) -> Tensor:
        """Σ KD, Σ CE, Σ format [3] of the rows from `start` on; `logits_CV` is overwritten with the gradient by it."""
        sums_3 = self.logits_RV.new_zeros(3)
        size = len(self.logits_RV)
        for first in range(0, len(logits_CV), size):
            tile_RV = logits_CV[first : first + size]
            sums_3 += self._tile(tile_RV, self.rows.part(start + first, start + first + len(tile_RV)))
        return sums_3

    def _tile(self, logits_RV: Tensor, rows: NextTokenRows) -> Tensor:
        kd, tau = self.kd, self.kd.tau
        z_RV = self.logits_RV[: len(logits_RV)].copy_(logits_RV)
        candidates = take_candidates_(z_RV, rows)
        largest_R1 = z_RV.amax(dim=-1, keepdim=True)
        outside_RV = torch.softmax(z_RV, dim=-1, out=self.softmax_RV[: len(logits_RV)])
        has_other_R1 = torch.isfinite(largest_R1)
        # The largest entry of a softmax is exp(0)/Σ, so the log-sum-exp needs no second pass of exponentials.
        lse_other_R1 = largest_R1 - torch.where(has_other_R1, outside_RV.amax(dim=-1, keepdim=True), 1.0).log()
        tempered_RV = None
        lse_tempered_R1 = None
        if kd.temper_first and tau != 1.0:  # the logits at temperature 1 have done their work: their tile is tempered
            tempered_RV = z_RV.sub_(largest_R1).div_(tau).exp_()
            mass_R1 = tempered_RV.sum(dim=-1, keepdim=True)
            lse_tempered_R1 = torch.where(has_other_R1, largest_R1 / tau + mass_R1.log(), -torch.inf)
            tempered_RV.div_(mass_R1)
        terms = bucket_terms(rows, kd, candidates, lse_other_R1, self.ce_weight, self.format_weight, lse_tempered_R1)
        if not self.want_gradient:
            return terms.sums_3
        gradient_RB = terms.kd_gradient_RB + terms.ce_gradient_RB
        if tempered_RV is None:
            outside_RV.mul_(gradient_RB[:, -1:])
        else:
            outside_RV.mul_(terms.ce_gradient_RB[:, -1:]).addcmul_(tempered_RV, terms.kd_gradient_RB[:, -1:])
        outside_RV[candidates.place] = gradient_RB[candidates.used]
        outside_RV.scatter_add_(-1, rows.target[:, None], -terms.ce_R1)
        logits_RV.copy_(outside_RV)
        return terms.sums_3


@attrs.frozen(eq=False)
class BucketTerms:
    """What the buckets alone decide."""

    sums_3: Tensor
    """Σ KD, Σ CE, Σ format"""
    kd_gradient_RB: Tensor
    """By the bucket's logit, the rows' weights in it; "other" last."""
    ce_gradient_RB: Tensor
    """Likewise, without the −1 at the target."""
    ce_R1: Tensor
    """What the cross-entropy of a row counts."""


def bucket_terms(
    rows: NextTokenRows,
    kd: KDTerm,
    candidates: Candidates,
    lse_other_R1: Tensor,
    ce_weight: float,
    format_weight: float,
    lse_tempered_R1: Tensor | None = None,
) -> BucketTerms:
    """From the candidates and the log-sum-exp of all others.

    lse_tempered_R1: that of z/τ, where the student is tempered before it is coarsened.
    """
    tau, dtype = kd.tau, lse_other_R1.dtype
    logprobs_RB, lse_R1 = bucket_logprobs(candidates.z_RK, lse_other_R1)
    if lse_tempered_R1 is None:
        student_RB = (logprobs_RB / tau).log_softmax(dim=-1)
    else:
        student_RB = torch.cat([candidates.z_RK / tau, lse_tempered_R1], dim=-1).log_softmax(dim=-1)
    teacher_RB = kd.teacher(rows, dtype)
    kd_R, weight_R = kd.value(rows, teacher_RB, student_RB)
    ce_R1 = ce_weights(rows, ce_weight, format_weight, dtype)[:, None]
    kd_gradient_RB = kd.divergence.gradient(teacher_RB, student_RB)
    return BucketTerms(
        sums_3=masked_sums(rows, kd_R, (lse_R1 - candidates.z_target_R1).squeeze(-1)),
        kd_gradient_RB=torch.where(rows.has_kd[:, None], tau * weight_R[:, None] * kd_gradient_RB, 0.0),
        ce_gradient_RB=ce_R1 * logprobs_RB.exp(),
        ce_R1=ce_R1,
    )


def masked_sums(rows: NextTokenRows, kd_R: Tensor, nll_R: Tensor) -> Tensor:
    """Σ KD, Σ CE, Σ format [3] of the rows' own values."""
    parts = ((rows.has_kd, kd_R), (rows.is_response, nll_R), (rows.is_format, nll_R))
    return torch.stack([torch.where(mask_R, value_R, 0.0).sum() for mask_R, value_R in parts])


def ce_weights(rows: NextTokenRows, ce_weight: float, format_weight: float, dtype: torch.dtype) -> Tensor:
    """What the cross-entropy of each row counts, as an answer's token and as a structural one, [R]."""
    return ce_weight * rows.is_response.to(dtype) + format_weight * rows.is_format.to(dtype)
