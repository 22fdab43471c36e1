"""The losses from hidden states, over chunks of tokens: the [tokens × vocab] matrix never exists.

Shapes: B sequences, T positions, N gathered positions, C positions of a chunk, R rows of a tile, K candidates,
V vocabulary, D hidden width. Value and gradients equal those of `losses.combined_loss`, or, for sampled and tempered
targets, of `target_losses`: the KD term (`kd_terms`) is all that differs.

Loss and both gradients are computed in the forward pass, chunk by chunk; backward only scales them. For a row with
weights a (KD) and c (CE, both kinds together), S the teacher's candidates, lse_o the log-sum-exp over S's complement:

    v outside S:  (a·g_o + c·q_o)·exp(z_v − lse_o),   g_o = τ(Q̂_o − P̂_o)
    i in S:       a·τ(Q̂_i − P̂_i) + c·q_i              (assigned over the dense part)
    the target:   − c                                  (CE's one-hot)

exp(z − lse_o) is a softmax with S masked to −inf, so nothing is divided by q_o, which can underflow. That is three
matrix products and a few passes over a tile that stays in the CPU's cache. Products run in the autocast dtype, the
softmax and all sums in at least float32. Where the student is tempered before it is coarsened, KD's part outside S is
a·g_o·exp(z_v/τ − lse_o of z/τ) instead, for one more pass of exponentials.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import attrs
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitnet_core.kd_terms import KDTerm, sampled_term, tempered_term, topk_other_term
from bitnet_core.loss_config import SampledConfig, TemperedConfig, TopKOtherConfig
from bitnet_core.losses import (
    Metrics,
    NextTokenRows,
    divisor_for,
    kl_from_logprobs,
    next_token_rows,
    token_weight,
)

_TILE_BYTES = 4 << 20
"""A softmax tile on the CPU: small enough for the cache, large enough to hide the calls."""


class Weights(Protocol):
    """What the options of every loss here have."""

    @property
    def ce_weight(self) -> float: ...
    @property
    def format_weight(self) -> float: ...
    @property
    def chunk_tokens(self) -> int: ...


Loss = Callable[..., tuple[Tensor, Metrics]]
"""``loss(hidden_BTD, head_weight_VD, batch, normaliser=None)``"""


def load_topk_other(options: TopKOtherConfig) -> Loss:
    """The loss plug ``topk_other``."""
    return _load(topk_other_term(options.tau), options)


def load_tempered(options: TemperedConfig) -> Loss:
    """The loss plug ``tempered``."""
    return _load(tempered_term(options.tau), options)


def load_sampled(options: SampledConfig) -> Loss:
    """The loss plug ``sampled``."""
    return _load(sampled_term(), options)


def _load(kd: KDTerm, options: Weights) -> Loss:
    def loss(
        hidden_BTD: Tensor,
        head_weight_VD: Tensor,
        batch: Mapping[str, Tensor],
        normaliser: Tensor | float | None = None,
    ) -> tuple[Tensor, Metrics]:
        return chunked_loss(hidden_BTD, head_weight_VD, batch, kd, options, normaliser)

    return loss


def chunked_combined_loss(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    batch: Mapping[str, Tensor],
    options: TopKOtherConfig,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """`combined_loss` of ``logits = hidden_BTD @ head_weight_VD.T`` without the logits: `chunked_loss` of the top K."""
    return chunked_loss(hidden_BTD, head_weight_VD, batch, topk_other_term(options.tau), options, normaliser)


def chunked_loss(
    hidden_BTD: Tensor,
    head_weight_VD: Tensor,
    batch: Mapping[str, Tensor],
    kd: KDTerm,
    options: Weights,
    normaliser: Tensor | float | None = None,
) -> tuple[Tensor, Metrics]:
    """KD + ce_weight·CE + format_weight·format of ``logits = hidden_BTD @ head_weight_VD.T`` without the logits.

    hidden_BTD: float [B, T, D]; head_weight_VD: float [V, D], tied or not, frozen or not; `batch` is what `collate_fn`
    gives. Only positions that KD or CE reads meet the head. The gradient may be taken once for each call.
    """
    rows = next_token_rows(hidden_BTD, batch)
    divisor = token_weight(batch) if normaliser is None else normaliser
    loss, kd_sum, ce, structure = _ChunkedLoss.apply(
        rows.hidden_ND, head_weight_VD, rows, kd, options, divisor, torch.is_grad_enabled()
    )
    return loss, {
        "loss": loss.detach(),
        "kd": kd_sum,
        "kd_tokens": rows.has_kd.sum().to(kd_sum.dtype),
        "ce": ce,
        "ce_tokens": rows.is_response.sum().to(kd_sum.dtype),
        "format": structure,
        "format_tokens": rows.is_format.sum().to(kd_sum.dtype),
    }


class _ChunkedLoss(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden_ND: Tensor,
        head_VD: Tensor,
        rows: NextTokenRows,
        kd: KDTerm,
        options: Weights,
        normaliser: Tensor | float,
        grad_enabled: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        device = hidden_ND.device.type
        dtype = torch.promote_types(hidden_ND.dtype, head_VD.dtype)
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        with torch.autocast(device, enabled=False):
            sums_3, hidden_grad, head_grad = _loss_and_gradients(
                hidden_ND,
                head_VD,
                rows,
                kd,
                options,
                normaliser,
                dtype,
                *(grad_enabled and n for n in ctx.needs_input_grad[:2]),
            )
        ctx.gradients = (hidden_grad, head_grad)
        kd_sum, ce, structure = (sums_3 / divisor_for(normaliser, sums_3)).unbind()
        loss = kd_sum + options.ce_weight * ce + options.format_weight * structure
        ctx.mark_non_differentiable(kd_sum, ce, structure)
        return loss, kd_sum, ce, structure

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_loss: Tensor, *_: Any) -> tuple[Any, ...]:
        if ctx.gradients is None:
            raise RuntimeError(
                "the chunked loss keeps its gradients for one backward pass; call the loss again for a second one"
            )
        # In place: the gradient of the head is as large as the head.
        hidden_grad, head_grad = (None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in ctx.gradients)
        ctx.gradients = None
        return hidden_grad, head_grad, None, None, None, None, None


def _loss_and_gradients(
    hidden_ND: Tensor,
    head_VD: Tensor,
    rows: NextTokenRows,
    kd: KDTerm,
    options: Weights,
    normaliser: Tensor | float,
    dtype: torch.dtype,
    want_hidden: bool,
    want_head: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    """Σ KD, Σ CE, Σ format [3], and the gradients of the normalised loss by the hidden states and the head."""
    positions, vocabulary = len(hidden_ND), len(head_VD)
    wide = torch.promote_types(dtype, torch.float32)
    hidden, head = hidden_ND.detach().to(dtype), head_VD.detach().to(dtype)
    sums_3 = hidden.new_zeros(3, dtype=wide)
    scale = 1.0 / divisor_for(normaliser, sums_3)
    hidden_grad = torch.zeros_like(hidden_ND) if want_hidden else None
    head_sum = torch.zeros_like(head_VD, dtype=wide) if want_head else None
    logits_buffer = hidden.new_empty(min(options.chunk_tokens, positions), vocabulary)
    tiles = _Tiles.for_chunks(logits_buffer, wide)
    product_buffer = hidden.new_empty(min(tiles.vocabulary_rows, vocabulary), hidden.shape[1])

    for start in range(0, positions, options.chunk_tokens):
        chunk = slice(start, start + options.chunk_tokens)
        hidden_CD = hidden[chunk]
        logits_CV = torch.mm(hidden_CD, head.T, out=logits_buffer[: len(hidden_CD)])
        for first in range(0, len(hidden_CD), tiles.rows):
            tile = slice(first, min(first + tiles.rows, len(hidden_CD)))
            part = rows.part(start + tile.start, start + tile.stop)
            sums_3 += _tile(logits_CV[tile], part, kd, options, tiles, want_hidden or want_head)
        if hidden_grad is not None:  # logits_CV now holds the gradient by the logits, without the 1/normaliser
            hidden_grad[chunk] = torch.mm(logits_CV, head)
        if head_sum is not None:
            _add_product(head_sum, logits_CV, hidden_CD, product_buffer)

    if hidden_grad is not None:
        hidden_grad.mul_(scale)
    head_grad = None if head_sum is None else head_sum.mul_(scale).to(head_VD.dtype)
    return sums_3, hidden_grad, head_grad


def _add_product(head_sum_VD: Tensor, grad_CV: Tensor, hidden_CD: Tensor, buffer: Tensor) -> None:
    """head_sum += grad_CVᵀ · hidden_CD, summed over chunks in float32 even where products are in bfloat16."""
    if head_sum_VD.dtype == grad_CV.dtype:
        head_sum_VD.addmm_(grad_CV.T, hidden_CD)
        return
    for first in range(0, len(head_sum_VD), len(buffer)):
        last = min(first + len(buffer), len(head_sum_VD))
        product = torch.mm(grad_CV[:, first:last].T, hidden_CD, out=buffer[: last - first])
        head_sum_VD[first:last] += product


@attrs.frozen(eq=False)
class _Tiles:
    """Scratch space: `rows` rows of logits in float32, twice."""

    rows: int
    vocabulary_rows: int
    """Rows of the head whose gradient is computed at a time, before it is added in float32."""
    logits_RV: Tensor
    softmax_RV: Tensor

    @classmethod
    def for_chunks(cls, logits_CV: Tensor, wide: torch.dtype) -> "_Tiles":
        chunk, vocabulary = logits_CV.shape
        on_cpu = logits_CV.device.type == "cpu"
        rows = max(1, min(chunk, _TILE_BYTES // (vocabulary * wide.itemsize))) if on_cpu else chunk
        logits_RV = logits_CV.new_empty(rows, vocabulary, dtype=wide)
        return cls(rows, 4096 if on_cpu else vocabulary, logits_RV, torch.empty_like(logits_RV))


def _tile(
    logits_RV: Tensor, rows: NextTokenRows, kd: KDTerm, options: Weights, tiles: _Tiles, want_gradient: bool
) -> Tensor:
    """Σ KD, Σ CE, Σ format of the tile's rows; overwrites `logits_RV` with the gradient by it."""
    tau = kd.tau
    z_RV = tiles.logits_RV[: len(logits_RV)].copy_(logits_RV)
    dtype = z_RV.dtype
    target_R1 = rows.target[:, None]
    z_target_R1 = z_RV.gather(-1, target_R1)
    valid_RK = torch.isfinite(rows.topk_logprobs)
    z_RK = torch.where(valid_RK, z_RV.gather(-1, rows.topk_ids), -torch.inf)
    # Unused slots may carry any id, so they are never written: valid ones by index only.
    row, slot = valid_RK.nonzero(as_tuple=True)
    column = rows.topk_ids[row, slot]
    z_RV[row, column] = -torch.inf

    largest_R1 = z_RV.amax(dim=-1, keepdim=True)
    outside_RV = torch.softmax(z_RV, dim=-1, out=tiles.softmax_RV[: len(logits_RV)])
    has_other_R1 = torch.isfinite(largest_R1)
    # The largest entry of a softmax is exp(0)/Σ, so the log-sum-exp needs no second pass of exponentials.
    lse_other_R1 = largest_R1 - torch.where(has_other_R1, outside_RV.amax(dim=-1, keepdim=True), 1.0).log()
    z_buckets_RB = torch.cat([z_RK, lse_other_R1], dim=-1)
    lse_R1 = z_buckets_RB.logsumexp(dim=-1, keepdim=True)
    logprobs_RB = z_buckets_RB - lse_R1

    tempered_RV = None
    if kd.temper_first and tau != 1.0:  # the logits at temperature 1 have done their work: their tile is tempered
        tempered_RV = z_RV.sub_(largest_R1).div_(tau).exp_()
        mass_R1 = tempered_RV.sum(dim=-1, keepdim=True)
        lse_tempered_R1 = torch.where(has_other_R1, largest_R1 / tau + mass_R1.log(), -torch.inf)
        tempered_RV.div_(mass_R1)
        student_RB = torch.cat([z_RK / tau, lse_tempered_R1], dim=-1).log_softmax(dim=-1)
    else:
        student_RB = (logprobs_RB / tau).log_softmax(dim=-1)
    teacher_RB = kd.teacher(rows, dtype)
    kd_R = tau**2 * kl_from_logprobs(teacher_RB, student_RB)
    weight_R = torch.ones_like(kd_R)
    if kd.weigh is not None:
        weight_R, offset_R = kd.weigh(rows, teacher_RB)
        kd_R = weight_R * kd_R + offset_R
    nll_R = (lse_R1 - z_target_R1).squeeze(-1)
    sums_3 = torch.stack(
        [
            torch.where(mask, value, 0.0).sum()
            for mask, value in ((rows.has_kd, kd_R), (rows.is_response, nll_R), (rows.is_format, nll_R))
        ]
    )
    if not want_gradient:
        return sums_3

    ce_R = options.ce_weight * rows.is_response.to(dtype) + options.format_weight * rows.is_format.to(dtype)
    ce_R1 = ce_R[:, None]
    # A bucket that the student doesn't have is left out of the KL: the teacher's mass that counts may be below 1.
    teacher_mass_RB = torch.where(torch.isfinite(logprobs_RB), teacher_RB.exp(), 0.0)
    kd_gradient_RB = student_RB.exp() * teacher_mass_RB.sum(dim=-1, keepdim=True) - teacher_mass_RB
    kd_gradient_RB = torch.where(rows.has_kd[:, None], tau * weight_R[:, None] * kd_gradient_RB, 0.0)
    ce_gradient_RB = ce_R1 * logprobs_RB.exp()
    gradient_RB = kd_gradient_RB + ce_gradient_RB
    if tempered_RV is None:
        outside_RV.mul_(gradient_RB[:, -1:])
    else:
        outside_RV.mul_(ce_gradient_RB[:, -1:]).addcmul_(tempered_RV, kd_gradient_RB[:, -1:])
    outside_RV[row, column] = gradient_RB[row, slot]
    outside_RV.scatter_add_(-1, target_R1, -ce_R1)
    logits_RV.copy_(outside_RV)
    return sums_3
