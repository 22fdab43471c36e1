"""Targets asked of a local teacher: draws and log Z, scored and generated, against a plain forward pass."""

import asyncio
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
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
