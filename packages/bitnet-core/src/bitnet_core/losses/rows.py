"""Which rows a loss reads: the next-token shift, the masks, and batches made of top-K targets.

Shapes: B sequences, T positions, N gathered (aligned) positions, K candidates.
"""

import math
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


LEAST_REST = 1e-8
"""P(other) where the candidates hold all mass by rounding, as in KD shards (docs/kd-shard.md)."""


def batch_from_topk(
    input_ids_BT: Tensor,
    topk_ids_BTK: Tensor,
    topk_logprobs_BTK: Tensor,
    *,
    other_logprob_BT: Tensor | None = None,
    attention_mask_BT: Tensor | None = None,
    is_prompt_BT: Tensor | None = None,
    is_struct_token_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """A batch for the losses, of candidates that stand where logits do: those at t are for token t + 1.

    topk_ids_BTK: integer; topk_logprobs_BTK: float, normalised over the whole vocabulary, −inf (or NaN) in unused
    slots. The batch's rows hold token t and the distribution it was drawn from, so candidates move one position on
    here, and the last position's are left out. KD is where the token is neither prompt nor padding and has a
    candidate; CE wherever it is neither.

    other_logprob_BT: log of the mass of all other tokens; left out, 1 − Σp in float64, at least 1e-8. Where you have
    the whole distribution give it, as a log-sum-exp over the others: that keeps the digits of a small rest.
    attention_mask_BT: 0 or False is padding; is_prompt_BT: context that isn't learnt; is_struct_token_BT: tokens that
    ``format_weight`` counts. Left out, they are all True, all False, all False.

    Raises CoreError for shapes that don't belong together.
    """
    shape, k = tuple(input_ids_BT.shape), topk_ids_BTK.shape[-1]
    _check_shapes(
        shape,
        {
            "topk_ids_BTK": (topk_ids_BTK, (*shape, k)),
            "topk_logprobs_BTK": (topk_logprobs_BTK, (*shape, k)),
            "other_logprob_BT": (other_logprob_BT, shape),
            "attention_mask_BT": (attention_mask_BT, shape),
            "is_prompt_BT": (is_prompt_BT, shape),
            "is_struct_token_BT": (is_struct_token_BT, shape),
        },
        "batch_from_topk",
    )
    nothing = torch.zeros(shape, dtype=torch.bool, device=input_ids_BT.device)
    mask = ~nothing if attention_mask_BT is None else attention_mask_BT.bool()
    is_prompt = nothing.clone() if is_prompt_BT is None else is_prompt_BT.bool().clone()
    is_prompt[:, :1] = True  # nothing predicts the first token,
    is_prompt[:, 1:] |= ~mask[:, :-1]  # nor the first one after padding on the left
    present = torch.isfinite(topk_logprobs_BTK)
    logprobs = torch.where(present, topk_logprobs_BTK, -torch.inf)
    if other_logprob_BT is None:
        mass_BT = logprobs.double().exp().sum(-1).clamp(max=1 - LEAST_REST)
        other_logprob_BT = torch.log1p(-mass_BT).float()
    has_kd = _one_later(present.any(-1), 0) & mask & ~is_prompt
    return {
        "input_ids": input_ids_BT,
        "attention_mask": mask,
        "teacher_sample_id": input_ids_BT,
        "topk_ids": _one_later(torch.where(present, topk_ids_BTK, 0), 0),
        "topk_logprobs": _one_later(logprobs, -torch.inf),
        "other_logprob": torch.where(has_kd, _one_later(other_logprob_BT, 0.0), 0.0),
        "has_kd": has_kd,
        "is_prompt": is_prompt,
        "is_struct_token": nothing if is_struct_token_BT is None else is_struct_token_BT.bool(),
    }


def batch_from_logits(
    input_ids_BT: Tensor,
    teacher_logits_BTV: Tensor,
    k: int,
    *,
    attention_mask_BT: Tensor | None = None,
    is_prompt_BT: Tensor | None = None,
    is_struct_token_BT: Tensor | None = None,
) -> dict[str, Tensor]:
    """`batch_from_topk` of a teacher whose logits are at hand: its `k` likeliest tokens, and the mass of all others.

    teacher_logits_BTV: those at t are for token t + 1, as a model gives them; no gradient goes through. Softmax and the
    rest's log-sum-exp are in float32 (float64 of float64 logits), one sequence at a time, so that no second [B, T, V]
    is held. With `k` = V the rest has `LEAST_REST`. The other arguments: see `batch_from_topk`.

    Raises CoreError for shapes that don't belong together, and a `k` that isn't in 1..V.
    """
    shape, vocabulary = tuple(input_ids_BT.shape), teacher_logits_BTV.shape[-1]
    if not 1 <= k <= vocabulary:
        raise CoreError(f"batch_from_logits: k = {k}, of {vocabulary} tokens", f"take one in 1..{vocabulary}")
    _check_shapes(shape, {"teacher_logits_BTV": (teacher_logits_BTV, (*shape, vocabulary))}, "batch_from_logits")
    ids, logprobs, others = zip(*(_top_and_rest(logits_TV, k) for logits_TV in teacher_logits_BTV), strict=True)
    return batch_from_topk(
        input_ids_BT,
        torch.stack(ids),
        torch.stack(logprobs),
        other_logprob_BT=torch.stack(others),
        attention_mask_BT=attention_mask_BT,
        is_prompt_BT=is_prompt_BT,
        is_struct_token_BT=is_struct_token_BT,
    )


@torch.no_grad()
def _top_and_rest(logits_TV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Ids [T, K], log-probabilities [T, K], and log of the others' mass [T]."""
    logprobs_TV = logits_TV.to(torch.promote_types(logits_TV.dtype, torch.float32)).log_softmax(-1)
    top = logprobs_TV.topk(k)
    rest_T = logprobs_TV.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    return top.indices, top.values, rest_T.nan_to_num(neginf=math.log(LEAST_REST))


def _check_shapes(
    shape: tuple[int, ...], columns: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], where: str
) -> None:
    """`columns`: each with the shape that it should have. Raises CoreError."""
    wrong = [
        f"{name} is {list(x.shape)}" for name, (x, wanted) in columns.items() if x is not None and x.shape != wanted
    ]
    if len(shape) != 2 or wrong:
        raise CoreError(
            f"{where}: input_ids_BT is {list(shape)}, {', '.join(wrong) or 'no [B, T]'}",
            "give [B, T] each, [B, T, K] for the two of the candidates, [B, T, V] for logits",
        )


def check_batch(batch: Mapping[str, Tensor]) -> None:
    """Raises CoreError with the names of the columns that the losses would miss."""
    absent = [name for name in COLUMNS if name not in batch]
    if absent:
        raise CoreError(
            f"the batch has no {', '.join(absent)}",
            "make batches of KD traces with collate_fn, of your own tensors with batch_from_topk or batch_from_logits",
        )


def _one_later(x_BT: Tensor, first: float) -> Tensor:
    return torch.cat([torch.full_like(x_BT[:, :1], first), x_BT[:, :-1]], dim=1)


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
