"""`chunk_eager` as one Triton kernel: a program a row, two passes over the row's logits, nothing else in memory.

C positions of a chunk, N all positions, K candidates, V vocabulary. The first pass takes the log-sum-exp over the
candidates' complement; the K + 1 buckets and the divergence are computed in registers; the second pass writes the
gradient where the logits were. Sums are in float32. What is small for all rows (the teacher's buckets, the weights) is
computed by PyTorch once, before the first chunk.
"""

import math
from collections.abc import Callable

import attrs
import torch
import triton
import triton.language as tl
from torch import Tensor

from bitnet_core.losses.chunk_eager import ce_weights, masked_sums
from bitnet_core.losses.divergences import LEAST, KDTerm
from bitnet_core.losses.masks_and_rows import NextTokenRows

_LARGEST_BLOCK = 8192
"""Logits that a program holds at a time."""


@attrs.frozen(eq=False)
class TritonRows:
    """`chunk_eager.EagerRows` on a device that Triton compiles for."""

    rows: NextTokenRows
    kd: KDTerm
    want_gradient: bool
    ids_NK: Tensor
    teacher_NB: Tensor
    weight_N: Tensor
    offset_N: Tensor
    kd_scale_N: Tensor
    """What ∂D/∂u counts: weight · τ, 0 without KD."""
    ce_scale_N: Tensor

    @classmethod
    def for_chunks(
        cls,
        logits_CV: Tensor,
        rows: NextTokenRows,
        kd: KDTerm,
        ce_weight: float,
        format_weight: float,
        want_gradient: bool,
    ) -> "TritonRows":
        teacher_NB = kd.teacher(rows, torch.float32)
        weight_N, offset_N = torch.ones_like(teacher_NB[:, 0]), torch.zeros_like(teacher_NB[:, 0])
        if kd.weigh is not None:
            weight_N, offset_N = kd.weigh(rows, teacher_NB)
        return cls(
            rows=rows,
            kd=kd,
            want_gradient=want_gradient,
            ids_NK=rows.topk_ids.contiguous(),
            teacher_NB=teacher_NB.contiguous(),
            weight_N=weight_N,
            offset_N=offset_N,
            kd_scale_N=torch.where(rows.has_kd, kd.tau * weight_N, 0.0).contiguous(),
            ce_scale_N=ce_weights(rows, ce_weight, format_weight, torch.float32).contiguous(),
        )

    def __call__(self, logits_CV: Tensor, start: int) -> Tensor:
        """Σ KD, Σ CE, Σ format [3] of the rows from `start` on; `logits_CV` is overwritten with the gradient by it."""
        count, vocabulary = logits_CV.shape
        part = slice(start, start + count)
        candidates = self.ids_NK.shape[1]
        value_C = torch.empty(count, dtype=torch.float32, device=logits_CV.device)
        nll_C = torch.empty_like(value_C)
        divergence = self.kd.divergence
        kernel: Callable[..., None] = _row[(count,)]
        kernel(
            logits_CV,
            self.ids_NK[part],
            self.teacher_NB[part],
            self.rows.target[part],
            self.kd_scale_N[part],
            self.ce_scale_N[part],
            value_C,
            nll_C,
            logits_CV.stride(0),
            vocabulary,
            candidates,
            float(self.kd.tau),
            float(divergence.beta),
            math.log(LEAST),
            DIVERGENCE=divergence.kernel,
            TEMPER_FIRST=self.kd.temper_first and self.kd.tau != 1.0,
            WANT_GRADIENT=self.want_gradient,
            SLOTS=triton.next_power_of_2(max(candidates, 1)),
            BLOCK=min(_LARGEST_BLOCK, triton.next_power_of_2(vocabulary)),
            num_warps=8,
        )
        kd_C = self.weight_N[part] * self.kd.tau**2 * value_C + self.offset_N[part]
        return masked_sums(self.rows.part(start, start + count), kd_C, nll_C)


@triton.jit
def _two_sums(value_k, value_other):  # type: ignore[no-untyped-def]
    return tl.sum(value_k, axis=0) + value_other


@triton.jit
def _log_softmax(z_k, z_other):  # type: ignore[no-untyped-def]
    """Over the candidates and other; at least one is finite."""
    largest = tl.maximum(tl.max(z_k, axis=0), z_other)
    lse = largest + tl.log(_two_sums(tl.exp(z_k - largest), tl.exp(z_other - largest)))
    return z_k - lse, z_other - lse, lse


