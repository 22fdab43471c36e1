"""A chunk's logits become the gradient by them, on a CPU in two passes of compiled C++.

C positions of a chunk, K candidates, B = K + 1 buckets, V vocabulary. What `chunk_eager` does, but not for students
that are tempered before they are coarsened.
"""

import attrs
import torch
from torch import Tensor

from bitnet_core.kernels import cpu_training
from bitnet_core.losses.chunk_eager import bucket_terms
from bitnet_core.losses.divergences import KDTerm, take_candidates_
from bitnet_core.losses.masks_and_rows import NextTokenRows


def is_fused(logits_CV: Tensor, kd: KDTerm) -> bool:
    """Whether these rows can do the work."""
    return not (kd.temper_first and kd.tau != 1.0) and cpu_training.takes(logits_CV)


@attrs.frozen(eq=False)
class FusedRows:
    """`chunk_eager.EagerRows` in C++."""

    rows: NextTokenRows
    kd: KDTerm
    ce_weight: float
    format_weight: float
    want_gradient: bool

    @classmethod
    def for_chunks(
        cls,
        logits_CV: Tensor,
        rows: NextTokenRows,
        kd: KDTerm,
        ce_weight: float,
        format_weight: float,
        want_gradient: bool,
    ) -> "FusedRows":
        """For chunks like `logits_CV`."""
        return cls(rows, kd, ce_weight, format_weight, want_gradient)

    def __call__(self, logits_CV: Tensor, start: int) -> Tensor:
        """Σ KD, Σ CE, Σ format [3] of the rows from `start` on; `logits_CV` is overwritten with the gradient by it."""
        rows = self.rows.part(start, start + len(logits_CV))
        candidates = take_candidates_(logits_CV, rows)
        largest_C1, total_C1 = cpu_training.softmax_parts(logits_CV)
        has_other_C1 = torch.isfinite(largest_C1)
        lse_other_C1 = torch.where(has_other_C1, largest_C1 + total_C1.log(), largest_C1)
        terms = bucket_terms(rows, self.kd, candidates, lse_other_C1, self.ce_weight, self.format_weight)
        if not self.want_gradient:
            return terms.sums_3
        gradient_CB = terms.kd_gradient_RB + terms.ce_gradient_RB
        share_C1 = torch.where(has_other_C1, gradient_CB[:, -1:] / total_C1, 0.0)
        # The target's entry is taken in float32, as a candidate's or as one of the rest, before its −1 is added.
        is_target_CK = torch.isfinite(rows.topk_logprobs) & (rows.topk_ids == rows.target[:, None])
        among_C1 = torch.where(is_target_CK, gradient_CB[:, :-1], 0.0).sum(-1, keepdim=True)
        outside_C1 = share_C1 * (candidates.z_target_R1 - largest_C1).clamp(max=0).exp()  # only a candidate is above
        at_target_C1 = torch.where(is_target_CK.any(-1, keepdim=True), among_C1, outside_C1) - terms.ce_R1
        cpu_training.exponentiate_(logits_CV, largest_C1, share_C1)
        logits_CV[candidates.place] = gradient_CB[candidates.used].to(logits_CV.dtype)
        logits_CV[torch.arange(len(rows.target)), rows.target] = at_target_C1.squeeze(-1).to(logits_CV.dtype)
        return terms.sums_3
