"""Which documents make which batch: a pure function of seed and epoch, so that a run can go on from any batch."""

from collections.abc import Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

WINDOW_BATCHES = 16
"""Documents are sorted by length within this many batches: little padding, and still a random order."""


def epoch_batches(lengths: ArrayLike, batch_size: int, seed: int, epoch: int) -> list[NDArray[np.int64]]:
    """The batches of one epoch as arrays of document indices; every document once, order given by seed and epoch."""
    rng = np.random.default_rng((seed, epoch))
    lengths_array = np.asarray(lengths)
    order = rng.permutation(len(lengths_array))
    window = batch_size * WINDOW_BATCHES
    batches: list[NDArray[np.int64]] = []
    for start in range(0, len(order), window):
        members = order[start : start + window]
        members = members[np.argsort(-lengths_array[members], kind="stable")]
        batches += [members[i : i + batch_size] for i in range(0, len(members), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


def batches_from(lengths: ArrayLike, batch_size: int, seed: int, position: int) -> Iterator[NDArray[np.int64]]:
    """Batches without end, epoch after epoch, from batch number `position` counted over all epochs."""
    per_epoch = len(epoch_batches(lengths, batch_size, seed, 0))
    epoch, skip = divmod(position, per_epoch)
    while True:
        yield from epoch_batches(lengths, batch_size, seed, epoch)[skip:]
        epoch, skip = epoch + 1, 0
