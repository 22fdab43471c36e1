"""Attention relations of student and teacher (MiniLM v2, arXiv:2012.15828; BitDistill, arXiv:2510.13998, Algorithm 1).

B sequences, T positions, D width of queries, keys or values, H relation heads, E = D / H, C positions of a chunk.

The states of a layer, all queries say, are split anew into H heads and scaled to length 1. The relation of position t
is the softmax over all tokens s of its document of cos(a_t, a_s) / temperature; the loss of t is the mean over heads of
KL(teacher's relation ‖ student's). Widths and numbers of attention heads may differ between the two models: a relation
is over positions.

[T, T] relations exist for C positions at a time: value and gradient are computed in the forward pass, chunk by chunk,
so that what is kept is linear in T.
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from bitnet_core.losses.masks_and_rows import widened

_CHUNK_ELEMENTS = 4 << 20
"""Entries of a relation that exist at a time."""


def relation_kl(
    student_BTD: Tensor,
    teacher_BTD: Tensor,
    heads: int,
    temperature: float,
    document_BT: Tensor,
    weight_BT: Tensor,
    chunk: int | None = None,
) -> Tensor:
    """Σ over positions of weight · KL, nats; a scalar in at least float32.

    Widths are multiples of `heads`. document_BT: int, which document of the row a position belongs to, padding its own.
    weight_BT: float, 0 at positions that don't count. chunk: positions whose relations exist at a time.
    """
    sequences, length, _ = student_BTD.shape
    if chunk is None:
        chunk = max(1, _CHUNK_ELEMENTS // (sequences * heads * length))
    student_BHTE, teacher_BHTE = (_directions(each, heads) for each in (student_BTD, teacher_BTD))
    total: Tensor = _RelationKL.apply(student_BHTE, teacher_BHTE.detach(), temperature, document_BT, weight_BT, chunk)
    return total


def _directions(states_BTD: Tensor, heads: int) -> Tensor:
    """[B, H, T, E], each of length 1."""
    return unit(widened(states_BTD).unflatten(-1, (heads, -1))).transpose(1, 2)


def unit(x: Tensor) -> Tensor:
    """`x` scaled to length 1 along its last dimension; a zero, as a head of dead rows gives, stays one.

    A zero's gradient is 0. (`normalize` gives it 1e12 of what comes, which clipping would make the whole step.)
    """
    length = x.norm(dim=-1, keepdim=True)
    there = length > 0
    return torch.where(there, x / torch.where(there, length, 1.0), 0.0)


class _RelationKL(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        student_BHTE: Tensor,
        teacher_BHTE: Tensor,
        temperature: float,
        document_BT: Tensor,
        weight_BT: Tensor,
        chunk: int,
    ) -> Tensor:
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(student_BHTE) if wanted else None
        total = student_BHTE.new_zeros(())
        heads, length = student_BHTE.shape[1:3]
        for start in range(0, length, chunk):
            part = slice(start, start + chunk)
            together_B1CT = (document_BT[:, part, None] == document_BT[:, None, :])[:, None]
            log_p, log_q = (
                (each[:, :, part] @ each.transpose(-2, -1))
                .div_(temperature)
                .masked_fill_(~together_B1CT, -torch.inf)
                .log_softmax(dim=-1)
                for each in (teacher_BHTE, student_BHTE)
            )
            p = log_p.exp()
            weight_B1C = weight_BT[:, None, part].to(total.dtype) / heads
            kl_BHC = torch.where(together_B1CT, p * (log_p - log_q), 0.0).sum(dim=-1)
            total += (kl_BHC * weight_B1C).sum()
            if gradient is not None:
                slope = log_q.exp_().sub_(p).mul_(weight_B1C[..., None] / temperature)
                gradient[:, :, part] += slope @ student_BHTE
                gradient += slope.transpose(-2, -1) @ student_BHTE[:, :, part]
        ctx.save_for_backward(gradient)
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad_total: Tensor) -> tuple[Tensor | None, ...]:
        (gradient,) = ctx.saved_tensors
        return None if gradient is None else gradient * grad_total, None, None, None, None, None
