"""Batches for the losses out of a teacher's candidates, or of its logits.

Shapes: B sequences, T positions, K candidates, V vocabulary.
"""

import math
from collections.abc import Mapping

import torch
from torch import Tensor

from bitnet_core.errors import CoreError

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

    Raises CoreError for shapes that don't belong together, a `k` that isn't in 1..V, and logits that are no
    distribution: a NaN, +inf, or -inf for every token.
    """
    shape, vocabulary = tuple(input_ids_BT.shape), teacher_logits_BTV.shape[-1]
    if not 1 <= k <= vocabulary:
        raise CoreError(f"batch_from_logits: k = {k}, of {vocabulary} tokens", f"take one in 1..{vocabulary}")
    _check_shapes(shape, {"teacher_logits_BTV": (teacher_logits_BTV, (*shape, vocabulary))}, "batch_from_logits")
    ids, logprobs, others = zip(*(_top_and_rest(logits_TV, k) for logits_TV in teacher_logits_BTV), strict=True)
    broken_BT = torch.stack(logprobs).isnan().any(-1)
    if attention_mask_BT is not None:
        broken_BT &= attention_mask_BT.bool()  # what a teacher makes of padding is nobody's concern
    if broken_BT.any():  # else no position would have KD, and the loss would be cross-entropy alone
        raise CoreError(
            f"batch_from_logits: at {int(broken_BT.sum())} positions the logits are no distribution (NaN or inf)",
            "run the teacher in bfloat16 or float32: float16 overflows",
        )
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


def _one_later(x_BT: Tensor, first: float) -> Tensor:
    return torch.cat([torch.full_like(x_BT[:, :1], first), x_BT[:, :-1]], dim=1)
