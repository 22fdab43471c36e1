"""Unigram and bigram baselines against brute force on small vocabularies."""

import attrs
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.errors import CoreError
from bitnet_core.evaluation.ngram_baselines import (
    PositionArrays,
    bigram_bucket_kl,
    choose_alpha,
    fit_bigram,
    fit_unigram,
    select,
    spread_once,
    teacher_masses,
    unigram_bucket_kl,
)
from bitnet_core.losses.reference import kd_by_position

torch.set_num_threads(1)

VOCABULARY = 7
SEEDS = st.integers(0, 2**31)


def positions_from(teacher_NV: np.ndarray, prev_N: np.ndarray, k: int, documents: int = 5) -> PositionArrays:
    ids = np.argsort(-teacher_NV, axis=1)[:, :k]
    top = np.take_along_axis(teacher_NV, ids, axis=1)
    with np.errstate(divide="ignore"):
        other = np.log(np.maximum(1 - top.sum(1), 0.0))
        return PositionArrays(prev_N, ids, np.log(top), other, np.arange(len(prev_N)) % documents)


def random_positions(seed: int, n: int = 60, k: int = 3) -> PositionArrays:
    rng = np.random.default_rng(seed)
    table = rng.dirichlet(np.full(VOCABULARY, 0.5), size=VOCABULARY)
    prev = rng.integers(0, VOCABULARY, n)
    teacher = 0.7 * table[prev] + 0.3 * rng.dirichlet(np.full(VOCABULARY, 0.7), size=n)
    positions = positions_from(teacher, prev, k)
    # Short-K rows: the last slot is unused, carries id 0, and its mass lies in the rest.
    short = rng.random(n) < 0.3
    ids, logprobs, other = positions.topk_ids.copy(), positions.topk_logprobs.copy(), positions.other_logprob.copy()
    other[short] = np.log(np.exp(other[short]) + np.exp(logprobs[short, -1]))
    ids[short, -1], logprobs[short, -1] = 0, -np.inf
    return attrs.evolve(positions, topk_ids=ids, topk_logprobs=logprobs, other_logprob=other)


def brute_mean_kl(q_V: np.ndarray, positions: PositionArrays) -> float:
    total = 0.0
    for ids, logprobs, other in zip(positions.topk_ids, positions.topk_logprobs, positions.other_logprob, strict=True):
        used = [(i, np.exp(lp)) for i, lp in zip(ids, logprobs, strict=True) if lp > -np.inf]
        rest = 1 - sum(q_V[i] for i, _ in used)
        total += sum(p * np.log(p / q_V[i]) for i, p in used)
        total += np.exp(other) * (other - np.log(rest)) if other > -np.inf else 0.0
    return total / len(positions.prev_token)


