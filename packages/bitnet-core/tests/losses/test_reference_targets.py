"""The losses of sampled and tempered targets: unbiased, zero at identity, and the same over chunks."""

import itertools
import math
from typing import Any, cast

import attrs
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_core.config.loss import SampledConfig, TemperedConfig
from bitnet_core.hookspecs import LossPlugin
from bitnet_core.losses.chunked import load_loss
from bitnet_core.losses.reference import (
    kd_by_position,
    sampled_by_position,
    sampled_loss,
    tempered_by_position,
    tempered_loss,
)
from bitnet_core.traces.target_kinds import sampled_misfit, tempered_misfit, topk_misfit

torch.set_num_threads(1)

WIDTH, VOCABULARY = 6, 13
NO_WEIGHTS = ("chunk_tokens", "intermediate")
TAUS = st.sampled_from([0.5, 1.0, 1.3, 2.0, 5.0])
SEEDS = st.integers(0, 2**31)


def log_distribution(seed: int, size: int, spread: float = 2.0) -> Tensor:
    """float64 [size], normalised."""
    generator = torch.Generator().manual_seed(seed)
    return (spread * torch.randn(size, dtype=torch.float64, generator=generator)).log_softmax(-1)


def weighed(drawn: tuple[int, ...], p: Tensor, temperature: float) -> tuple[Tensor, Tensor, Tensor]:
    """(ids, log shares, log of the total) of draws from q = p^t / Σ p^t with weights n/R · p/q."""
    q = p**temperature / (p**temperature).sum()
    ids = torch.tensor(sorted(set(drawn)))
    weights = torch.tensor([drawn.count(int(v)) / len(drawn) for v in ids], dtype=torch.float64) * p[ids] / q[ids]
    return ids, (weights / weights.sum()).log(), weights.sum().log()


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
def test_the_expected_gradient_is_that_of_the_whole_distribution(temperature: float, seed: int) -> None:
    """Exactly: every outcome of 3 draws from 4 tokens, each with its probability."""
    size, draws = 4, 3
    log_p = log_distribution(seed, size)
    p = log_p.exp()
    q = p**temperature / (p**temperature).sum()
    entropy = -(p * log_p).sum()
    logits = torch.randn(1, size, dtype=torch.float64, generator=torch.Generator().manual_seed(seed + 1))
    logits.requires_grad_()
    mean_loss = torch.zeros((), dtype=torch.float64)
    mean_gradient = torch.zeros(1, size, dtype=torch.float64)
    for drawn in itertools.product(range(size), repeat=draws):
        ids, shares, log_z = weighed(drawn, p, temperature)
        loss = sampled_by_position(logits, ids[None], shares[None], log_z[None], entropy[None]).sum()
        probability = q[list(drawn)].prod()
        mean_loss += probability * loss.detach()
        mean_gradient += probability * torch.autograd.grad(loss, logits)[0]
    whole = (p * (log_p - logits.log_softmax(-1)[0])).sum()
    (expected,) = torch.autograd.grad(whole, logits)
    torch.testing.assert_close(mean_gradient, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mean_loss, whole.detach(), rtol=1e-10, atol=1e-12)


def test_without_log_z_the_gradient_is_biased() -> None:
    """Shares alone are the self-normalised estimate; so the total weight is stored."""
    log_p = log_distribution(3, 4)
    p, temperature = log_p.exp(), 0.5
    q = p**temperature / (p**temperature).sum()
    mean = torch.zeros(4, dtype=torch.float64)
    for drawn in itertools.product(range(4), repeat=2):
        ids, shares, _ = weighed(drawn, p, temperature)
        mean[ids] += q[list(drawn)].prod() * shares.exp()
    assert (mean - p).abs().max() > 0.01


@settings(max_examples=60, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 12), spread=st.sampled_from([0.01, 1.0, 6.0]))
def test_tempered_is_zero_when_student_equals_teacher(seed: int, tau: float, k: int, spread: float) -> None:
    log_p = torch.stack([log_distribution(seed + row, 12, spread) for row in range(3)])
    top = log_p.topk(k, dim=-1)
    log_z = (log_p / tau).logsumexp(-1)
    logits = (log_p + 3.0).requires_grad_()
    loss = tempered_by_position(logits, top.indices, top.values, log_z, tau)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert loss.abs().max() < 1e-12
    assert gradient.abs().max() < 1e-10


