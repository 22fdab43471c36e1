"""KD shards written: tables of rows into Parquet, compressed, no document cut by a row group. R rows, K candidates."""

from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces.parquet import atomic_writer
from bitnet_core.traces.schema import METADATA_KEY, KDMetadata, kd_schema
from bitnet_core.traces.target_kinds import TOPK, extra_columns, is_sampled

ROW_GROUP_ROWS = 65_536
_IDS, _LOGPROBS = "topk_ids.list.element", "topk_logprobs.list.element"
_LEVELS = {_IDS: 3, _LOGPROBS: 19}
"""zstd's level, where it isn't 9."""


def kd_table(
    columns: Mapping[str, Any],
    topk_ids_RK: NDArray[np.int32],
    topk_logprobs_RK: NDArray[np.floating[Any]],
    target: Mapping[str, Any] = TOPK,
) -> pa.Table:
    """The rows of a shard. `columns`: all of `kd_schema` but the two lists, numpy or Arrow arrays of length R.

    ``in_ce`` may be left out: then it is True.
    """
    rows, k = topk_ids_RK.shape
    if rows * k > np.iinfo(np.int32).max:
        raise CoreError(f"{rows} rows × {k} candidates do not fit in one KD shard", "lower project.rows_per_shard")
    offsets = pa.array(np.arange(rows + 1, dtype=np.int32) * np.int32(k))
    lists = {
        "topk_ids": pa.ListArray.from_arrays(offsets, pa.array(topk_ids_RK.reshape(-1))),
        "topk_logprobs": pa.ListArray.from_arrays(offsets, pa.array(topk_logprobs_RK.reshape(-1))),
    }
    schema = kd_schema(target)
    every = {"in_ce": np.ones(rows, dtype=bool), **columns, **lists}
    return pa.table([pa.array(every[name]) for name in schema.names], schema=schema)


@contextmanager
def kd_writer(file: Path, metadata: KDMetadata) -> Iterator[pq.ParquetWriter]:
    """A writer of tables (`kd_table`) into one shard; the file appears when the body ends."""
    schema = kd_schema(metadata.target).with_metadata({METADATA_KEY: metadata.to_json()})
    with shard_writer(file, schema, metadata.target) as writer:
        yield writer


@contextmanager
def shard_writer(file: Path, schema: pa.Schema, target: Mapping[str, Any]) -> Iterator[pq.ParquetWriter]:
    """A writer of tables with this schema; `target`: what the traces keep of each distribution."""
    leaves = [f"{field.name}.list.element" if pa.types.is_list(field.type) else field.name for field in schema]
    # Draws in proportion to p weigh n/R: few different numbers.
    repeating = [_LOGPROBS] if is_sampled(target) and target["draw_temperature"] == 1.0 else []
    splitting = [_IDS, _LOGPROBS, "other_logprob", "sample_logprob", *extra_columns(target)]
    with atomic_writer(
        file,
        schema,
        # Measured on real traces (docs/kd-shard.md): split bytes beat the dictionary for ids, a page must be long for
        # zstd to see enough of it, and only the log-probabilities repay a high level.
        use_dictionary=["prompt_idx", "sample_idx", "teacher_sample_id", "teacher_sample_text", "split", *repeating],
        use_byte_stream_split=[name for name in splitting if name not in repeating],
        compression_level={name: _LEVELS.get(name, 9) for name in leaves},
        data_page_size=2**24,
        max_rows_per_page=ROW_GROUP_ROWS,
    ) as writer:
        yield writer


def write_kd_shard(file: Path, table: pa.Table, metadata: KDMetadata) -> None:
    """Write one whole shard, atomically. A document lies in one row group, so that it is read with it alone.

    table: rows sorted by prompt_idx, sample_idx, step_idx. Raises CoreError where the disk refuses.
    """
    keys = [table[name].to_numpy() for name in ("prompt_idx", "sample_idx")]
    is_end = np.ones(table.num_rows, dtype=bool)
    is_end[:-1] = (np.diff(keys[0]) != 0) | (np.diff(keys[1]) != 0)
    ends = np.flatnonzero(is_end) + 1
    start = 0
    with kd_writer(file, metadata) as writer:
        while start < table.num_rows:
            fitting = np.searchsorted(ends, start + ROW_GROUP_ROWS, side="right")
            following = np.searchsorted(ends, start, side="right")  # a document larger than a row group stands alone
            stop = int(ends[max(fitting - 1, following)])
            writer.write_table(table.slice(start, stop - start), row_group_size=stop - start)
            start = stop


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
