"""The journal: every completion that the teacher has finished, on disk before it counts.

A journal is a row of files ``journal-NNN.arrow`` in the raw folder, each an Arrow stream in the columns of the raw
shard; a process writes one of its own and only appends. A killed process leaves at most a torn last batch, which is
skipped on reading. Nothing here is ever deleted: it may have been paid for. ``sample_idx`` counts the draws of one and
the same request.
"""

import contextlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

import attrs
import pyarrow as pa

from bitnet_providers.raw_shard import RAW_SCHEMA

Key = tuple[str, int]
"""(request_sha256, sample_idx)"""


@attrs.frozen
class JournalRow:
    """Where a completion stands."""

    batch: pa.RecordBatch
    index: int


def read_journal(folder: Path) -> dict[Key, JournalRow]:
    """Every completion of a raw folder by its key; of two with one key the first counts. Files stay memory-mapped."""
    rows: dict[Key, JournalRow] = {}
    for path in sorted(folder.glob("journal-*.arrow")):
        for batch in _batches(path):
            keys = zip(batch.column("request_sha256").to_pylist(), batch.column("sample_idx").to_pylist(), strict=True)
            for index, key in enumerate(keys):
                rows.setdefault(key, JournalRow(batch, index))
    return rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of one file up to its end or to where a kill tore it."""
    if path.stat().st_size == 0:
        return
    try:
        reader = pa.ipc.open_stream(pa.memory_map(str(path)))
    except (pa.ArrowInvalid, OSError):
        return
    if not reader.schema.equals(RAW_SCHEMA):
        return
    while True:
        try:
            batch = reader.read_next_batch()
            batch.validate(full=True)
        except (StopIteration, pa.ArrowInvalid, OSError):
            return
        yield batch


class JournalWriter:
    """Appends rows to a new file of the journal; the file is made with the first row. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: Any = None
        self._stream: Any = None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (the columns of RAW_SCHEMA) and wait until the disk has them. Raises OSError."""
        if not rows:
            return
        batch = to_batch(rows)
        if self._file is None:
            self._file = _new_file(self._folder)
            self._stream = pa.ipc.new_stream(self._file, RAW_SCHEMA)
        try:
            self._stream.write_batch(batch)
            self._file.flush()
            os.fsync(self._file.fileno())
        except BaseException:  # what is behind a torn batch can't be read: the next rows need a new file
            torn, self._file, self._stream = self._file, None, None
            with contextlib.suppress(OSError):
                torn.close()
            raise

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is None:
            return
        try:
            self._stream.close()
        finally:
            self._file.close()


def to_batch(rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    rows = list(rows)
    return pa.RecordBatch.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in RAW_SCHEMA], schema=RAW_SCHEMA
    )


def _new_file(folder: Path) -> Any:
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob("journal-*.arrow")))
    while True:
        try:
            return (folder / f"journal-{number:03d}.arrow").open("xb")
        except FileExistsError:
            number += 1