@settings(max_examples=40, deadline=None)
@given(seed=SEEDS, tau=TAUS, k=st.integers(1, 8))
def test_tempered_is_the_kl_of_the_coarsened_tempered_distributions(seed: int, tau: float, k: int) -> None:
    """With plain loops and Python floats."""
    log_p, log_q = (log_distribution(each, 9) for each in (seed, seed + 1))
    top = log_p.topk(k)

    def buckets(logprobs: list[float]) -> list[float]:
        masses = [math.exp(value / tau) for value in logprobs]
        shares = [mass / sum(masses) for mass in masses]
        chosen = top.indices.tolist()
        return [shares[v] for v in chosen] + [sum(shares[v] for v in range(9) if v not in chosen)]

    pairs = zip(buckets(log_p.tolist()), buckets(log_q.tolist()), strict=True)
    expected = tau**2 * sum(a * math.log(a / b) for a, b in pairs)
    log_z = (log_p / tau).logsumexp(-1)
    loss = tempered_by_position(log_q[None], top.indices[None], top.values[None], log_z[None], tau)
    assert float(loss) == pytest.approx(expected, rel=1e-8, abs=1e-12)


def test_at_tau_1_tempered_is_topk_other() -> None:
    log_p, logits = log_distribution(1, 9)[None], torch.randn(1, 9, dtype=torch.float64)
    top = log_p.topk(4, dim=-1)
    other = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    tempered = tempered_by_position(logits, top.indices, top.values, torch.zeros(1, dtype=torch.float64), 1.0)
    torch.testing.assert_close(tempered, kd_by_position(logits, top.indices, top.values, other, 1.0))


def test_coarsening_first_is_another_loss() -> None:
    """Why log Z is worth storing: the two differ, and only the tempered one sees how the rest is spread."""
    log_p, logits = log_distribution(1, 9)[None], log_distribution(2, 9)[None]
    top = log_p.topk(3, dim=-1)
    other = log_p.scatter(-1, top.indices, -torch.inf).logsumexp(-1)
    coarse = kd_by_position(logits, top.indices, top.values, other, 2.0)
    tempered = tempered_by_position(logits, top.indices, top.values, (log_p / 2).logsumexp(-1), 2.0)
    assert (coarse - tempered).abs().max() > 0.01


def random_batch(
    seed: int, kind: str, tau: float, k: int = 4, dtype: torch.dtype = torch.float32, b: int = 3, t: int = 6
) -> dict[str, Tensor]:
    """Prompt, padding, structural tokens, KD and CE-only positions, positions with fewer than K candidates."""
    generator = torch.Generator().manual_seed(seed)

    def coin(p: float) -> Tensor:
        return torch.rand(b, t, generator=generator) < p

    logprobs = (2 * torch.randn(b, t, VOCABULARY, generator=generator)).to(dtype).log_softmax(-1)
    values, ids = logprobs.topk(k, dim=-1)
    short = coin(0.3) if k > 2 else torch.zeros(b, t, dtype=torch.bool)
    values[..., -2:] = torch.where(short[..., None], -torch.inf, values[..., -2:])
    mask = torch.arange(t) < torch.randint(3, t + 1, (b, 1), generator=generator)
    has_kd = coin(0.7) & mask
    batch = {
        "attention_mask": mask,
        "teacher_sample_id": torch.randint(0, VOCABULARY, (b, t), generator=generator),
        "is_struct_token": coin(0.4),
        "has_kd": has_kd,
        "is_prompt": torch.arange(t).expand(b, t) < 2,
        "other_logprob": (1 - values.exp().sum(-1)).clamp(min=1e-8).log(),
        "log_z": (logprobs / tau).logsumexp(-1),
    }
    if kind == "sampled":
        values = values.log_softmax(-1)
        batch |= {
            "other_logprob": torch.full((b, t), -torch.inf, dtype=dtype),
            "log_z": 0.3 * torch.randn(b, t, generator=generator).to(dtype),
            "entropy": -(logprobs.exp() * logprobs).sum(-1),
        }
    batch |= {"topk_ids": torch.where(values.isfinite(), ids, 0), "topk_logprobs": values}
    none = ~has_kd
    for name, value in {"topk_logprobs": -torch.inf, "other_logprob": 0.0, "log_z": 0.0, "entropy": 0.0}.items():
        if name in batch:
            batch[name][none] = value
    return batch


def ways(kind: str, tau: float, chunk: int = 3, ce_weight: float = 0.3) -> tuple[Any, Any]:
    """(chunked, plain) as functions of hidden states, head and batch."""
    if kind == "sampled":
        options: Any = SampledConfig(ce_weight=ce_weight, format_weight=0.5, chunk_tokens=chunk)
        chunked, plain = load_loss(options), cast(Any, sampled_loss)
    else:
        options = TemperedConfig(tau=tau, ce_weight=ce_weight, format_weight=0.5, chunk_tokens=chunk)
        chunked, plain = load_loss(options), tempered_loss
    settings_ = {name: value for name, value in attrs.asdict(options).items() if name not in NO_WEIGHTS}
    return chunked, lambda hidden, head, batch: plain(hidden @ head.T, batch, **settings_)