@triton.jit
def _log_add(a, b):  # type: ignore[no-untyped-def]
    """log(eᵃ + eᵇ); b is finite."""
    largest = tl.maximum(a, b)
    return largest + tl.log(tl.exp(a - largest) + tl.exp(b - largest))


@triton.jit
def _softmax_gradient(q_k, q_other, slope_k, slope_other):  # type: ignore[no-untyped-def]
    mean = _two_sums(q_k * slope_k, q_other * slope_other)
    return q_k * (slope_k - mean), q_other * (slope_other - mean)


@triton.jit  # type: ignore[untyped-decorator]
def _diverge(p_k, p_other, q_k, q_other, valid, has_other, beta, log_least, KIND: tl.constexpr):  # type: ignore[no-untyped-def]
    """D and ∂D/∂u from log P̂ and log Q̂, as `divergences` has them; `valid`, `has_other`: the student's buckets."""
    mass_k = tl.where(valid, tl.exp(q_k), 0.0)
    mass_other = tl.where(has_other, tl.exp(q_other), 0.0)
    if KIND == 0:
        known = has_other & (p_other > float("-inf"))
        teacher_k = tl.where(valid, tl.exp(p_k), 0.0)
        teacher_other = tl.where(known, tl.exp(p_other), 0.0)
        ratio_k = tl.where(valid, p_k, 0.0) - tl.where(valid, q_k, 0.0)
        ratio_other = tl.where(known, p_other, 0.0) - tl.where(known, q_other, 0.0)
        value = _two_sums(teacher_k * ratio_k, teacher_other * ratio_other)
        total = _two_sums(teacher_k, teacher_other)
        slope_k = mass_k * total - teacher_k
        slope_other = mass_other * total - teacher_other
    else:
        if KIND == 1:
            p_other = tl.where(p_other > float("-inf"), p_other, log_least)
        p_k, p_other, _ = _log_softmax(p_k, tl.where(has_other, p_other, float("-inf")))
        p_k = tl.where(valid, p_k, 0.0)
        q_k = tl.where(valid, q_k, 0.0)
        p_other = tl.where(has_other, p_other, 0.0)
        q_other = tl.where(has_other, q_other, 0.0)
        if KIND == 1:
            value = _two_sums(mass_k * (q_k - p_k), mass_other * (q_other - p_other))
            slope_k, slope_other = _softmax_gradient(mass_k, mass_other, q_k - p_k, q_other - p_other)
        else:
            mixed_k = _log_add(p_k + tl.log(beta), q_k + tl.log(1.0 - beta))
            mixed_other = _log_add(p_other + tl.log(beta), q_other + tl.log(1.0 - beta))
            teacher_k = tl.where(valid, tl.exp(p_k), 0.0)
            known = has_other & (p_other > float("-inf"))
            teacher_other = tl.where(known, tl.exp(p_other), 0.0)
            to_teacher = _two_sums(
                teacher_k * (p_k - mixed_k), teacher_other * (tl.where(known, p_other, 0.0) - mixed_other)
            )
            to_student = _two_sums(mass_k * (q_k - mixed_k), mass_other * (q_other - mixed_other))
            value = beta * to_teacher + (1.0 - beta) * to_student
            slope_k, slope_other = _softmax_gradient(
                mass_k, mass_other, (1.0 - beta) * (q_k - mixed_k), (1.0 - beta) * (q_other - mixed_other)
            )
    return value, slope_k, slope_other


