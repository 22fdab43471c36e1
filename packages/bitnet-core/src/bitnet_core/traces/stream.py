"""Batches without end for a DataLoader: sharded over ranks and workers, to be gone on with from any position."""

import itertools
from collections.abc import Iterator

import attrs
from torch.utils.data import IterableDataset, get_worker_info

from bitnet_core.errors import CoreError
from bitnet_core.traces.collate import KDBatch, Side, collate_fn, pack_items
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.training.batches import batches_from


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
            raise CoreError(f"rank {self.rank} of a world of {self.world_size}; it lies from 0 to world_size - 1")
        if self.batch_size < 1:
            raise CoreError(f"batch_size is {self.batch_size}; it must be at least 1")


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