def inputs(seed: int, dtype: torch.dtype = torch.float32, size: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    hidden = size * torch.randn(3, 6, WIDTH, generator=generator, dtype=dtype)
    return hidden.requires_grad_(), torch.randn(VOCABULARY, WIDTH, generator=generator, dtype=dtype).requires_grad_()


@settings(max_examples=40, deadline=None)
@given(
    seed=SEEDS,
    tau=st.sampled_from([0.7, 1.0, 2.5]),
    chunk=st.sampled_from([1, 4, 100]),
    k=st.integers(1, VOCABULARY),
    ce_weight=st.sampled_from([0.0, 0.3]),
)
@pytest.mark.parametrize("kind", ["sampled", "tempered"])
def test_chunks_give_the_plain_loss(kind: str, seed: int, tau: float, chunk: int, k: int, ce_weight: float) -> None:
    chunked, plain = ways(kind, tau, chunk, ce_weight)
    hidden, head = inputs(seed)
    batch = random_batch(seed, kind, tau, k=k)
    expected, expected_metrics = plain(hidden, head, batch)
    loss, metrics = chunked(hidden, head, batch)
    assert metrics.keys() == expected_metrics.keys()
    for name, value in expected_metrics.items():
        torch.testing.assert_close(metrics[name], value, rtol=1e-5, atol=1e-5)
    gradients = torch.autograd.grad(loss, (hidden, head))
    for mine, theirs in zip(gradients, torch.autograd.grad(expected, (hidden, head)), strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["sampled", "tempered"])
@pytest.mark.parametrize("tau", [0.7, 2.0])
def test_float64_gradients(kind: str, tau: float) -> None:
    chunked, plain = ways(kind, tau)
    hidden, head = inputs(1, torch.float64)
    batch = random_batch(2, kind, tau, dtype=torch.float64)
    expected = torch.autograd.grad(plain(hidden, head, batch)[0], (hidden, head))
    gradients = torch.autograd.grad(chunked(hidden, head, batch)[0], (hidden, head))
    for mine, theirs in zip(gradients, expected, strict=True):
        torch.testing.assert_close(mine, theirs, rtol=1e-10, atol=1e-13)
    assert torch.autograd.gradcheck(lambda h: plain(h, head.detach(), batch)[0], (hidden,))


@pytest.mark.parametrize("kind", ["sampled", "tempered"])
@pytest.mark.parametrize("size", [1e4, 1e-4])
@pytest.mark.parametrize("k", [2, VOCABULARY])
def test_saturated_logits_stay_finite(kind: str, size: float, k: int) -> None:
    hidden, head = inputs(3, size=size)
    for way in ways(kind, 1.7):
        loss, _ = way(hidden, head, random_batch(4, kind, 1.7, k=k))
        assert torch.isfinite(loss)
        assert all(torch.isfinite(gradient).all() for gradient in torch.autograd.grad(loss, (hidden, head)))


@pytest.mark.parametrize("kind", ["sampled", "tempered"])
def test_no_target_at_all_costs_nothing(kind: str) -> None:
    hidden, head = inputs(9)
    batch = random_batch(9, kind, 2.0)
    batch |= {
        "has_kd": torch.zeros(3, 6, dtype=torch.bool),
        "is_prompt": torch.ones(3, 6, dtype=torch.bool),
    }
    for way in ways(kind, 2.0):
        loss, metrics = way(hidden, head, batch)
        assert float(loss.detach()) == 0.0
        assert float(metrics["kd_tokens"]) == 0.0
        assert all((gradient == 0).all() for gradient in torch.autograd.grad(loss, (hidden, head)))


TOPK, TEMPERED, SAMPLED = (
    {"kind": "topk"},
    {"kind": "tempered", "tau": 2.0},
    {"kind": "sampled", "draws": 50, "draw_temperature": 1.0},
)


@pytest.mark.parametrize(
    ("misfit", "options", "target", "fix"),
    [
        (topk_misfit, None, TOPK, None),
        (topk_misfit, None, TEMPERED, None),
        (topk_misfit, None, SAMPLED, 'set loss.kind = "sampled"'),
        (tempered_misfit, TemperedConfig(), TOPK, 'set loss.kind = "topk_other"'),
        (tempered_misfit, TemperedConfig(), TEMPERED, None),
        (tempered_misfit, TemperedConfig(tau=1.5), TEMPERED, "set loss.tau = 2.0"),
        (tempered_misfit, TemperedConfig(), SAMPLED, 'set loss.kind = "sampled"'),
        (sampled_misfit, SampledConfig(), TOPK, 'set loss.kind = "topk_other"'),
        (sampled_misfit, SampledConfig(), TEMPERED, 'set loss.kind = "tempered"'),
        (sampled_misfit, SampledConfig(), SAMPLED, None),
    ],
)
def test_which_loss_reads_which_target(misfit: Any, options: Any, target: dict[str, Any], fix: str | None) -> None:
    found = misfit(options, target)
    assert found is None if fix is None else fix in found.fix


def test_a_loss_that_says_nothing_reads_candidates() -> None:
    plugin = LossPlugin(name="theirs", options=SampledConfig, load=lambda options: print)
    assert plugin.misfit(None, TOPK) is None
    assert "draws" not in str(plugin.misfit(None, SAMPLED) or "draws")
