"""The reference for the losses, in plain PyTorch on logits; training runs `bitnet_core.chunked_loss`, held to this one.

KD over the top-K and "other" buckets + CE + format: the mathematics of docs/losses.md. All losses are in nats.
Shapes: B sequences, T positions, N = gathered (aligned) positions, K candidates, V vocabulary, D hidden width.

Alignment. Row t of a batch holds token t and the teacher's distribution that it was drawn from; the student's
prediction of it stands at position t − 1. `predictions` and `targets` do that shift, and nothing else does.

Buckets. The teacher gives p_i for its K candidates and p_o for the rest of the vocabulary. The student's full
distribution is *coarsened* to the same K+1 buckets (ℓ_i = z_i − lse(z), ℓ_o = lse of z over the complement − lse(z)),
and only then are *both* tempered: P̂ = softmax([log p_S, log p_o]/τ), Q̂ = softmax([ℓ_S, ℓ_o]/τ). The loss of a position
is τ²·KL(P̂‖Q̂) (τ² as in Hinton et al. 2015, arXiv:1503.02531, section 2); it is zero when the student's distribution
equals the teacher's, at every τ and K. Its gradient is τ(Q̂_i − P̂_i) for a candidate and τ(Q̂_o − P̂_o)·q_v/q_o for a
token v outside.

Normalisation. Every term is a sum over positions divided by one number, the `normaliser`. In `combined_loss` it is by
default the batch's own `token_weight`: the number of target positions (those that KD or CE reads). Gradient
accumulation and data parallelism pass the total over all micro-batches and ranks instead; the gradients then add up
exactly to those of the one big batch. Metrics are divided by the same number, so they add up too; each term's own mean
is ``metrics["kd"] * normaliser / metrics["kd_tokens"]``.

Padding. Candidate slots beyond a position's own candidates hold log-probability −inf and any id (several may share 0).
A position without KD has weight 0 and P(other) = 1. Valid candidate ids of one position are distinct.
"""

from collections.abc import Callable, Mapping

import attrs
import torch
import torch.nn.functional as F
from torch import Tensor

from bitnet_core.loss_batch import check_batch

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
    chosen = has_kd | is_response
    document, position = chosen.nonzero(as_tuple=True)

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


def teacher_buckets(topk_logprobs_NK: Tensor, other_logprob_N: Tensor, tau: float, dtype: torch.dtype) -> Tensor:
    """log P̂, the teacher's tempered log-probabilities [N, K+1], "other" last; −inf where a bucket is empty.

    The K+1 masses are renormalised (stored log-probabilities are rounded). A position without any mass at all gets
    P(other) = 1, so that nothing divides by zero.
    """
    logprobs = torch.cat([topk_logprobs_NK.to(dtype), other_logprob_N.to(dtype)[..., None]], dim=-1)
    present = torch.isfinite(logprobs)
    is_other = torch.arange(logprobs.shape[-1], device=logprobs.device) == logprobs.shape[-1] - 1
    empty = ~present.any(dim=-1, keepdim=True) & is_other
    scaled = torch.where(present, logprobs / tau, torch.where(empty, 0.0, -torch.inf).to(dtype))
    return scaled.log_softmax(dim=-1)


def student_buckets(logits_NV: Tensor, topk_ids_NK: Tensor, valid_NK: Tensor) -> Tensor:
    """[ℓ_S, ℓ_o]: the student's log-probabilities of the K+1 buckets [N, K+1]; −inf where a bucket is empty.

    ℓ_o is a log-sum-exp over the complement of the valid candidates: 1 − Σ would lose all digits of a small rest.
    """
    logits = widened(logits_NV)
    lse_N1 = logits.logsumexp(dim=-1, keepdim=True)
    # A sum and not an assignment: an unused slot may share its id with a valid candidate, and must not unmask it.
    inside = torch.zeros_like(logits, dtype=torch.int32).scatter_add_(-1, topk_ids_NK, valid_NK.int()) > 0
    has_other_N1 = ~inside.all(dim=-1, keepdim=True)
    other_N1 = torch.where(inside & has_other_N1, -torch.inf, logits).logsumexp(dim=-1, keepdim=True)
    candidates_NK = torch.where(valid_NK, logits.gather(-1, topk_ids_NK) - lse_N1, -torch.inf)
    return torch.cat([candidates_NK, torch.where(has_other_N1, other_N1 - lse_N1, -torch.inf)], dim=-1)


def kl_from_logprobs(teacher_NB: Tensor, student_NB: Tensor) -> Tensor:
    """KL(P‖Q) [N] in nats from log-probabilities over the last dimension; −inf means a bucket without mass.

    Where the student's bucket doesn't exist (no token is left for "other") the bucket is left out on both sides.
    """
    both = torch.isfinite(teacher_NB) & torch.isfinite(student_NB)
    teacher, student = torch.where(both, teacher_NB, 0.0), torch.where(both, student_NB, 0.0)
    return torch.where(both, teacher.exp() * (teacher - student), 0.0).sum(dim=-1)


