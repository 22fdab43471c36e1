"""The relation KL against plain loops, by its properties, and in chunks."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.losses.attention_relation import relation_kl

torch.set_num_threads(1)

DOCUMENT = torch.tensor([[0, 0, 0, 1, 1, -1], [0, 0, 0, 0, 0, 0]])
WEIGHT = torch.tensor([[0.0, 1.0, 1.0, 0.0, 1.0, 0.0], [0.0, 0.0, 1.0, 1.0, 1.0, 0.0]])


def states(seed: int, width: int, size: float = 1.0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return size * torch.randn(2, 6, width, dtype=torch.float64, generator=generator)


def slow(student: Tensor, teacher: Tensor, heads: int, temperature: float) -> float:
    """With plain loops over sequences, positions and heads."""

    def relation(states_TD: Tensor, head: int, t: int, others: list[int]) -> list[float]:
        wide = states_TD.shape[1] // heads
        rows = [[float(x) for x in row[head * wide : (head + 1) * wide]] for row in states_TD]
        norms = [math.sqrt(sum(x * x for x in row)) for row in rows]
        cosines = [
            sum(a * b for a, b in zip(rows[t], rows[s], strict=True)) / norms[t] / norms[s] / temperature
            for s in others
        ]
        masses = [math.exp(cosine) for cosine in cosines]
        return [mass / sum(masses) for mass in masses]

    total = 0.0
    for b in range(2):
        for t in range(6):
            others = [s for s in range(6) if DOCUMENT[b, s] == DOCUMENT[b, t]]
            for head in range(heads):
                p, q = relation(teacher[b], head, t, others), relation(student[b], head, t, others)
                kl = sum(x * math.log(x / y) for x, y in zip(p, q, strict=True))
                total += float(WEIGHT[b, t]) * kl / heads
    return total


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 2**31), chunk=st.sampled_from([1, 4, 100]))
@pytest.mark.parametrize(("heads", "temperature"), [(1, 1.0), (2, 0.1)])
def test_equals_plain_loops(heads: int, temperature: float, seed: int, chunk: int) -> None:
    student, teacher = states(seed, 4), states(seed + 1, 8)  # another width
    loss = relation_kl(student, teacher, heads, temperature, DOCUMENT, WEIGHT, chunk)
    assert float(loss) == pytest.approx(slow(student, teacher, heads, temperature), rel=1e-9, abs=1e-12)


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**31), size=st.sampled_from([1e-3, 1.0, 1e3]))
def test_zero_at_identity(seed: int, size: float) -> None:
    student = states(seed, 8, size).requires_grad_()
    loss = relation_kl(student, student.detach(), 2, 0.1, DOCUMENT, WEIGHT)
    (gradient,) = torch.autograd.grad(loss, student)
    assert abs(float(loss.detach())) < 1e-13
    assert gradient.abs().max() * size < 1e-13


@pytest.mark.parametrize("chunk", [1, 4, 100])
def test_gradcheck(chunk: int) -> None:
    student, teacher = states(1, 8).requires_grad_(), states(2, 8)
    assert torch.autograd.gradcheck(
        lambda each: relation_kl(each, teacher, 2, 0.5, DOCUMENT, WEIGHT, chunk), (student,)
    )


def test_a_head_of_dead_rows_has_no_gradient_of_its_own() -> None:
    student, teacher = states(1, 8), states(2, 8)
    student[0, 1, :4] = 0
    student.requires_grad_()
    relation_kl(student, teacher, 2, 0.5, DOCUMENT, WEIGHT).backward()
    assert student.grad is not None
    assert student.grad[0, 1, :4].abs().max() == 0
    assert 0 < student.grad.abs().max() < 10


def test_other_documents_and_padding_change_nothing() -> None:
    student, teacher = states(1, 8), states(2, 8)
    weight = WEIGHT.clone()
    weight[0, 4] = 0  # only the first document of the first row counts
    before = relation_kl(student, teacher, 2, 0.5, DOCUMENT, weight)
    student[0, 3:] = 7.0
    torch.testing.assert_close(relation_kl(student, teacher, 2, 0.5, DOCUMENT, weight), before, rtol=0, atol=0)


def test_half_precision_is_widened() -> None:
    student, teacher = states(1, 8).bfloat16().requires_grad_(), states(2, 8).bfloat16()
    loss = relation_kl(student, teacher, 2, 0.1, DOCUMENT, WEIGHT)
    assert loss.dtype == torch.float32
    wide = relation_kl(student.detach().double(), teacher.double(), 2, 0.1, DOCUMENT, WEIGHT)
    assert float(loss.detach()) == pytest.approx(float(wide), rel=1e-5)
    loss.backward()
    assert student.grad is not None
    assert student.grad.dtype == torch.bfloat16
