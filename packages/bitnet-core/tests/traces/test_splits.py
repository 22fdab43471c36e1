import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.traces.splits import held_out

names = st.lists(st.text("abcdef", max_size=4), max_size=40)
fractions = st.floats(0.01, 0.99)


@given(names=names, fraction=fractions, seed=st.integers(0, 9))
def test_one_document_one_split_and_none_is_empty(names: list[str], fraction: float, seed: int) -> None:
    chosen = held_out(names, fraction, seed)
    split_of = dict(zip(names, chosen.tolist(), strict=True))
    assert chosen.tolist() == [split_of[name] for name in names]
    if len(split_of) >= 2:
        assert set(split_of.values()) == {True, False}


@given(names=names, fraction=fractions, seed=st.integers(0, 9))
def test_order_and_repetition_do_not_matter(names: list[str], fraction: float, seed: int) -> None:
    split_of = dict(zip(names, held_out(names, fraction, seed), strict=True))
    again = [*reversed(names), *names]
    assert [split_of[name] for name in again] == held_out(again, fraction, seed).tolist()


def test_a_document_keeps_its_split_when_others_come() -> None:
    few = [f"document-{i}" for i in range(200)]
    more = [f"document-{i}" for i in range(2000)]
    assert held_out(few, 0.1, 7).tolist() == held_out(more, 0.1, 7)[:200].tolist()


def test_the_fraction_is_met_and_the_seed_matters() -> None:
    names = [f"document-{i}" for i in range(20_000)]
    assert held_out(names, 0.1, 0).mean() == pytest.approx(0.1, abs=0.01)
    both = held_out(names, 0.1, 0) & held_out(names, 0.1, 1)
    assert both.mean() == pytest.approx(0.01, abs=0.004)


def test_a_single_document_is_for_training() -> None:
    assert held_out(["only", "only"], 0.99, 0).tolist() == [False, False]


def test_the_hash_is_pinned() -> None:
    """Changing it would move documents of existing runs between the splits."""
    assert [i for i in range(40) if held_out([f"document-{j}" for j in range(40)], 0.1, 0)[i]] == PINNED


PINNED = [13, 29, 37]