def kd_by_position(
    logits_NV: Tensor,
    topk_ids_NK: Tensor,
    topk_logprobs_NK: Tensor,
    other_logprob_N: Tensor,
    tau: float,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> Tensor:
    """τ²·D(P̂, Q̂) of each (already aligned) position, [N], nats; D is KL(P̂‖Q̂) or one of `divergences`."""
    student = student_buckets(logits_NV, topk_ids_NK, torch.isfinite(topk_logprobs_NK))
    teacher = teacher_buckets(topk_logprobs_NK, other_logprob_N, tau, student.dtype)
    return tau**2 * divergence(teacher, (student / tau).log_softmax(dim=-1))


# --- losses on logits ------------------------------------------------------------------------------------------------


def kd_cross_entropy_loss(
    logits_BTV: Tensor,
    topk_ids_BTK: Tensor,
    topk_logprobs_BTK: Tensor,
    other_logprob_BT: Tensor,
    weight_BT: Tensor,
    tau: float = 1.0,
    normaliser: Tensor | float | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> tuple[Tensor, Metrics]:
    """Next-token aligned KD over the K+1 buckets, both sides at temperature τ; zero when student equals teacher.

    Arguments are whole batch columns, unshifted: row t is compared with the logits at t − 1 in here. `weight_BT` (bool
    or float, not negative) is 0 where there is no KD. The sum of weight × τ²·D (`kd_by_position`) is divided by
    `normaliser`, by default the sum of the weights (a batch without KD costs 0). Metrics: ``kd``, ``kd_tokens``.
    """
    logits_NV = predictions(logits_BTV).flatten(0, 1)
    weight_N = targets(weight_BT).flatten().to(widened(logits_NV).dtype)
    kd_N = kd_by_position(
        logits_NV,
        targets(topk_ids_BTK).flatten(0, 1),
        targets(topk_logprobs_BTK).flatten(0, 1),
        targets(other_logprob_BT).flatten(),
        tau,
        divergence,
    )
    return weighted_mean(kd_N, weight_N, normaliser, "kd")


def cross_entropy_loss(
    logits_BTV: Tensor, target_BT: Tensor, weight_BT: Tensor, normaliser: Tensor | float | None = None, name: str = "ce"
) -> tuple[Tensor, Metrics]:
    """Next-token aligned −log p(token), weighted, divided by `normaliser` (by default the sum of the weights).

    Metrics: ``name``, ``name_tokens``.
    """
    logits_NV = widened(predictions(logits_BTV).flatten(0, 1))
    weight_N = targets(weight_BT).flatten().to(logits_NV.dtype)
    nll_N = F.cross_entropy(logits_NV, targets(target_BT).flatten(), reduction="none")
    return weighted_mean(nll_N, weight_N, normaliser, name)


def format_loss(
    logits_BTV: Tensor, target_BT: Tensor, is_struct_BT: Tensor, normaliser: Tensor | float | None = None
) -> tuple[Tensor, Metrics]:
    """Cross-entropy on structural tokens only (JSON, code fences). Metrics: ``format``, ``format_tokens``."""
    return cross_entropy_loss(logits_BTV, target_BT, is_struct_BT, normaliser, name="format")


def combined_loss(
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    *,
    tau: float = 1.0,
    ce_weight: float = 0.0,
    format_weight: float = 0.0,
    normaliser: Tensor | float | None = None,
    divergence: Callable[[Tensor, Tensor], Tensor] = kl_from_logprobs,
) -> tuple[Tensor, Metrics]:
    """KD + ce_weight·CE + format_weight·format, all divided by one `normaliser` (by default `token_weight(batch)`).

    `batch` is what `collate_fn` gives, or `batch_from_topk`. Metrics: ``loss, kd, ce, format`` (the last three without
    their weights) and ``kd_tokens, ce_tokens, format_tokens``.
    """
    check_batch(batch)
    divisor = token_weight(batch) if normaliser is None else normaliser
    kd = kd_cross_entropy_loss(
        logits_BTV,
        batch["topk_ids"],
        batch["topk_logprobs"],
        batch["other_logprob"],
        kd_mask(batch),
        tau,
        divisor,
        divergence,
    )
    return with_ce_and_format(kd, logits_BTV, batch, ce_weight, format_weight, divisor)


def with_ce_and_format(
    kd: tuple[Tensor, Metrics],
    logits_BTV: Tensor,
    batch: Mapping[str, Tensor],
    ce_weight: float,
    format_weight: float,
    normaliser: Tensor | float,
) -> tuple[Tensor, Metrics]:
    """A KD term, whatever its kind, with the two other terms."""
    sample_ids = batch["teacher_sample_id"]
    ce, ce_metrics = cross_entropy_loss(logits_BTV, sample_ids, response_mask(batch), normaliser)
    structure, format_metrics = format_loss(logits_BTV, sample_ids, format_mask(batch), normaliser)
    loss = kd[0] + ce_weight * ce + format_weight * structure
    return loss, {"loss": loss.detach()} | kd[1] | ce_metrics | format_metrics


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
