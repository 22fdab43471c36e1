"""Losses that others use, and plain cross-entropy, to stand beside the library's in `benchmarks.recipes`.

N target positions, K candidates, V vocabulary; nats. All take what the library's losses take:
``loss(hidden_BTD, head_weight_VD, batch, normaliser)``. They make the whole [N, V] logits.
"""

from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from bitnet_core.losses.masks_and_rows import NextTokenRows, divisor_for, next_token_rows, token_weight, widened
from bitnet_core.losses.reference import kl_from_logprobs, student_buckets, teacher_buckets

Loss = Callable[..., tuple[Tensor, dict[str, Tensor]]]
MIS_TAU = 2.0
"""At temperature 1 the mis-tempered form is the right one."""


def cross_entropy(logits_NV: Tensor, rows: NextTokenRows) -> Tensor:
    """-log q(token that stands there): distillation on text alone."""
    return torch.where(rows.is_response, torch.nn.functional.cross_entropy(logits_NV, rows.target, reduction="none"), 0)


def renormalised(logits_NV: Tensor, rows: NextTokenRows) -> Tensor:
    """KL(teacher's top K scaled to 1 ‖ the student's whole softmax): the rest's mass goes to the candidates."""
    teacher_NK = rows.topk_logprobs.float().log_softmax(-1)
    student_NK = logits_NV.log_softmax(-1).gather(-1, rows.topk_ids)
    return _where_kd(kl_from_logprobs(teacher_NK, student_NK), rows)


def mis_tempered(logits_NV: Tensor, rows: NextTokenRows) -> Tensor:
    """tau^2 KL of the teacher's tempered buckets to the student's tempered softmax in buckets.

    The one side is coarsened and then tempered, the other tempered and then coarsened: not 0 where they are equal.
    """
    student_NB = student_buckets(logits_NV / MIS_TAU, rows.topk_ids, torch.isfinite(rows.topk_logprobs))
    teacher_NB = teacher_buckets(rows.topk_logprobs, rows.other_logprob, MIS_TAU, student_NB.dtype)
    return _where_kd(MIS_TAU**2 * kl_from_logprobs(teacher_NB, student_NB), rows)


def _where_kd(kl_N: Tensor, rows: NextTokenRows) -> Tensor:
    return torch.where(rows.has_kd, kl_N, 0.0)


def _load(by_position: Callable[[Tensor, NextTokenRows], Tensor]) -> Loss:
    def loss(
        hidden_BTD: Tensor, head_weight_VD: Tensor, batch: Mapping[str, Tensor], normaliser: Tensor | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]:
        rows = next_token_rows(hidden_BTD, batch)
        total = by_position(widened(rows.hidden_ND @ head_weight_VD.T), rows).sum()
        value = total / divisor_for(token_weight(batch) if normaliser is None else normaliser, total)
        return value, {"loss": value.detach()}

    return loss


PEER_LOSSES: dict[str, Loss] = {
    "ce": _load(cross_entropy),
    "renormalised": _load(renormalised),
    f"mis_tempered_tau{MIS_TAU:g}": _load(mis_tempered),
}
