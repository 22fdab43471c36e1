"""Reverse KL and JSD over the K+1 buckets: against plain loops, by their properties, and the same over chunks."""

import math
from typing import Any

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.config.loss import JensenShannonConfig, ReverseKLConfig
from bitnet_core.losses.chunked import load_loss
from bitnet_core.losses.divergences import FORWARD_KL, LEAST, REVERSE_KL, Divergence, jensen_shannon, topk_other_term
from bitnet_core.losses.reference import combined_loss, kd_by_position

torch.set_num_threads(1)

SEEDS = st.integers(0, 2**31)
TAUS = st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0])
BETAS = (0.1, 0.5, 0.9)
KINDS = ("reverse", *BETAS)
WIDTH, VOCABULARY = 6, 13


def divergence(kind: Any) -> Divergence:
    return REVERSE_KL if kind == "reverse" else jensen_shannon(kind)


def slow(kind: Any, p: list[float], q: list[float]) -> float:
    """With plain Python floats, from probabilities of buckets that both sides have."""
    if kind == "reverse":
        return sum(b * math.log(b / a) for a, b in zip(p, q, strict=True))
    mixed = [kind * a + (1 - kind) * b for a, b in zip(p, q, strict=True)]
    to_p = sum(a * math.log(a / m) for a, m in zip(p, mixed, strict=True))
    to_q = sum(b * math.log(b / m) for b, m in zip(q, mixed, strict=True))
    return kind * to_p + (1 - kind) * to_q


def slow_kd(kind: Any, z: np.ndarray, ids: list[int], logprobs: list[float], other: float, tau: float) -> float:
    """One position: coarsen, temper both, τ²·D."""

    def tempered(masses: list[float]) -> list[float]:
        raised = [mass ** (1 / tau) for mass in masses]
        return [each / sum(raised) for each in raised]

    masses = np.exp(z - z.max()) / np.exp(z - z.max()).sum()
    rest = sum(masses[v] for v in range(len(z)) if v not in ids)
    student, teacher = [*(masses[i] for i in ids), rest], [*map(math.exp, logprobs), math.exp(other)]
    return tau**2 * slow(kind, tempered(teacher), tempered(student))


def teacher_from_logits(z_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    logprobs = z_NV.log_softmax(-1)
    top = logprobs.topk(k, dim=-1)
    return top.indices, top.values, logprobs.scatter(-1, top.indices, -torch.inf).logsumexp(-1)


def randn(seed: int, *shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, dtype=dtype, generator=torch.Generator().manual_seed(seed))


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 8))
@pytest.mark.parametrize("kind", KINDS)
def test_value_and_gradient_are_those_of_plain_loops(kind: Any, seed: int, tau: float, k: int) -> None:
    z = randn(seed, 1, 9).requires_grad_()
    ids, logprobs, other = teacher_from_logits(randn(seed + 1, 1, 9), k)
    loss = kd_by_position(z, ids, logprobs, other, tau, divergence(kind).value).sum()
    arguments = (ids[0].tolist(), logprobs[0].tolist(), float(other), tau)
    row = z.detach()[0].numpy()
    assert float(loss.detach()) == pytest.approx(slow_kd(kind, row, *arguments), rel=1e-9, abs=1e-13)
    (gradient,) = torch.autograd.grad(loss, z)
    for v in range(9):
        ahead, behind = (slow_kd(kind, row + e * np.eye(9)[v], *arguments) for e in (1e-6, -1e-6))
        assert float(gradient[0, v]) == pytest.approx((ahead - behind) / 2e-6, rel=1e-4, abs=1e-7)


@settings(max_examples=50, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 12), spread=st.sampled_from([0.01, 1.0, 6.0]))
@pytest.mark.parametrize("kind", KINDS)
def test_zero_when_student_equals_teacher(kind: Any, seed: int, tau: float, k: int, spread: float) -> None:
    z = (spread * randn(seed, 5, 12)).requires_grad_()
    loss = kd_by_position(z, *teacher_from_logits(z.detach(), k), tau, divergence(kind).value)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, tau=TAUS)
@pytest.mark.parametrize("kind", KINDS)
def test_positive_when_they_differ_and_jsd_is_bounded(kind: Any, seed: int, tau: float) -> None:
    value = divergence(kind).value
    z, teacher = 2 * randn(seed, 4, 12), 2 * randn(seed + 1, 4, 12)
    assert (kd_by_position(z, *teacher_from_logits(teacher, 4), tau, value) > 0).all()
    far = kd_by_position(30 * z, *teacher_from_logits(30 * teacher, 4), tau, value)
    assert (far > -1e-12).all()
    if kind != "reverse":
        entropy = -kind * math.log(kind) - (1 - kind) * math.log(1 - kind)
        assert (far <= tau**2 * entropy * (1 + 1e-12)).all()


