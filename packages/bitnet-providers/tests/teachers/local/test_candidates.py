"""Draws and log Z: their expectations exactly, by going through every outcome, and of a teacher against a plain forward
pass.
"""

import asyncio
import itertools
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from transformers import AutoModelForCausalLM

from bitnet_providers.collect.collect import collect
from bitnet_providers.collect.plan_requests import plan_collection
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import (
    Completion,
    GenerateRequest,
    ProviderError,
    SampledTarget,
    Sampling,
    ScoreRequest,
    TemperedTarget,
)
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


TEXTS = ("The quick brown fox jumps", "Paris", "the lazy dog, again and again and again and again.")
USER = ({"role": "user", "content": "what is the capital of France?"},)


def ask(teacher: Any, requests: Sequence[GenerateRequest | ScoreRequest]) -> list[Any]:
    """All at once, so that they share batches."""

    async def main() -> list[Completion]:
        return await asyncio.gather(
            *(teacher.generate(each) if isinstance(each, GenerateRequest) else teacher.score(each) for each in requests)
        )

    return asyncio.run(main())


def distributions(folder: Path, completion: Completion) -> torch.Tensor:
    """log p [n, V] before each position that has one, by a forward pass of our own."""
    model = AutoModelForCausalLM.from_pretrained(folder).eval()
    assert completion.prompt_ids is not None
    assert completion.token_ids is not None
    ids = torch.from_numpy(np.concatenate([completion.prompt_ids, completion.token_ids])).long()[None]
    with torch.no_grad():
        logprobs = model(ids).logits[0].double().log_softmax(-1)
    return logprobs[max(0, len(completion.prompt_ids) - 1) : -1]


def known(completion: Completion) -> slice:
    """The positions with candidates: a plain text's first has none."""
    return slice(0 if len(completion.prompt_ids) else 1, None)  # type: ignore[arg-type]


def requests(target: Any) -> list[GenerateRequest | ScoreRequest]:
    scored = [ScoreRequest(text, 4, target=target) for text in TEXTS]
    return [*scored, ScoreRequest("It is Paris.", 4, USER, target=target)] + [
        GenerateRequest(USER, Sampling(max_new_tokens=12, seed=seed), 4, target) for seed in (1, 2)
    ]


def test_draws_are_the_same_in_any_batch_and_others_for_another_seed(tiny_teacher: Any) -> None:
    target = SampledTarget(8, 0.8, seed=3)
    together = ask(tiny_teacher, requests(target))
    for request, completion in zip(requests(target), together, strict=True):
        (alone,) = ask(tiny_teacher, [request])
        for name in ("token_ids", "candidate_counts", "candidate_ids"):
            np.testing.assert_array_equal(getattr(alone, name), getattr(completion, name))
        for name in ("candidate_logprobs", "log_z", "entropy"):
            np.testing.assert_allclose(getattr(alone, name), getattr(completion, name), atol=1e-4)
    (other,) = ask(tiny_teacher, [attrs.evolve(requests(target)[2], target=attrs.evolve(target, seed=4))])
    assert other.candidate_ids.tolist() != together[2].candidate_ids.tolist()


def test_draws_do_not_move_the_sampled_text(tiny_teacher: Any) -> None:
    plain, drawn = (ask(tiny_teacher, requests(target))[-1] for target in (None, SampledTarget(8)))
    np.testing.assert_array_equal(plain.token_ids, drawn.token_ids)
    assert plain.log_z is None
    assert plain.entropy is None


def test_entropy_and_weights_are_of_the_whole_distribution(tiny_teacher: Any, tiny_folder: Path) -> None:
    temperature = 0.7
    for completion in ask(tiny_teacher, requests(SampledTarget(6, temperature, seed=1))):
        p = distributions(tiny_folder, completion).exp()
        here = known(completion)
        np.testing.assert_allclose(completion.entropy[here], -(p * p.log()).sum(-1), atol=1e-3)
        counts = completion.candidate_counts[here]
        assert counts.min() >= 1
        assert counts.max() <= 6
        position = np.repeat(np.arange(len(counts)), counts)
        weights = np.exp(completion.candidate_logprobs + completion.log_z[here][position])
        of_one = p[position, completion.candidate_ids] ** (1 - temperature) * (p**temperature).sum(-1)[position] / 6
        multiples = weights / of_one.numpy()  # how often it was drawn
        np.testing.assert_allclose(multiples, np.round(multiples), atol=0.01)
        np.testing.assert_allclose(np.bincount(position, np.round(multiples)), 6)


