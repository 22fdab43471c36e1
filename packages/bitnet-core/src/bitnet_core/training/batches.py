"""Which documents make which batch: a pure function of seed and epoch, so that a run can go on from any batch."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW_BATCHES = 16
"""Documents are sorted by length within this many batches: little padding, and still a random order."""


def epoch_batches(
    lengths: ArrayLike,
    batch_size: int,
    seed: int,
    epoch: int,
    windows: NDArray[np.int64] | None = None,
) -> list[NDArray[np.int64]]:
    """The batches of one epoch as arrays of document indices; every document once, order given by seed and epoch.

    windows [documents]: numbers of `KDTraceDataset.windows`. The documents of one number come together (in random
    order, the windows too), so that traces larger than memory are decoded once an epoch. None: all in one window.
    """
    rng = np.random.default_rng((seed, epoch))
    lengths_array = np.asarray(lengths)
    numbers = np.unique(windows) if windows is not None else np.zeros(1, dtype=np.int64)
    if len(numbers) == 1:
        return _shuffled_batches(np.arange(len(lengths_array)), lengths_array, batch_size, rng)
    return [
        batch
        for number in rng.permutation(numbers)
        for batch in _shuffled_batches(np.flatnonzero(windows == number), lengths_array, batch_size, rng)
    ]


def _shuffled_batches(
    documents: NDArray[np.int64], lengths: NDArray[np.int64], batch_size: int, rng: np.random.Generator
) -> list[NDArray[np.int64]]:
    order = documents[rng.permutation(len(documents))]
    size = batch_size * WINDOW_BATCHES
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), size):
        members = order[start : start + size]
        members = members[np.argsort(-lengths[members], kind="stable")]
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_from(
    lengths: ArrayLike,
    batch_size: int,
    seed: int,
    position: int,
    windows: NDArray[np.int64] | None = None,
) -> Iterator[NDArray[np.int64]]:
    """Batches without end, epoch after epoch, from batch number `position` counted over all epochs."""
    per_epoch = len(epoch_batches(lengths, batch_size, seed, 0, windows))
    epoch, skip = divmod(position, per_epoch)
    while True:
        yield from epoch_batches(lengths, batch_size, seed, epoch, windows)[skip:]
        epoch, skip = epoch + 1, 0