@pytest.mark.parametrize(("beta", "limit"), [(1e-6, "forward"), (1 - 1e-6, "reverse")])
def test_jsd_goes_over_into_both_kls(beta: float, limit: str) -> None:
    z, teacher = randn(1, 4, 12), teacher_from_logits(randn(2, 4, 12), 4)
    near = kd_by_position(z, *teacher, 1.5, jensen_shannon(beta).value) / min(beta, 1 - beta)
    value = FORWARD_KL.value if limit == "forward" else REVERSE_KL.value
    torch.testing.assert_close(near, kd_by_position(z, *teacher, 1.5, value), rtol=1e-4, atol=1e-6)


def test_jsd_of_one_half_is_symmetric() -> None:
    p, q = randn(1, 3, 5).log_softmax(-1), randn(2, 3, 5).log_softmax(-1)
    half = jensen_shannon(0.5).value
    torch.testing.assert_close(half(p, q), half(q, p))


@pytest.mark.parametrize("kind", ["forward", *KINDS])
@pytest.mark.parametrize("case", ["all there", "unused slot", "no other left", "no other mass"])
def test_the_closed_gradient_is_autograds(kind: Any, case: str) -> None:
    chosen = FORWARD_KL if kind == "forward" else divergence(kind)
    teacher, u = randn(1, 3, 5).log_softmax(-1), randn(2, 3, 5)
    if case == "unused slot":
        teacher[:, 1], u[:, 1] = -torch.inf, -torch.inf
    elif case == "no other left":
        u[:, -1] = -torch.inf
    elif case == "no other mass":
        teacher[:, -1] = -torch.inf
    u.requires_grad_()
    student = u.log_softmax(-1)
    (expected,) = torch.autograd.grad(chosen.value(teacher, student).sum(), u)
    found = chosen.gradient(teacher, student.detach())
    assert torch.isfinite(found).all()
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)


def test_a_teacher_without_other_pushes_with_a_finite_force() -> None:
    teacher = torch.tensor([[0.0, -torch.inf]], dtype=torch.float64)
    student = torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()
    expected = 0.5 * math.log(0.5 * (1 + LEAST)) + 0.5 * math.log(0.5 * (1 + LEAST) / LEAST)
    assert float(REVERSE_KL.value(teacher, student)) == pytest.approx(expected, rel=1e-12)
    assert float(REVERSE_KL.gradient(teacher, student)[0, 1]) > 0


@pytest.mark.parametrize("kind", KINDS)
def test_gradcheck(kind: Any) -> None:
    batch = random_batch(5)
    logits = randn(6, 3, 6, VOCABULARY).requires_grad_()

    def loss(z: Tensor) -> Tensor:
        value = divergence(kind).value
        return combined_loss(z, batch, tau=1.7, ce_weight=0.5, format_weight=0.5, divergence=value)[0]

    assert torch.autograd.gradcheck(loss, (logits,))


def random_batch(seed: int, b: int = 3, t: int = 6, k: int = 4) -> dict[str, Tensor]:
    """Prompt, padding, KD and CE-only positions, unused slots, positions without mass for other."""
    generator = torch.Generator().manual_seed(seed)

    def coin(p: float) -> Tensor:
        return torch.rand(b, t, generator=generator) < p

    ids, values, other = teacher_from_logits(2 * torch.randn(b, t, VOCABULARY, generator=generator), k)
    short = coin(0.3) if k > 1 else torch.zeros(b, t, dtype=torch.bool)
    values[..., -1], ids[..., -1] = torch.where(short, -torch.inf, values[..., -1]), torch.where(short, 0, ids[..., -1])
    mask = torch.arange(t) < torch.randint(3, t + 1, (b, 1), generator=generator)
    return {
        "attention_mask": mask,
        "teacher_sample_id": torch.randint(0, VOCABULARY, (b, t), generator=generator),
        "topk_ids": ids,
        "topk_logprobs": values,
        "other_logprob": torch.where(coin(0.2), -torch.inf, other),
        "is_struct_token": coin(0.4),
        "has_kd": coin(0.7) & mask,
        "is_prompt": torch.arange(t).expand(b, t) < 2,
    }


