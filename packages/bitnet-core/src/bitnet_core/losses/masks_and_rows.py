"""Which rows a loss reads: the next-token shift, and the masks.

Shapes: B sequences, T positions, N gathered (aligned) positions, K candidates.
"""

from collections.abc import Mapping

import attrs
import torch
from torch import Tensor

from bitnet_core.errors import CoreError

COLUMNS = (
    "attention_mask",
    "is_prompt",
    "has_kd",
    "is_struct_token",
    "teacher_sample_id",
    "topk_ids",
    "topk_logprobs",
    "other_logprob",
)
"""What every loss reads of a batch; ``input_ids`` is for the model alone."""


def check_batch(batch: Mapping[str, Tensor]) -> None:
    """Raises CoreError with the names of the columns that the losses would miss."""
    absent = [name for name in COLUMNS if name not in batch]
    if absent:
        raise CoreError(
            f"the batch has no {', '.join(absent)}",
            "make batches of KD traces with collate_fn, of your own tensors with batch_from_topk or batch_from_logits",
        )


Metrics = dict[str, Tensor]
"""Detached scalars; nats per weighted token for ``loss, kd, ce, format``, numbers of positions for ``*_tokens``."""


# --- alignment -------------------------------------------------------------------------------------------------------
def predictions(x_BT: Tensor) -> Tensor:
    """What the student says of the next token: positions 0..T−2 of logits, hidden states, ... [B, T, ...]."""
    return x_BT[:, :-1]


def targets(x_BT: Tensor) -> Tensor:
    """What is predicted: rows 1..T−1 of a batch column [B, T, ...]. Row 0 is predicted by nothing."""
    return x_BT[:, 1:]


def response_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Positions of the answer (not prompt, not padding), where CE applies: bool [B, T]."""
    return batch["attention_mask"].bool() & ~batch["is_prompt"].bool()


def kd_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Positions with a teacher distribution: bool [B, T]."""
    return batch["attention_mask"].bool() & batch["has_kd"].bool()


def format_mask(batch: Mapping[str, Tensor]) -> Tensor:
    """Structural tokens of the answer: bool [B, T]."""
    return response_mask(batch) & batch["is_struct_token"].bool()


def token_weight(batch: Mapping[str, Tensor]) -> Tensor:
    """The number of target positions (KD or CE) of a batch: float32 scalar, on the batch's device."""
    return targets(kd_mask(batch) | response_mask(batch)).sum().float()


TARGET_PLACES = "target_places"


def with_target_places(batch: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """`batch` and where its targets are: int64 [N, 2], sequence and position. `next_token_rows` need not look for them
    then, which on a GPU would make the host wait."""
    places_N2 = targets(kd_mask(batch) | response_mask(batch)).nonzero()
    return {**batch, TARGET_PLACES: places_N2}


@attrs.frozen(eq=False)
class NextTokenRows:
    """The target positions of a batch, gathered and aligned; prompt and padding are gone."""

    hidden_ND: Tensor
    """What predicts the row: the student's hidden state one position earlier."""
    target: Tensor
    """int64 [N]: the token that stands there."""
    topk_ids: Tensor
    """int64 [N, K]"""
    topk_logprobs: Tensor
    """float [N, K]: nats, −inf in unused slots, and in all slots of a row without KD."""
    other_logprob: Tensor
    """float [N]: nats; 0 in a row without KD."""
    sample_logprob: Tensor
    """float [N]: the teacher's log-probability of `target`, nats; NaN where unknown."""
    has_kd: Tensor
    """bool [N]"""
    is_response: Tensor
    """bool [N]"""
    is_format: Tensor
    """bool [N]"""
    document: Tensor
    """int64 [N]: the sequence of the batch that the row comes from."""
    log_z: Tensor
    """float [N]: of sampled and tempered targets (docs/targets.md), nats; 0 in a row without KD."""
    entropy: Tensor
    """float [N]: the teacher's, of sampled targets, nats; 0 in a row without KD."""

    def split(self, size: int) -> "list[NextTokenRows]":
        """The same rows in consecutive parts of at most `size` rows."""
        return [self.part(start, start + size) for start in range(0, len(self.target), size)]

    def part(self, start: int, stop: int) -> "NextTokenRows":
        """Rows start..stop−1, as views."""
        return NextTokenRows(*(column[start:stop] for column in attrs.astuple(self, recurse=False)))


def next_token_rows(hidden_BTD: Tensor, batch: Mapping[str, Tensor]) -> NextTokenRows:
    """Gather the positions that KD or CE reads, each with the hidden state that predicts it (differentiable)."""
    check_batch(batch)
    has_kd, is_response, is_format = targets(kd_mask(batch)), targets(response_mask(batch)), targets(format_mask(batch))
    places_N2 = batch[TARGET_PLACES] if TARGET_PLACES in batch else (has_kd | is_response).nonzero()
    document, position = places_N2.unbind(dim=1)

    def gather(name: str) -> Tensor:
        return targets(batch[name])[document, position]

    def gather_extra(name: str) -> Tensor:
        return gather(name) if name in batch else torch.zeros_like(gather("other_logprob"))

    with_kd = has_kd[document, position]
    return NextTokenRows(
        hidden_ND=predictions(hidden_BTD)[document, position],
        target=gather("teacher_sample_id"),
        topk_ids=gather("topk_ids"),
        topk_logprobs=torch.where(with_kd[:, None], gather("topk_logprobs"), -torch.inf),
        other_logprob=torch.where(with_kd, gather("other_logprob"), 0.0),
        sample_logprob=gather("sample_logprob") if "sample_logprob" in batch else gather("other_logprob") * torch.nan,
        has_kd=with_kd,
        is_response=is_response[document, position],
        is_format=is_format[document, position],
        document=document,
        log_z=torch.where(with_kd, gather_extra("log_z"), 0.0),
        entropy=torch.where(with_kd, gather_extra("entropy"), 0.0),
    )


# --- buckets ---------------------------------------------------------------------------------------------------------
def widened(x: Tensor) -> Tensor:
    """`x` in at least float32: half-precision logits are never exponentiated in half precision."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def divisor_for(normaliser: Tensor | float, like: Tensor) -> Tensor:
    """`normaliser` on the device and in the dtype of `like`; 0 (a batch without any target) becomes 1."""
    value = torch.as_tensor(normaliser, dtype=like.dtype, device=like.device)
    return torch.where(value > 0, value, 1.0)


def weighted_mean(
    loss_N: Tensor, weight_N: Tensor, normaliser: Tensor | float | None, name: str
) -> tuple[Tensor, Metrics]:
    """Σ weight·loss / normaliser (by default Σ weight), and the metrics ``name`` and ``name_tokens``."""
    # `where`, not a product: a position of weight 0 must not bring 0·inf into value or gradient.
    total = torch.where(weight_N > 0, loss_N * weight_N, 0.0).sum()
    value = total / divisor_for(weight_N.sum() if normaliser is None else normaliser, total)
    return value, {name: value.detach(), f"{name}_tokens": weight_N.sum().detach()}