@settings(max_examples=15, deadline=None)
@given(seed=SEEDS)
def test_unigram_is_the_minimum_of_the_mean_kl(seed: int) -> None:
    positions = random_positions(seed)
    fitted = fit_unigram(positions, VOCABULARY, pseudo_positions=1e-9, max_iterations=5000, tolerance=1e-13)
    best = brute_mean_kl(fitted, positions)
    assert np.mean(unigram_bucket_kl(fitted, positions)) == pytest.approx(best, rel=1e-9)
    # Independent of EM: gradient descent on softmax logits, by torch, on the same objective.
    masses, used = (torch.from_numpy(a) for a in teacher_masses(positions))
    inside = torch.zeros(len(used), VOCABULARY, dtype=torch.float64)
    inside.scatter_add_(1, torch.from_numpy(positions.topk_ids), used.double())
    z = torch.zeros(VOCABULARY, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([z], max_iter=300, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def objective() -> torch.Tensor:
        optimizer.zero_grad()
        logq = z.log_softmax(0)
        rest = torch.where(inside > 0, -torch.inf, logq).logsumexp(1)
        candidates = torch.where(used, masses[:, :-1] * logq[torch.from_numpy(positions.topk_ids)], 0.0).sum(1)
        loss = -(candidates + masses[:, -1] * rest).mean()
        loss.backward()
        return loss

    optimizer.step(objective)
    assert best <= brute_mean_kl(z.detach().softmax(0).numpy(), positions) + 1e-7


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, k=st.integers(1, 6))
def test_unigram_is_a_distribution_and_no_worse_than_its_start(seed: int, k: int) -> None:
    positions = random_positions(seed, k=k)
    fitted = fit_unigram(positions, VOCABULARY, pseudo_positions=1e-9)
    known = np.zeros(VOCABULARY)
    for ids, logprobs in zip(positions.topk_ids, positions.topk_logprobs, strict=True):
        np.add.at(known, ids, np.exp(logprobs))
    start = spread_once(positions, known, np.full(VOCABULARY, 1 / VOCABULARY))
    assert fitted.sum() == pytest.approx(1.0, abs=1e-12)
    assert (fitted > 0).all()
    assert unigram_bucket_kl(fitted, positions).mean() <= unigram_bucket_kl(start, positions).mean() + 1e-9


def test_unigram_with_all_mass_seen_is_the_mean() -> None:
    rng = np.random.default_rng(0)
    teacher = rng.dirichlet(np.ones(VOCABULARY), size=50)
    positions = positions_from(teacher, np.zeros(50, dtype=np.int64), k=VOCABULARY)
    fitted = fit_unigram(positions, VOCABULARY, pseudo_positions=0.0)
    np.testing.assert_allclose(fitted, teacher.mean(0), rtol=1e-9)


def test_a_token_never_seen_is_unlikely_not_impossible() -> None:
    teacher = np.zeros((4, VOCABULARY))
    teacher[:, 2] = 1.0
    fitted = fit_unigram(positions_from(teacher, np.zeros(4, dtype=np.int64), k=1), VOCABULARY)
    assert (fitted > 0).all()
    assert fitted.argmax() == 2


def brute_bigram(positions: PositionArrays, unigram: np.ndarray, alpha: float) -> np.ndarray:
    """[previous, token], with each position's rest spread explicitly."""
    total, count = np.zeros((VOCABULARY, VOCABULARY)), np.zeros(VOCABULARY)
    for n, prev in enumerate(positions.prev_token):
        used = positions.topk_logprobs[n] > -np.inf
        inside = positions.topk_ids[n][used]
        p = unigram.copy()
        p[inside] = 0.0
        p *= np.exp(positions.other_logprob[n]) / p.sum()
        p[inside] = np.exp(positions.topk_logprobs[n][used])
        total[prev] += p
        count[prev] += 1
    return (total + alpha * unigram) / (count + alpha)[:, None]


@settings(max_examples=30, deadline=None)
@given(seed=SEEDS, alpha=st.sampled_from([0.01, 1.0, 50.0]))
def test_bigram_equals_brute_force(seed: int, alpha: float) -> None:
    positions = random_positions(seed)
    unigram = fit_unigram(positions, VOCABULARY)
    bigram = fit_bigram(positions, unigram, alpha=alpha)
    expected = brute_bigram(positions, unigram, alpha)
    rows = np.stack([bigram.row(u) for u in range(VOCABULARY)])
    np.testing.assert_allclose(rows, expected, rtol=1e-8, atol=1e-12)
    np.testing.assert_allclose(rows.sum(1), 1.0, atol=1e-10)
    kl = bigram_bucket_kl(bigram, positions)
    for n in range(5):
        one = select(positions, np.array([n]))
        assert kl[n] == pytest.approx(brute_mean_kl(expected[positions.prev_token[n]], one), rel=1e-6, abs=1e-10)


def test_bigram_with_infinite_smoothing_is_the_unigram() -> None:
    positions = random_positions(3)
    unigram = fit_unigram(positions, VOCABULARY)
    bigram = fit_bigram(positions, unigram, alpha=float("inf"))
    np.testing.assert_allclose(bigram_bucket_kl(bigram, positions), unigram_bucket_kl(unigram, positions), rtol=1e-9)
    nearly = fit_bigram(positions, unigram, alpha=1e12)
    np.testing.assert_allclose(nearly.row(2), unigram, rtol=1e-9)


def test_alpha_is_small_where_the_token_before_tells_and_large_where_not() -> None:
    rng = np.random.default_rng(1)
    prev = rng.integers(0, VOCABULARY, 2000)
    table = rng.dirichlet(np.full(VOCABULARY, 0.3), size=VOCABULARY)
    telling = positions_from(table[prev], prev, k=3, documents=20)
    silent = positions_from(rng.dirichlet(np.full(VOCABULARY, 2.0), size=2000), prev, k=3, documents=20)
    alphas = (0.1, 10.0, float("inf"))
    assert choose_alpha(telling, VOCABULARY, alphas, 0.2, seed=0) == 0.1
    assert choose_alpha(silent, VOCABULARY, alphas, 0.2, seed=0) > 0.1


def test_chunks_change_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    positions = random_positions(4)
    whole = fit_unigram(positions, VOCABULARY)
    whole_bigram = fit_bigram(positions, whole, seed=1)
    monkeypatch.setattr("bitnet_core.evaluation.ngram_baselines.CHUNK", 7)
    parts = fit_unigram(positions, VOCABULARY)
    bigram = fit_bigram(positions, parts, seed=1)
    np.testing.assert_allclose(parts, whole, rtol=1e-9)
    assert bigram.alpha == whole_bigram.alpha
    assert (np.diff(bigram.pairs) > 0).all()
    np.testing.assert_allclose(
        bigram_bucket_kl(bigram, positions), bigram_bucket_kl(whole_bigram, positions), rtol=1e-9
    )


def test_tensors_do_as_well_as_arrays() -> None:
    positions = random_positions(5)
    columns = (column for column in attrs.astuple(positions) if column is not None)
    tensors = PositionArrays(*(torch.from_numpy(column) for column in columns))
    unigram = fit_unigram(tensors, VOCABULARY)
    np.testing.assert_array_equal(unigram, fit_unigram(positions, VOCABULARY))
    bigram = fit_bigram(tensors, unigram, alpha=2.0)
    np.testing.assert_allclose(
        bigram_bucket_kl(bigram, tensors), bigram_bucket_kl(fit_bigram(positions, unigram, alpha=2.0), positions)
    )


def test_student_kl_agrees_with_the_same_unigram_as_logits() -> None:
    positions = random_positions(6)
    unigram = fit_unigram(positions, VOCABULARY)
    count = len(positions.prev_token)
    logits = torch.from_numpy(np.log(unigram)).expand(count, -1)
    teacher = [torch.from_numpy(a) for a in (positions.topk_ids, positions.topk_logprobs, positions.other_logprob)]
    expected = unigram_bucket_kl(unigram, positions)
    np.testing.assert_allclose(kd_by_position(logits, *teacher, tau=1.0).numpy(), expected, rtol=1e-7, atol=1e-12)


def test_what_cannot_be_fitted_is_said() -> None:
    positions = random_positions(7)
    with pytest.raises(CoreError, match="the vocabulary has 3 tokens"):
        fit_unigram(positions, 3)
    with pytest.raises(CoreError, match="no KD position"):
        fit_unigram(select(positions, np.zeros(60, dtype=bool)), VOCABULARY)
    one = attrs.evolve(positions, document=np.zeros(60, dtype=np.int64))
    with pytest.raises(CoreError, match="hold 1  → collect at least 2"):
        fit_bigram(one, fit_unigram(one, VOCABULARY))
