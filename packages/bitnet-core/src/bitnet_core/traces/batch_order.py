"""Which documents make which batch: a pure function of seed and epoch, so that a run can go on from any batch.

`TraceBatches` hands them to a DataLoader without end, dealt to ranks and workers.
"""

import itertools
from collections.abc import Iterator

import attrs
import numpy as np
from numpy.typing import ArrayLike, NDArray
from torch.utils.data import IterableDataset, get_worker_info

from bitnet_core.errors import CoreError
from bitnet_core.traces.collate import KDBatch, Side, collate_fn, pack_items
from bitnet_core.traces.dataset import KDTraceDataset

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
    every = np.arange(len(lengths_array))
    if windows is None:
        return _shuffled_batches(every, lengths_array, batch_size, rng)
    by_window = np.argsort(windows, kind="stable")
    members = np.split(by_window, np.flatnonzero(np.diff(windows[by_window])) + 1)
    if len(members) == 1:
        return _shuffled_batches(every, lengths_array, batch_size, rng)
    return [
        batch
        for number in rng.permutation(len(members))
        for batch in _shuffled_batches(members[number], lengths_array, batch_size, rng)
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


@attrs.frozen(kw_only=True)
class StreamConfig:
    """How documents become batches. All ranks and workers share all of it but `rank`."""

    batch_size: int
    """Documents of a batch (of packed rows too)."""
    seed: int = 0
    rank: int = 0
    world_size: int = 1
    pad_token_id: int = 0
    side: Side = "right"
    packed_length: int | None = None
    """Positions of a row into which documents are packed; None: one document a row."""

    def __attrs_post_init__(self) -> None:
        if not 0 <= self.rank < self.world_size:
            raise CoreError(
                f"there is no rank {self.rank} in a world of {self.world_size}", "set rank from 0 to world_size - 1"
            )
        if self.batch_size < 1:
            raise CoreError(f"batch_size = {self.batch_size} is too low", "set it to at least 1")


class TraceBatches(IterableDataset[KDBatch]):
    """The training batches of one rank, without end: ``DataLoader(TraceBatches(...), batch_size=None)``.

    Batch n of the whole job (epoch after epoch, in the order of `batches_from`) goes to rank n mod world_size, and
    there to the workers by turns, which is how a DataLoader collects them: the order is the same with any number of
    workers, and no two ranks or workers get the same batch. A job of other size goes on where one stopped: `start` is
    the number of batches that this rank has used, so the job has used ``start * world_size``.
    """

    def __init__(self, dataset: KDTraceDataset, config: StreamConfig, start: int = 0) -> None:
        self._dataset, self._config, self._start = dataset, config, start

    def __iter__(self) -> Iterator[KDBatch]:
        worker = get_worker_info()
        number, workers = (worker.id, worker.num_workers) if worker else (0, 1)
        config, dataset = self._config, self._dataset
        own = (self._start + number) * config.world_size + config.rank
        indices = batches_from(dataset.lengths, config.batch_size, config.seed, own, dataset.windows)
        for documents in itertools.islice(indices, 0, None, workers * config.world_size):
            if config.packed_length is None:
                yield dataset.batch(documents, config.pad_token_id, config.side)
            else:
                rows = pack_items([dataset[i] for i in documents.tolist()], config.packed_length)
                yield collate_fn(rows, config.pad_token_id, config.side)