def test_log_z_of_the_whole_distribution(tiny_teacher: Any, tiny_folder: Path) -> None:
    for completion in ask(tiny_teacher, requests(TemperedTarget(2.0))):
        expected = (distributions(tiny_folder, completion) / 2).logsumexp(-1)
        np.testing.assert_allclose(completion.log_z[known(completion)], expected, atol=1e-3)
        assert completion.entropy is None
        assert set(completion.candidate_counts[known(completion)].tolist()) == {4}
    assert math.isnan(ask(tiny_teacher, requests(TemperedTarget(2.0)))[0].log_z[0])


def test_too_many_draws_are_refused(tiny_teacher: Any) -> None:
    with pytest.raises(ProviderError, match=r"2000 candidates per position .* lower collect\.draws"):
        ask(tiny_teacher, [ScoreRequest("Paris is", 0, target=SampledTarget(2000))])


@pytest.fixture
def inputs(tmp_path: Path) -> dict[str, Any]:
    (tmp_path / "prompts.txt").write_text("what is the capital?\nwhat is the capital?\n")
    (tmp_path / "texts.txt").write_text("\n".join(TEXTS) + "\n")
    return {"prompts": tmp_path / "prompts.txt", "texts": tmp_path / "texts.txt", "max_new_tokens": 6}


def test_collected_draws_reach_the_raw_shard(tiny_teacher: Any, inputs: dict[str, Any], tmp_path: Path) -> None:
    config = CollectConfig(**inputs, targets="sampled", draws=7, draw_temperature=0.9)
    summary = asyncio.run(collect(tiny_teacher, config, tmp_path / "raw", "local", 0))
    table = pq.read_table(tmp_path / "raw/shard_000.parquet")
    metadata = table.schema.metadata[b"bitnet_raw"].decode()
    assert '"target": {"draw_temperature": 0.9, "draws": 7, "kind": "sampled"}' in metadata
    assert '"top_k": 7' in metadata
    assert summary["kd_positions"] > 0
    for row in table.to_pylist():
        assert len(row["log_z"]) == len(row["entropy"]) == len(row["token_ids"])
        assert sum(row["candidate_counts"]) == len(row["candidate_ids"])


def test_each_completion_draws_by_its_own_seed(tiny_teacher: Any, inputs: dict[str, Any]) -> None:
    config = CollectConfig(**inputs, targets="sampled")
    seeds = [each.request.target.seed for each in plan_collection(config, tiny_teacher, "local", 0)]  # type: ignore[union-attr]
    assert len(set(seeds)) == len(seeds)
    keys = {each.key for each in plan_collection(config, tiny_teacher, "local", 0)}
    assert keys.isdisjoint(each.key for each in plan_collection(config, tiny_teacher, "local", 1))


def test_top_k_keeps_the_keys_it_had(counting_teacher: Callable[..., Any], inputs: dict[str, Any]) -> None:
    """What was paid for before there were targets is found again."""
    (first, *_) = plan_collection(CollectConfig(**inputs, top_k=5), counting_teacher(), "counting", 3)
    assert first.key == ("70367da33b13b16abc6c8a09eb9826c41c4a81b3398c2a2b8374f06c39c044d0", 0)


@pytest.mark.parametrize("kind", ["sampled", "tempered"])
def test_a_teacher_without_the_whole_distribution_is_refused(
    counting_teacher: Callable[..., Any], inputs: dict[str, Any], kind: str
) -> None:
    with pytest.raises(ProviderError, match=f'collect.targets = "{kind}" needs .* set collect.targets = "topk"'):
        plan_collection(CollectConfig(**inputs, targets=kind, top_k=5), counting_teacher(), "counting", 0)


def test_log_z_without_candidates_is_refused(tiny_teacher: Any, inputs: dict[str, Any]) -> None:
    with pytest.raises(ProviderError, match=r"raise collect\.top_k$"):
        plan_collection(CollectConfig(**inputs, targets="tempered", top_k=0), tiny_teacher, "local", 0)
