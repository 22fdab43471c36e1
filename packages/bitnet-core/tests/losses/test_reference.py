"""The plain loss against a slow independent reference, and by its properties."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.losses.masks_and_rows import next_token_rows, token_weight
from bitnet_core.losses.reference import (
    combined_loss,
    cross_entropy_loss,
    format_loss,
    kd_by_position,
    kd_cross_entropy_loss,
)

torch.set_num_threads(1)

TAUS = st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0])
SEEDS = st.integers(0, 2**31)


def reference_kd(z: np.ndarray, ids: list[int], logprobs: list[float], other: float, tau: float) -> float:
    """One position with plain loops and Python floats: coarsen, temper both, τ²·KL."""
    top = max(z)
    log_z = top + math.log(sum(math.exp(v - top) for v in z))
    used = [(i, lp) for i, lp in zip(ids, logprobs, strict=True) if lp > -math.inf]
    rest = [z[v] for v in range(len(z)) if v not in {i for i, _ in used}]
    top_rest = max(rest)
    student = [z[i] - log_z for i, _ in used] + [top_rest + math.log(sum(math.exp(v - top_rest) for v in rest)) - log_z]
    teacher = [lp for _, lp in used] + [other]

    def tempered(values: list[float]) -> list[float]:
        top_value = max(values)
        masses = [math.exp((v - top_value) / tau) for v in values]
        return [m / sum(masses) for m in masses]

    pairs = zip(tempered(teacher), tempered(student), strict=True)
    return tau**2 * sum(p * (math.log(p) - math.log(q)) for p, q in pairs if p > 0)


def teacher_from_logits(z_NV: Tensor, k: int) -> tuple[Tensor, Tensor, Tensor]:
    """Exact K+other data of a full distribution, by log-sum-exp over the complement."""
    logprobs = z_NV.log_softmax(-1)
    top = logprobs.topk(k, dim=-1)
    rest = logprobs.scatter(-1, top.indices, -torch.inf)
    return top.indices, top.values, rest.logsumexp(-1)


def random_batch(seed: int, b: int = 2, t: int = 7, k: int = 3, v: int = 11) -> dict[str, Tensor]:
    """A batch with prompt, padding, structural tokens, KD and CE-only positions, short-K rows."""
    generator = torch.Generator().manual_seed(seed)

    def coin(p: float) -> Tensor:
        return torch.rand(b, t, generator=generator) < p

    ids, logprobs, other = teacher_from_logits(2 * torch.randn(b * t, v, generator=generator), k)
    short = torch.rand(b * t, generator=generator) < 0.3
    mass = logprobs[:, -1].exp() * short + other.exp()
    other = torch.where(short, mass.log(), other)
    logprobs[short, -1], ids[short, -1] = -torch.inf, 0
    mask = torch.arange(t) < torch.randint(4, t + 1, (b, 1), generator=generator)
    has_kd = coin(0.7) & mask
    has_kd[:, 0] = False
    none = ~has_kd.flatten()
    logprobs[none], ids[none], other[none] = -torch.inf, 0, 0.0
    tokens = torch.randint(0, v, (b, t), generator=generator)
    return {
        "input_ids": tokens.where(mask, 0),
        "attention_mask": mask,
        "teacher_sample_id": tokens,
        "topk_ids": ids.view(b, t, k),
        "topk_logprobs": logprobs.view(b, t, k),
        "other_logprob": other.view(b, t),
        "is_struct_token": coin(0.4),
        "has_kd": has_kd,
        "is_prompt": torch.arange(t).expand(b, t) < 2,
        "sample_logprob": torch.full((b, t), -1.0),
    }


def join(batches: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    return {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, tau=TAUS)
def test_equals_the_slow_reference(seed: int, tau: float) -> None:
    batch = random_batch(seed)
    logits = 3 * torch.randn(2, 7, 11, dtype=torch.float64)
    weight, ce_weight, format_weight = 0.0, 0.3, 0.7
    total = 0.0
    for b in range(2):
        for t in range(1, 7):
            row = logits[b, t - 1].numpy()
            live = bool(batch["attention_mask"][b, t])
            answer = live and not batch["is_prompt"][b, t]
            if live and batch["has_kd"][b, t]:
                total += reference_kd(
                    row,
                    batch["topk_ids"][b, t].tolist(),
                    batch["topk_logprobs"][b, t].tolist(),
                    float(batch["other_logprob"][b, t]),
                    tau,
                )
            if answer:
                nll = math.log(np.exp(row).sum()) - row[batch["teacher_sample_id"][b, t]]
                total += ce_weight * nll + format_weight * nll * bool(batch["is_struct_token"][b, t])
            weight += float(answer or (live and bool(batch["has_kd"][b, t])))
    loss, metrics = combined_loss(logits, batch, tau=tau, ce_weight=ce_weight, format_weight=format_weight)
    assert float(token_weight(batch)) == weight
    assert float(loss) == pytest.approx(total / weight, rel=1e-6, abs=1e-7)
    parts = metrics["kd"] + ce_weight * metrics["ce"] + format_weight * metrics["format"]
    assert float(parts) == pytest.approx(float(metrics["loss"]))


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 12), spread=st.sampled_from([0.01, 1.0, 6.0]))
def test_zero_when_student_equals_teacher(seed: int, tau: float, k: int, spread: float) -> None:
    z = spread * torch.randn(5, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    z.requires_grad_()
    loss = kd_by_position(z, *teacher_from_logits(z.detach(), k), tau)
    (gradient,) = torch.autograd.grad(loss.sum(), z)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-12


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, tau=TAUS)
def test_positive_when_they_differ(seed: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(4, 12, dtype=torch.float64, generator=generator)
    other = torch.randn(4, 12, dtype=torch.float64, generator=generator)
    assert (kd_by_position(z, *teacher_from_logits(other, 4), tau) > 0).all()


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, tau=TAUS)
def test_gradient_is_the_formula_of_the_design(seed: int, tau: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    z = torch.randn(1, 9, dtype=torch.float64, generator=generator, requires_grad=True)
    ids, logprobs, other = teacher_from_logits(torch.randn(1, 9, dtype=torch.float64, generator=generator), 3)
    (gradient,) = torch.autograd.grad(kd_by_position(z, ids, logprobs, other, tau).sum(), z)
    q = z.detach().softmax(-1)[0]
    inside = ids[0].tolist()
    outside = [v for v in range(9) if v not in inside]
    coarse_q = torch.cat([q[inside], q[outside].sum()[None]])
    coarse_p = torch.cat([logprobs[0], other]).exp()
    q_hat, p_hat = coarse_q ** (1 / tau), coarse_p ** (1 / tau)
    bucket = tau * (q_hat / q_hat.sum() - p_hat / p_hat.sum())
    expected = torch.zeros(9, dtype=torch.float64)
    expected[inside] = bucket[:-1]
    expected[outside] = bucket[-1] * q[outside] / q[outside].sum()
    torch.testing.assert_close(gradient[0], expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("tau", [1.0, 2.0])
def test_gradcheck(tau: float) -> None:
    batch = random_batch(5)
    logits = torch.randn(2, 7, 11, dtype=torch.float64, requires_grad=True)

    def loss(z: Tensor) -> Tensor:
        return combined_loss(z, batch, tau=tau, ce_weight=0.5, format_weight=0.5)[0]

    assert torch.autograd.gradcheck(loss, (logits,))


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 11), size=st.sampled_from([0.0, 1.0, 1e4]))
def test_value_and_gradient_stay_finite(seed: int, tau: float, k: int, size: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    batch = random_batch(seed, k=k)
    # Rows whose rest has no mass, and rows that are all rest.
    no_rest = torch.rand(2, 7, generator=generator) < 0.3
    batch["other_logprob"] = torch.where(no_rest & batch["has_kd"], -torch.inf, batch["other_logprob"])
    all_rest = torch.rand(2, 7, generator=generator) < 0.3
    batch["topk_logprobs"] = torch.where(all_rest[..., None], -torch.inf, batch["topk_logprobs"])
    logits = (size * torch.randn(2, 7, 11, generator=generator).sign()).requires_grad_()
    loss, metrics = combined_loss(logits, batch, tau=tau, ce_weight=0.5, format_weight=0.5)
    loss.backward()
    assert all(torch.isfinite(value) for value in metrics.values())
    assert logits.grad is not None
    assert torch.isfinite(logits.grad).all()


def test_a_tiny_rest_keeps_its_digits() -> None:
    # 1 − Σ would be 0 here in float32, and the loss infinite.
    z = torch.tensor([[40.0, 0.0, 0.0]])
    loss = kd_by_position(z, torch.tensor([[0]]), torch.tensor([[math.log(0.5)]]), torch.tensor([math.log(0.5)]), 1.0)
    assert float(loss) == pytest.approx(0.5 * (math.log(0.5) + 40 - math.log(2)) + 0.5 * math.log(0.5), rel=1e-5)


@pytest.mark.parametrize("order", [[0, 1, 2], [2, 1, 0], [1, 0, 2]])
def test_unused_slots_share_an_id_with_a_candidate(order: list[int]) -> None:
    z = torch.randn(1, 6, dtype=torch.float64)
    ids, logprobs = torch.tensor([[0, 0, 3]])[:, order], torch.tensor([[-0.7, -torch.inf, -1.9]])[:, order]
    other = torch.tensor([math.log1p(-math.exp(-0.7) - math.exp(-1.9))])
    loss = kd_by_position(z, ids, logprobs, other, 1.5)
    without = kd_by_position(z, torch.tensor([[0, 3]]), torch.tensor([[-0.7, -1.9]]), other, 1.5)
    assert float(loss) == pytest.approx(float(without), rel=1e-12)
    # And where nobody is a candidate, id 0 belongs to the rest.
    nobody = kd_by_position(z, torch.zeros(1, 3, dtype=torch.long), torch.full((1, 3), -torch.inf), torch.zeros(1), 1.5)
    assert float(nobody) == pytest.approx(0.0, abs=1e-12)


def test_row_t_meets_the_logits_before_it() -> None:
    batch = random_batch(3)
    logits = torch.randn(2, 7, 11, requires_grad=True)
    only = torch.zeros(2, 7)
    only[1, 3] = 1.0
    batch["topk_logprobs"][1, 3] = torch.tensor([-0.5, -2.0, -3.0])
    kd, _ = kd_cross_entropy_loss(logits, batch["topk_ids"], batch["topk_logprobs"], batch["other_logprob"], only)
    (gradient,) = torch.autograd.grad(kd, logits)
    assert gradient.abs().sum(-1).nonzero().tolist() == [[1, 2]]
    ce, metrics = cross_entropy_loss(logits, batch["teacher_sample_id"], only)
    expected = -logits[1, 2].detach().log_softmax(-1)[batch["teacher_sample_id"][1, 3]]
    assert float(ce.detach()) == pytest.approx(float(expected), rel=1e-6)
    assert float(metrics["ce_tokens"]) == 1


def test_the_first_row_counts_for_nothing() -> None:
    logits, first = torch.randn(1, 4, 5), torch.tensor([[True, False, False, False]])
    loss, metrics = format_loss(logits, torch.zeros(1, 4, dtype=torch.long), first)
    assert float(loss) == 0.0
    assert float(metrics["format_tokens"]) == 0.0


def test_normaliser_makes_accumulation_exact() -> None:
    batches = [random_batch(seed) for seed in (1, 2, 3)]
    logits = torch.randn(6, 7, 11, dtype=torch.float64, requires_grad=True)
    options = {"tau": 1.3, "ce_weight": 0.2, "format_weight": 0.4}
    whole, whole_metrics = combined_loss(logits, join(batches), **options)
    (expected,) = torch.autograd.grad(whole, logits)
    normaliser = sum(token_weight(batch) for batch in batches)
    parts = [
        combined_loss(logits[2 * i : 2 * i + 2], batch, normaliser=normaliser, **options)
        for i, batch in enumerate(batches)
    ]
    (gradient,) = torch.autograd.grad(sum(loss for loss, _ in parts), logits)
    torch.testing.assert_close(gradient, expected, rtol=1e-10, atol=1e-14)
    for name, value in whole_metrics.items():
        assert float(sum(metrics[name] for _, metrics in parts)) == pytest.approx(float(value), rel=1e-9)


def test_gathered_rows_are_the_weighted_ones() -> None:
    batch = random_batch(4)
    hidden = torch.arange(14.0).view(2, 7, 1)
    rows = next_token_rows(hidden, batch)
    assert len(rows.target) == int(token_weight(batch))
    position = rows.hidden_ND[:, 0].long() - 7 * rows.document + 1
    assert torch.equal(rows.target, batch["teacher_sample_id"][rows.document, position])
    assert torch.equal(rows.has_kd, batch["has_kd"][rows.document, position])
    assert torch.isneginf(rows.topk_logprobs[~rows.has_kd]).all()
    assert torch.equal(torch.cat([part.target for part in rows.split(3)]), rows.target)
