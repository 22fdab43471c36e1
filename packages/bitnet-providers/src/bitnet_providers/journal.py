"""The journal: every completion that the teacher has finished, on disk before it counts.

A journal is a row of files ``journal-NNN.bin`` in the raw folder; a process writes one of its own and only appends.
A file is the 8 bytes of MAGIC, then frames: the payload's length (uint64, little-endian), its sha256, and the payload,
an Arrow record batch (IPC message) in the columns of the raw shard. A kill or a power cut leaves at most a torn last
frame, which its digest tells. Nothing here is ever deleted: it may have been paid for. ``sample_idx`` counts the draws
of one and the same request.
"""

import contextlib
import hashlib
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import pyarrow as pa

from bitnet_providers.contract import ProviderError
from bitnet_providers.raw_shard import RAW_SCHEMA

FILES = "journal-*.bin"
MAGIC = b"bitnetJ1"

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
    for path in sorted(folder.glob(FILES)):
        for batch in _batches(path):
            keys = zip(batch.column("request_sha256").to_pylist(), batch.column("sample_idx").to_pylist(), strict=True)
            for index, key in enumerate(keys):
                rows.setdefault(key, JournalRow(batch, index))
    return rows


def _batches(path: Path) -> Iterator[pa.RecordBatch]:
    """The batches of one file up to its end or to where it is torn."""
    if path.stat().st_size < len(MAGIC):
        return
    file = pa.memory_map(str(path))
    if file.read(len(MAGIC)) != MAGIC:
        raise ProviderError(f"{path} was not written by this version of bitnet-providers: move it out of the folder")
    while True:
        length, digest = int.from_bytes(file.read(8), "little"), file.read(32)
        payload = file.read_buffer(min(length, path.stat().st_size))
        if length == 0 or len(payload) < length or hashlib.sha256(payload).digest() != digest:
            return
        yield pa.ipc.read_record_batch(payload, RAW_SCHEMA)


class JournalWriter:
    """Appends rows to a new file of the journal; the file is made with the first row. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (the columns of RAW_SCHEMA) and wait until the disk has them. Raises OSError."""
        if not rows:
            return
        payload = to_batch(rows).serialize()
        if self._file is None:
            self._file = _new_file(self._folder)
        try:
            self._file.write(len(payload).to_bytes(8, "little") + hashlib.sha256(payload).digest())
            self._file.write(payload)
            self._file.flush()
            os.fsync(self._file.fileno())
        except BaseException:  # what is behind a torn frame is not read: the next rows need a new file
            torn, self._file = self._file, None
            with contextlib.suppress(OSError):
                torn.close()
            raise

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._file is not None:
            self._file.close()


def to_batch(rows: Iterable[Mapping[str, Any]]) -> pa.RecordBatch:
    rows = list(rows)
    return pa.RecordBatch.from_arrays(
        [pa.array([row[field.name] for row in rows], field.type) for field in RAW_SCHEMA], schema=RAW_SCHEMA
    )


def _new_file(folder: Path) -> BinaryIO:
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(FILES)))
    while True:
        try:
            file = (folder / f"journal-{number:03d}.bin").open("xb")
        except FileExistsError:
            number += 1
            continue
        file.write(MAGIC)
        return file