def options_of(kind: Any, tau: float, chunk: int) -> tuple[Any, Any]:
    """(the loss over chunks, its options)"""
    weights = {"tau": tau, "ce_weight": 0.3, "format_weight": 0.5, "chunk_tokens": chunk}
    options: Any = ReverseKLConfig(**weights) if kind == "reverse" else JensenShannonConfig(beta=kind, **weights)
    return load_loss(options), options


def inputs(seed: int, dtype: torch.dtype, size: float = 1.0) -> tuple[Tensor, Tensor]:
    hidden, head = size * randn(seed, 3, 6, WIDTH, dtype=dtype), randn(seed + 1, VOCABULARY, WIDTH, dtype=dtype)
    return hidden.requires_grad_(), head.requires_grad_()


@settings(max_examples=25, deadline=None)
@given(seed=SEEDS, tau=TAUS, chunk=st.sampled_from([1, 4, 100]), k=st.integers(1, VOCABULARY))
@pytest.mark.parametrize("kind", KINDS)
def test_chunks_give_the_float64_loss(kind: Any, seed: int, tau: float, chunk: int, k: int) -> None:
    chunked, options = options_of(kind, tau, chunk)
    hidden, head = inputs(seed, torch.float32)
    batch = random_batch(seed, k=k)
    loss, metrics = chunked(hidden, head, batch)
    gradients = torch.autograd.grad(loss, (hidden, head))
    wide_hidden, wide_head = (each.detach().double().requires_grad_() for each in (hidden, head))
    expected, expected_metrics = combined_loss(
        wide_hidden @ wide_head.T,
        batch,
        tau=tau,
        ce_weight=options.ce_weight,
        format_weight=options.format_weight,
        divergence=divergence(kind).value,
    )
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(metrics[name].double(), value.double(), rtol=1e-5, atol=1e-5)
    wide_gradients = torch.autograd.grad(expected, (wide_hidden, wide_head))
    for mine, theirs in zip(gradients, wide_gradients, strict=True):
        torch.testing.assert_close(mine.double(), theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [1e4, 1e-4])
@pytest.mark.parametrize("k", [2, VOCABULARY])
def test_saturated_logits_stay_finite(kind: Any, size: float, k: int) -> None:
    chunked, _ = options_of(kind, 1.7, 3)
    hidden, head = inputs(3, torch.float32, size)
    loss, _ = chunked(hidden, head, random_batch(4, k=k))
    assert torch.isfinite(loss)
    assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (hidden, head)))


@pytest.mark.parametrize("kind", KINDS)
def test_autocast_to_bf16_stays_close(kind: Any) -> None:
    chunked, _ = options_of(kind, 1.5, 4)
    hidden, head = inputs(7, torch.float32)
    batch = random_batch(8)
    expected = torch.autograd.grad(chunked(hidden, head, batch)[0], (hidden, head))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss, _ = chunked(hidden, head, batch)
    for mine, theirs in zip(torch.autograd.grad(loss, (hidden, head)), expected, strict=True):
        assert (mine - theirs).norm() < 0.03 * theirs.norm()


def test_another_divergence_needs_no_kernel() -> None:
    """A plugin's own: here the squared distance of the probabilities."""

    def value(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
        return (student_RB.exp() - teacher_RB.exp()).square().sum(-1)

    def gradient(teacher_RB: Tensor, student_RB: Tensor) -> Tensor:
        q_RB = student_RB.exp()
        slope_RB = 2 * (q_RB - teacher_RB.exp())
        return q_RB * (slope_RB - (q_RB * slope_RB).sum(-1, keepdim=True))

    from bitnet_core.losses.chunked import chunked_loss

    own = Divergence(value, gradient)
    options = ReverseKLConfig(tau=1.5, ce_weight=0.3, format_weight=0.5, chunk_tokens=4)
    hidden, head = inputs(9, torch.float64)
    batch = random_batch(9)
    loss, _ = chunked_loss(hidden, head, batch, topk_other_term(1.5, own), options)
    weights = {name: getattr(options, name) for name in ("tau", "ce_weight", "format_weight")}
    expected, _ = combined_loss(hidden @ head.T, batch, divergence=value, **weights)
    gradients = torch.autograd.grad(loss, (hidden, head))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, (hidden, head)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("beta", [0.0, 1.0, -0.5, math.nan])
def test_beta_lies_between(beta: float) -> None:
    with pytest.raises(ValueError, match="between 0 and 1"):
        JensenShannonConfig(beta=beta)
    assert attrs.evolve(JensenShannonConfig(), beta=0.3).beta == 0.3
