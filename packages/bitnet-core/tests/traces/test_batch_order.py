from itertools import islice

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.traces.batch_order import batches_from, epoch_batches

lengths_of_documents = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(lengths=lengths_of_documents, batch_size=st.integers(1, 17), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_document_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


@given(lengths=lengths_of_documents, batch_size=st.integers(1, 17), position=st.integers(0, 60))
def test_going_on_from_a_position_gives_the_same_batches(lengths: list[int], batch_size: int, position: int) -> None:
    whole = list(islice(batches_from(lengths, batch_size, 7, 0), position + 5))
    resumed = list(islice(batches_from(lengths, batch_size, 7, position), 5))
    for expected, batch in zip(whole[position:], resumed, strict=True):
        np.testing.assert_array_equal(expected, batch)


def test_epochs_differ() -> None:
    lengths = list(range(1, 100))
    first, second = (np.concatenate(epoch_batches(lengths, 4, 0, epoch)) for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_sorting_within_windows_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 512)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in batches)

    random_order = np.random.default_rng(1).permutation(512).reshape(-1, 8)
    assert padded(epoch_batches(lengths, 8, 0, 0)) < 0.75 * padded(list(random_order))
