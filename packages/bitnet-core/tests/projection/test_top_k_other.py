import math
from collections import defaultdict
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.projection import top_k_other as module
from bitnet_core.projection.top_k_other import OTHER_FLOOR, top_k_with_other

K = 4
missing = st.sampled_from([float("nan"), -9999.0, float("-inf"), 0.5, float("inf")])
logprob = st.floats(-30.0, 0.0, width=32) | missing
ragged = st.lists(st.lists(st.tuples(st.integers(0, 12), logprob), max_size=9), min_size=1, max_size=12)


def project(positions: list[list[tuple[int, float]]], k: int = K) -> module.TopK:
    return top_k_with_other(
        np.array([len(each) for each in positions]),
        np.array([id_ for each in positions for id_, _ in each], dtype=np.int32),
        np.array([value for each in positions for _, value in each], dtype=np.float32),
        k,
    )


def by_hand(position: list[tuple[int, float]], k: int = K) -> tuple[dict[int, float], float]:
    """id → log-probability of those kept, and log other: one candidate at a time, in plain Python."""
    mass: dict[int, list[float]] = defaultdict(list)
    for id_, value in position:
        if value == value and -9000 < value <= 1e-3:
            mass[id_].append(math.exp(min(np.float32(value).item(), 0.0)))
    best = sorted(((math.fsum(each), -id_) for id_, each in mass.items()), reverse=True)[:k]
    total = math.fsum(p for p, _ in best)
    scale = total + OTHER_FLOOR if total >= 1 - OTHER_FLOOR else 1.0
    other = math.log(OTHER_FLOOR / scale) if scale != 1.0 else math.log1p(-total)
    return {-id_: math.log(p / scale) for p, id_ in best}, other


@given(positions=ragged)
def test_agrees_with_plain_python(positions: list[list[tuple[int, float]]]) -> None:
    top = project(positions)
    for row, position in enumerate(positions):
        expected, other = by_hand(position)
        used = np.isfinite(top.logprobs[row])
        assert (np.diff(top.logprobs[row][used]) <= 0).all()
        assert top.logprobs[row][used] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-9)
        # Which of two almost equal candidates is the last one kept is not defined across orders of summation.
        for id_, value in zip(top.ids[row][used].tolist(), top.logprobs[row][used].tolist(), strict=True):
            assert id_ not in expected or value == pytest.approx(expected[id_], abs=1e-9)
        assert (top.ids[row][~used] == 0).all()
        assert np.exp(top.other[row]) == pytest.approx(np.exp(other), abs=1e-12)


@given(positions=ragged)
def test_mass_is_conserved_and_nothing_is_nan(positions: list[list[tuple[int, float]]]) -> None:
    top = project(positions)
    total = np.exp(top.logprobs).sum(axis=1) + np.exp(top.other)
    np.testing.assert_allclose(total, 1.0, atol=1e-6)
    assert not np.isnan(top.logprobs).any()
    assert not np.isnan(top.other).any()
    assert (top.logprobs <= 0).all()
    assert np.isfinite(top.other).all()


@given(positions=ragged, seed=st.integers(0, 99))
def test_the_order_of_candidates_makes_no_difference(positions: list[list[tuple[int, float]]], seed: int) -> None:
    rng = np.random.default_rng(seed)
    shuffled = [[each[i] for i in rng.permutation(len(each))] for each in positions]
    ours, theirs = project(positions), project(shuffled)
    np.testing.assert_array_equal(ours.ids, theirs.ids)
    np.testing.assert_array_equal(ours.logprobs, theirs.logprobs)
    np.testing.assert_array_equal(ours.other, theirs.other)
    assert (ours.merged, ours.missing, ours.clipped) == (theirs.merged, theirs.missing, theirs.clipped)


@given(positions=ragged)
def test_blocks_do_not_matter(positions: list[list[tuple[int, float]]]) -> None:
    whole = project(positions)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "_BLOCK_CELLS", 10)
        cut = project(positions)
    np.testing.assert_array_equal(whole.logprobs, cut.logprobs)
    np.testing.assert_array_equal(whole.ids, cut.ids)


def test_duplicates_merge_by_log_sum_exp() -> None:
    top = project([[(7, math.log(0.2)), (3, math.log(0.3)), (7, math.log(0.25))]])
    assert top.ids[0, :2].tolist() == [7, 3]
    assert np.exp(top.logprobs[0, :2]) == pytest.approx([0.45, 0.3], rel=1e-6)
    assert (top.merged, top.missing, top.clipped) == (1, 0, 0)


def test_what_is_beyond_k_goes_to_other() -> None:
    top = project([[(i, math.log(0.19 - i / 100)) for i in range(5)]], k=2)
    assert np.exp(top.logprobs[0]) == pytest.approx([0.19, 0.18], rel=1e-6)
    assert np.exp(top.other[0]) == pytest.approx(0.63, rel=1e-6)
    assert top.clipped == 1


def test_other_is_taken_from_unrounded_values() -> None:
    small = 1e-6
    top = project([[(0, math.log1p(-small))]], k=1)
    assert np.exp(top.other[0]) == pytest.approx(small, rel=0.05)  # fp16 would have said 0


def test_a_full_mass_leaves_the_floor_and_is_counted() -> None:
    top = project([[(0, math.log(0.6)), (1, math.log(0.45))], [(0, 0.0)], [(0, 5e-4)], [(0, math.log(0.5))]])
    assert top.clamped == 3
    assert top.mass[0] == pytest.approx(1.05, rel=1e-6)
    assert np.exp(top.other[:3]) == pytest.approx([OTHER_FLOOR / 1.05, OTHER_FLOOR, OTHER_FLOOR], rel=1e-3)
    assert np.exp(top.logprobs[0, :2]) == pytest.approx([0.6 / 1.05, 0.45 / 1.05], rel=1e-6)


def test_positions_without_candidates_are_kept() -> None:
    top = project([[], [(5, -9999.0)], [(5, -1.0)]])
    assert top.other[:2].tolist() == [0.0, 0.0]
    assert np.isneginf(top.logprobs[:2]).all()
    assert top.missing == 1
    assert project([]).ids.shape == (0, K)


def test_three_of_one_id_sum_to_the_same_bits_in_every_order() -> None:
    rng = np.random.default_rng(0)
    for values in rng.uniform(-6, -2, (40, 3)):
        orders = [project([[(7, value) for value in order]]) for order in permutations(values.tolist())]
        assert len({top.logprobs[0, 0] for top in orders}) == 1