@triton.jit  # type: ignore[untyped-decorator]
def _row(  # type: ignore[no-untyped-def]
    logits_ptr,
    ids_ptr,
    teacher_ptr,
    target_ptr,
    kd_scale_ptr,
    ce_scale_ptr,
    value_ptr,
    nll_ptr,
    stride,
    vocabulary,
    candidates,
    tau,
    beta,
    log_least,
    DIVERGENCE: tl.constexpr,
    TEMPER_FIRST: tl.constexpr,
    WANT_GRADIENT: tl.constexpr,
    SLOTS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * stride
    k = tl.arange(0, SLOTS)
    ids = tl.load(ids_ptr + row * candidates + k, mask=k < candidates, other=0)
    log_p_k = tl.load(teacher_ptr + row * (candidates + 1) + k, mask=k < candidates, other=float("-inf"))
    log_p_other = tl.load(teacher_ptr + row * (candidates + 1) + candidates)
    valid = log_p_k > float("-inf")  # unused slots may carry any id, so they are neither read nor written
    target = tl.load(target_ptr + row)
    z_target = tl.load(logits_ptr + target).to(tl.float32)
    z_k = tl.load(logits_ptr + ids, mask=valid, other=float("-inf")).to(tl.float32)
    tl.debug_barrier()  # all have read before any masks
    tl.store(logits_ptr + ids, float("-inf"), mask=valid)
    tl.debug_barrier()

    # One pass for the log-sum-exp over the complement, of z and, where the student is tempered first, of z/τ.
    largest = tl.full((), float("-inf"), tl.float32)
    total = tl.full((), 0.0, tl.float32)
    total_tempered = tl.full((), 0.0, tl.float32)
    for first in range(0, vocabulary, BLOCK):
        column = first + tl.arange(0, BLOCK)
        z = tl.load(logits_ptr + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
        now = tl.maximum(largest, tl.max(z, axis=0))
        base = tl.where(now > float("-inf"), now, 0.0)
        total = total * tl.exp(largest - base) + tl.sum(tl.exp(z - base), axis=0)
        if TEMPER_FIRST:
            tempered = tl.sum(tl.exp((z - base) / tau), axis=0)
            total_tempered = total_tempered * tl.exp((largest - base) / tau) + tempered
        largest = now
    has_other = largest > float("-inf")
    lse_other = tl.where(has_other, largest + tl.log(tl.where(has_other, total, 1.0)), float("-inf"))

    logprob_k, logprob_other, lse = _log_softmax(z_k, lse_other)
    lse_tempered = lse_other
    if TEMPER_FIRST:
        safe = tl.where(has_other, total_tempered, 1.0)
        lse_tempered = tl.where(has_other, largest / tau + tl.log(safe), float("-inf"))
        log_q_k, log_q_other, _ = _log_softmax(z_k / tau, lse_tempered)
    else:
        log_q_k, log_q_other, _ = _log_softmax(logprob_k / tau, logprob_other / tau)
    value, slope_k, slope_other = _diverge(
        log_p_k, log_p_other, log_q_k, log_q_other, valid, has_other, beta, log_least, DIVERGENCE
    )
    tl.store(value_ptr + row, value)
    tl.store(nll_ptr + row, lse - z_target)

    if WANT_GRADIENT:
        kd_scale = tl.load(kd_scale_ptr + row)
        ce_scale = tl.load(ce_scale_ptr + row)
        gradient_k = kd_scale * slope_k + ce_scale * tl.where(valid, tl.exp(logprob_k), 0.0)
        # Outside, exp(z − lse) would lose digits of large logits that exp(z − largest) / Σ keeps.
        base = tl.where(has_other, largest, 0.0)
        share = ce_scale * tl.exp(logprob_other) / tl.where(has_other, total, 1.0)
        share_kd = kd_scale * slope_other / tl.where(has_other, total_tempered if TEMPER_FIRST else total, 1.0)
        if not TEMPER_FIRST:
            share += share_kd
        # The target's entry is taken in float32, as a candidate's or as one of the rest, before its −1 is added.
        is_target = valid & (ids == target)
        below = tl.minimum(z_target - base, 0.0)  # only a candidate is above
        at_target = share * tl.exp(below)
        if TEMPER_FIRST:
            at_target += share_kd * tl.exp(below / tau)
        among = tl.sum(is_target.to(tl.int32), axis=0) > 0
        at_target = tl.where(among, tl.sum(tl.where(is_target, gradient_k, 0.0), axis=0), at_target) - ce_scale
        for first in range(0, vocabulary, BLOCK):
            column = first + tl.arange(0, BLOCK)
            z = tl.load(logits_ptr + column, mask=column < vocabulary, other=float("-inf")).to(tl.float32)
            gradient = share * tl.exp(z - base)
            if TEMPER_FIRST:
                gradient += share_kd * tl.exp((z - base) / tau)
            tl.store(logits_ptr + column, gradient.to(logits_ptr.dtype.element_ty), mask=column < vocabulary)
        tl.debug_barrier()  # the dense part lies below what is assigned over it
        tl.store(logits_ptr + ids, gradient_k.to(logits_ptr.dtype.element_ty), mask=valid & (ids != target))
        tl.store(logits_ptr + target, at_target.to(logits_ptr.dtype.element_ty))
