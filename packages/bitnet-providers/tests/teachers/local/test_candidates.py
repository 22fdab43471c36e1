"""Draws out of a distribution: their expectations exactly, by going through every outcome."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from bitnet_providers.contract import SampledTarget, TemperedTarget
from bitnet_providers.teachers.local.candidates import candidates, draws_generator, stratified_draws, uniform_numbers

logits = st.lists(st.floats(-8, 8, width=32), min_size=2, max_size=9)
temperatures = st.sampled_from([0.5, 0.8, 1.0, 1.5])
NOTHING_DRAWN = torch.zeros(1, 0, dtype=torch.float64)


def row(values: list[float]) -> Tensor:
    """[1, V]"""
    return torch.tensor([values], dtype=torch.float64).log_softmax(-1)


def outcomes(logprobs_1V: Tensor, temperature: float, draws: int) -> tuple[Tensor, Tensor]:
    """Every way the draws can fall: (uniform numbers that give it [O, R], its probability [O]).

    Draw r is uniform on [r, r+1)/R of the mass; the borders between tokens cut that into pieces with one outcome each.
    """
    cumulative = (temperature * logprobs_1V[0]).softmax(-1).cumsum(-1).tolist()
    pieces = []
    for r in range(draws):
        inner = [border * draws - r for border in cumulative[:-1]]
        borders = [0.0, *sorted(border for border in inner if 1e-9 < border < 1 - 1e-9), 1.0]
        pieces.append([((a + b) / 2, b - a) for a, b in itertools.pairwise(borders)])
    all_ways = list(itertools.product(*pieces))
    uniforms = torch.tensor([[u for u, _ in way] for way in all_ways], dtype=torch.float64)
    return uniforms, torch.tensor([math.prod(p for _, p in way) for way in all_ways], dtype=torch.float64)


def weights(ids_NR: Tensor, log_weights_NR: Tensor, vocabulary: int) -> Tensor:
    """[N, V]"""
    return torch.zeros(len(ids_NR), vocabulary, dtype=torch.float64).scatter_add_(-1, ids_NR, log_weights_NR.exp())


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-4, 4, width=32), min_size=2, max_size=4), temperature=temperatures)
@pytest.mark.parametrize("draws", [1, 2, 5])
def test_weights_are_unbiased(draws: int, values: list[float], temperature: float) -> None:
    logprobs = row(values)
    uniforms, probability = outcomes(logprobs, temperature, draws)
    found = stratified_draws(logprobs.expand(len(uniforms), -1), temperature, uniforms)
    mean_V = (probability[:, None] * weights(*found, len(values))).sum(0)
    torch.testing.assert_close(mean_V, logprobs[0].exp(), rtol=1e-6, atol=1e-6)


def test_the_self_normalised_estimate_would_be_biased() -> None:
    logprobs = row([1.5, 0.0, -1.0])
    uniforms, probability = outcomes(logprobs, 0.5, 2)
    found = weights(*stratified_draws(logprobs.expand(len(uniforms), -1), 0.5, uniforms), 3)
    mean_V = (probability[:, None] * found / found.sum(-1, keepdim=True)).sum(0)
    assert (mean_V - logprobs[0].exp()).abs().max() > 0.01


@settings(max_examples=40, deadline=None)
@given(values=st.lists(st.floats(-3, 3, width=32), min_size=2, max_size=4), seed=st.integers(0, 1000))
def test_never_more_variance_than_independent_draws(values: list[float], seed: int) -> None:
    """Of any sum Σ f(v)·ŵ(v), such as a coordinate of the gradient; independent draws have Var(f)/R."""
    logprobs, draws = row(values), 3
    f = torch.randn(len(values), dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    uniforms, probability = outcomes(logprobs, 1.0, draws)
    sums = weights(*stratified_draws(logprobs.expand(len(uniforms), -1), 1.0, uniforms), len(values)) @ f
    variance = (probability * sums**2).sum() - (probability * sums).sum() ** 2
    p = logprobs[0].exp()
    independent = ((p * f**2).sum() - (p * f).sum() ** 2) / draws
    assert variance <= independent + 1e-9


@settings(max_examples=100, deadline=None)
@given(values=logits, temperature=temperatures, draws=st.integers(1, 30), seed=st.integers(0, 1000))
def test_what_is_kept(values: list[float], temperature: float, draws: int, seed: int) -> None:
    """Shares sum to 1, fall, and are of distinct tokens; at t = 1 the weights are n/R, within 2 of p·R."""
    logprobs = row(values).float()
    target = SampledTarget(draws, temperature, seed)
    uniforms = torch.from_numpy(uniform_numbers(target, 1, draws_generator(seed)))
    found = candidates(logprobs, 0, target, uniforms)
    used = torch.isfinite(found.logprobs_NK[0])
    assert found.ids_NK.shape == (1, draws)
    assert torch.all(used.int().diff() <= 0)
    assert found.logprobs_NK[0, used].exp().sum() == pytest.approx(1.0, abs=1e-5)
    assert torch.all(found.logprobs_NK[0, used].diff() <= 0)
    ids = found.ids_NK[0, used].tolist()
    assert len(set(ids)) == len(ids)
    assert torch.all(found.ids_NK[0, ~used] == 0)
    p = logprobs[0].double().exp()
    assert float(found.entropy_N) == pytest.approx(float(-(p * p.log()).sum()), abs=1e-4)
    if temperature == 1.0:
        assert float(found.log_z_N) == pytest.approx(0.0, abs=1e-5)
        counts = found.logprobs_NK[0, used].double().exp() * draws
        torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)
        assert torch.all((counts - draws * p[ids]).abs() < 2 + 1e-3)


def test_impossible_tokens_are_never_drawn() -> None:
    logprobs = torch.tensor([[-math.inf, math.log(0.5), -math.inf, math.log(0.5), -math.inf]])
    ids, log_weights = stratified_draws(logprobs, 0.7, torch.tensor([[0.0, 1.0 - 2**-53]], dtype=torch.float64))
    assert sorted(ids[0].tolist()) == [1, 3]
    torch.testing.assert_close(log_weights.exp(), torch.full((1, 2), 0.5))
    found = candidates(logprobs, 0, SampledTarget(2), torch.zeros(1, 2, dtype=torch.float64))
    assert float(found.entropy_N) == pytest.approx(math.log(2))


@settings(max_examples=50, deadline=None)
@given(values=logits, tau=st.sampled_from([0.5, 1.0, 2.0]))
def test_log_z_is_that_of_the_whole_vocabulary(values: list[float], tau: float) -> None:
    found = candidates(row(values), 2, TemperedTarget(tau), NOTHING_DRAWN)
    expected = math.log(sum(p ** (1 / tau) for p in row(values)[0].exp().tolist()))
    assert float(found.log_z_N) == pytest.approx(expected, abs=1e-5)
    plain = candidates(row(values), 2, None, NOTHING_DRAWN)
    assert torch.equal(found.ids_NK, plain.ids_NK)
    assert torch.isnan(plain.log_z_N).all()


def test_a_rows_numbers_do_not_depend_on_how_it_is_cut() -> None:
    target = SampledTarget(4, seed=7)
    at_once = uniform_numbers(target, 5, draws_generator(7))
    generator = draws_generator(7)
    np.testing.assert_array_equal(at_once, np.concatenate([uniform_numbers(target, n, generator) for n in (2, 1, 2)]))


def test_top_k_descends() -> None:
    logprobs = torch.randn(5, 40).log_softmax(-1)
    found = candidates(logprobs, 7, None, torch.zeros(5, 0))
    assert torch.equal(found.logprobs_NK, logprobs.gather(-1, found.ids_NK))
    assert torch.all(found.logprobs_NK.diff(dim=-1) <= 0)
