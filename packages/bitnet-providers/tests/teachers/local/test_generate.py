"""Drawing tokens: checked against the distributions they are drawn from."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_providers.teachers.local.candidates import BLOCK, invert
from bitnet_providers.teachers.local.generate import draw

logits = st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12)


def rows(values: list[float], count: int = 1) -> torch.Tensor:
    return torch.tensor([values] * count).log_softmax(-1)


@settings(max_examples=50, deadline=None)
@given(values=logits, temperature=st.sampled_from([0.3, 1.0, 2.0]))
def test_evenly_spread_uniforms_give_the_distribution(values: list[float], temperature: float) -> None:
    """The inverse of the distribution function: n even points hit each token n·p times, but for its two ends."""
    n = 500
    uniforms_N = (torch.arange(n, dtype=torch.float64) + 0.5) / n
    drawn_N = draw(rows(values, n), temperature, 1.0, uniforms_N)
    expected_V = (torch.tensor(values, dtype=torch.float64).log_softmax(-1) / temperature).softmax(-1)
    found_V = torch.bincount(drawn_N, minlength=len(values)) / n
    assert torch.all((found_V - expected_V).abs() <= 1.5 / n + 1e-5)


@settings(max_examples=50, deadline=None)
@given(values=logits, top_p=st.floats(0.05, 0.99), uniform=st.floats(0, 1, exclude_max=True))
def test_the_nucleus_is_the_fewest_tokens_that_reach_top_p(values: list[float], top_p: float, uniform: float) -> None:
    drawn = int(draw(rows(values), 1.0, top_p, torch.tensor([uniform], dtype=torch.float64)))
    probs = rows(values)[0].exp()
    heavier = float(probs[probs > probs[drawn]].sum())
    assert heavier < top_p + 1e-5


@pytest.mark.parametrize("uniform", [0.0, 0.5, 1.0 - 2**-53])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_impossible_tokens_are_never_drawn(uniform: float, top_p: float) -> None:
    logprobs_NV = torch.tensor([[-math.inf, math.log(0.5), -math.inf, math.log(0.5), -math.inf]])
    assert int(draw(logprobs_NV, 1.0, top_p, torch.tensor([uniform], dtype=torch.float64))) in (1, 3)


def test_temperature_zero_is_the_likeliest() -> None:
    assert draw(torch.tensor([[-3.0, -0.1, -2.0], [-0.2, -3.0, -2.0]]), 0.0, 1.0, torch.zeros(2)).tolist() == [1, 0]


@pytest.mark.parametrize("vocabulary", [BLOCK - 1, BLOCK, 3 * BLOCK + 5])
def test_a_vocabulary_of_many_blocks_is_inverted_as_a_whole(vocabulary: int) -> None:
    random = np.random.default_rng(vocabulary)
    masses = random.integers(0, 4, vocabulary) * (
        random.random(vocabulary) < 0.3
    )  # most have none, whole numbers: exact
    masses[2 * BLOCK : 3 * BLOCK] = 0
    uniforms = np.append(random.random(200), [0.0, 1.0 - 2**-53])
    cumulative = masses.cumsum()
    wanted = np.searchsorted(cumulative, uniforms * cumulative[-1], side="right")
    wanted = np.minimum(wanted, np.searchsorted(cumulative, cumulative[-1]))
    found = invert(torch.tensor(masses, dtype=torch.float32)[None], torch.tensor(uniforms)[None])
    assert found[0].tolist() == wanted.tolist()
