"""Logits taken apart into the teacher's K candidates and all other tokens. R rows, B = K + 1 buckets, V vocabulary."""

import attrs
import torch
from torch import Tensor

from bitnet_core.kernels import cpu_training
from bitnet_core.losses.masks_and_rows import NextTokenRows, widened


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
