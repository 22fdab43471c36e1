"""The journal: every completion that the teacher has finished, on disk before it counts.

A journal is a row of files ``journal-NNN-TOKEN.bin`` in the raw folder; a process writes one of its own and only
appends. The files of several machines go together in one folder: no two have the same name.
A file is the 8 bytes of MAGIC, then frames, one a completion: the 8 bytes of FRAME, the payload's length (uint64,
little-endian), its sha256, and the payload, an Arrow record batch (IPC message) of one row in the columns of the raw
shard. A frame that is damaged, or torn by a kill or a power cut, is told by its digest, and reading goes on at the next
FRAME. Nothing here is ever deleted: it may have been paid for. ``sample_idx`` counts the draws of one and the same
request.
"""

import contextlib
import hashlib
import json
import mmap
import os
import secrets
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO

import attrs
import pyarrow as pa

from bitnet_providers.contract import (
    ProviderError,
)
from bitnet_providers.raw.keys import Key
from bitnet_providers.raw.shard import RAW_SCHEMA
from bitnet_providers.spending.tokens import Tokens, from_usage


def new_file(folder: Path, name: str, suffix: str, buffering: int = -1) -> Any:
    """Open a file ``name-NNN-TOKEN.suffix`` to write bytes. Raises OSError.

    NNN counts on, so that names sort in the order in which the files were begun; TOKEN is random, so that no two
    machines give the same name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(f"{name}-*{suffix}")))
    return (folder / f"{name}-{number:03d}-{secrets.token_hex(4)}{suffix}").open("xb", buffering=buffering)


FILES = "journal-*.bin"


MAGIC = b"bitnetJ3"


FRAME = b"\xfebnJ2\r\n\xff"
"""Begins every frame. No UTF-8 holds it; where it stands in a payload by chance, the digest behind it is wrong."""


_HEADER_BYTES = len(FRAME) + 8 + 32


@attrs.frozen
class JournalRow:
    """Where a completion stands."""

    batch: pa.RecordBatch
    index: int


def tokens_of(row: JournalRow) -> Tokens:
    """What the provider counted for a completion of the journal."""
    values = {name: row.batch.column(name)[row.index].as_py() for name in ("usage", "prompt_tokens", "finish_reason")}
    usage = json.loads(values["usage"]) if values["usage"] else {}
    positions = len(row.batch.column("token_logprobs")[row.index])
    return from_usage(usage, values["prompt_tokens"], positions, scored=values["finish_reason"] == "scored")


@attrs.frozen
class Journal:
    """What the journal of a raw folder holds."""

    rows: Mapping[Key, JournalRow]
    damaged: int
    """Frames that are not what was written, a torn one too; each was one completion."""


def read_journal(folder: Path) -> Journal:
    """Every completion of a raw folder by its key; of two with one key the first counts. Files stay memory-mapped.

    Raises ProviderError for a file of another version.
    """
    rows: dict[Key, JournalRow] = {}
    damaged = 0
    for path in sorted(folder.glob(FILES)):
        for batch in _batches(path):
            if batch is None:
                damaged += 1
                continue
            keys = zip(batch.column("request_sha256").to_pylist(), batch.column("sample_idx").to_pylist(), strict=True)
            for index, key in enumerate(keys):
                rows.setdefault(key, JournalRow(batch, index))
    return Journal(rows, damaged)


def _batches(path: Path) -> Iterator[pa.RecordBatch | None]:
    """The batches of one file; None for each frame that is damaged."""
    if path.stat().st_size < len(MAGIC):
        return
    with path.open("rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    if content[: len(MAGIC)] != MAGIC:
        raise ProviderError(f"{path} was not written by this version of bitnet-providers", "move it out of the folder")
    buffer, start = pa.py_buffer(content), len(MAGIC)
    while start < len(content):
        payload = _payload(content, buffer, start)
        if payload is not None:
            yield pa.ipc.read_record_batch(payload, RAW_SCHEMA)
            start += _HEADER_BYTES + len(payload)
            continue
        following = content.find(FRAME, start + 1)
        end = len(content) if following < 0 else following
        # File systems fill a file's end with zeros after a power cut: nothing was written there.
        if any(content[at : at + 65536].strip(b"\0") for at in range(start, end, 65536)):
            yield None
        start = end


def _payload(content: mmap.mmap, buffer: pa.Buffer, start: int) -> pa.Buffer | None:
    """The payload of the frame at `start`, not copied; None where no whole frame stands."""
    header = content[start : start + _HEADER_BYTES]
    length = int.from_bytes(header[len(FRAME) : len(FRAME) + 8], "little")
    if header[: len(FRAME)] != FRAME or not 0 < length <= len(content) - start - _HEADER_BYTES:
        return None
    payload = buffer.slice(start + _HEADER_BYTES, length)
    return payload if hashlib.sha256(payload).digest() == header[len(FRAME) + 8 :] else None


class JournalWriter:
    """Appends rows to a new file of the journal; the file is made with the first row. A context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._file: BinaryIO | None = None

    def append(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """Write rows (the columns of RAW_SCHEMA) and wait until the disk has them. Raises OSError."""
        if not rows:
            return
        if self._file is None:
            self._file = new_file(self._folder, "journal", ".bin")
            self._file.write(MAGIC)
        try:
            for row in rows:  # a frame each, so that damage takes one completion
                payload = to_batch([row]).serialize()
                length, digest = len(payload).to_bytes(8, "little"), hashlib.sha256(payload).digest()
                self._file.write(FRAME + length + digest)
                self._file.write(payload)
            self._file.flush()
            os.fsync(self._file.fileno())
        except BaseException:  # never write behind a torn frame: the next rows get a new file
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
