"""KD shards written one after another, no document cut by a shard's end. D completions."""

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.traces.schema import ROW_GROUP_ROWS, KDMetadata, kd_writer


class ShardFiles:
    """``kd_shard_000.parquet`` and so on in a folder; a shard appears when the next begins, or at the end.

    Where the body raises, the shard under way does not appear.
    """

    def __init__(self, folder: Path, metadata: KDMetadata, rows_per_shard: int) -> None:
        self.files: list[Path] = []
        self._folder, self._metadata, self._rows_per_shard = folder, metadata, rows_per_shard
        self._stack = ExitStack()
        self._writer: pq.ParquetWriter | None = None
        self._rows = 0

    def __enter__(self) -> "ShardFiles":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stack.__exit__(kind, error, traceback)

    def write(self, table: pa.Table, lengths_D: NDArray[np.int64]) -> None:
        """Add the rows of some completions. Raises CoreError where the disk refuses."""
        ends_D = np.cumsum(lengths_D)
        start = 0
        while start < len(lengths_D):
            before = int(ends_D[start - 1]) if start else 0
            room = self._rows_per_shard - self._rows if self._writer is not None else 0
            stop = int(np.searchsorted(ends_D, before + room, side="right"))
            if self._writer is None or stop <= start:
                self._next()
                stop = max(start + 1, int(np.searchsorted(ends_D, before + self._rows_per_shard, side="right")))
            assert self._writer is not None
            rows = int(ends_D[stop - 1]) - before
            self._writer.write_table(table.slice(before, rows), row_group_size=ROW_GROUP_ROWS)
            self._rows += rows
            start = stop

    def _next(self) -> None:
        self._stack.pop_all().close()
        file = self._folder / f"kd_shard_{len(self.files):03d}.parquet"
        self._writer = self._stack.enter_context(kd_writer(file, self._metadata))
        self.files.append(file)
        self._rows = 0


def cut(lengths_D: NDArray[np.int64], rows: int) -> Iterator[slice]:
    """Consecutive runs of completions with at most `rows` rows each; one that is longer by itself stands alone."""
    ends = np.cumsum(lengths_D)
    start = 0
    while start < len(lengths_D):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + rows, side="right")))
        yield slice(start, stop)
        start = stop
