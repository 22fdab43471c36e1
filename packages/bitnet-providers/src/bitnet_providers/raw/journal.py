"""The journal: every completion that the teacher has finished, on disk before it counts.

A journal is a row of files ``journal-NNN-TOKEN.bin`` in the raw folder; a process writes one of its own and only
appends. The files of several machines go together in one folder: no two have the same name.
A file is the 8 bytes of MAGIC, then frames, one a completion: the 8 bytes of FRAME, the payload's length (uint64,
little-endian), its sha256, and the payload, an Arrow record batch (IPC message) of one row in the columns of the raw
shard. A frame that is damaged, or torn by a kill or a power cut, is told by its digest, and reading goes on at the next
FRAME. Nothing here is ever deleted: it may have been paid for. ``sample_idx`` counts the draws of one and the same
request.
"""

import asyncio
import contextlib
import hashlib
import json
import os
import re
import secrets
from array import array
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any, BinaryIO, TypeVar

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.completion_ids import Key, key_ids
from bitnet_providers.raw.no_answer import FILTER, Ending, ending_of
from bitnet_providers.raw.write_shard import RAW_SCHEMA
from bitnet_providers.spending.token_counts import Tokens, from_usage, told_tokens


def new_file(folder: Path, name: str, suffix: str, buffering: int = -1) -> Any:
    """Open a file ``name-NNN-TOKEN.suffix`` to write bytes. Raises OSError.

    NNN counts on, so that `in_order` has the files as they were begun; TOKEN is random, so that no two
    machines give the same name.
    """
    folder.mkdir(parents=True, exist_ok=True)
    number = len(list(folder.glob(f"{name}-*{suffix}")))
    return (folder / f"{name}-{number:03d}-{secrets.token_hex(4)}{suffix}").open("xb", buffering=buffering)


def in_order(files: Iterable[Path]) -> list[Path]:
    """Numbers in names count as numbers: ``journal-1000`` comes behind ``journal-999``."""
    return sorted(files, key=_by_number)


def _by_number(file: Path) -> tuple[list[str | int], str]:
    parts = re.split("([0-9]+)", file.name)
    return [int(part) if at % 2 else part for at, part in enumerate(parts)], file.name


FILES = "journal-*.bin"


MAGIC = b"bitnetJ3"


FRAME = b"\xfebnJ2\r\n\xff"
"""Begins every frame. No UTF-8 holds it; where it stands in a payload by chance, the digest behind it is wrong."""


_HEADER_BYTES = len(FRAME) + 8 + 32
_BLOCK = 2**20


@attrs.frozen
class JournalRow:
    """Where a completion stands."""

    batch: pa.RecordBatch
    index: int


def tokens_of(row: JournalRow, bound: Tokens | None = None) -> Tokens:
    """What the provider counted for a completion of the journal; `bound` (None: the bytes) where it counted nothing."""
    names = ("usage", "prompt_tokens", "finish_reason", "token_logprobs", "messages", "text")
    values = {name: row.batch.column(name)[row.index].as_py() for name in names}
    usage = json.loads(values["usage"]) if values["usage"] else {}
    bound = bound or Tokens(len(values["messages"].encode()), len(values["text"]))
    response = told_tokens(values["token_logprobs"])
    return from_usage(usage, values["prompt_tokens"], response, bound, scored=values["finish_reason"] == "scored")


class Rows(Mapping[Key, JournalRow]):
    """The completions of a raw folder by their keys, in the order in which they were written.

    They stay on the disk and are read, and checked, when they are asked for: in memory each takes about 40 bytes.
    """

    def __init__(self, paths: Sequence[Path] = (), places: "_Places | None" = None) -> None:
        """`places`: of several with one key the first counts that no filter cut."""
        places = _Places() if places is None else places
        self._paths = tuple(paths)
        self.endings = tuple(places.known_endings)
        """The distinct endings; `ending_numbers` says which is each row's."""
        self._filtered_endings = [number for number, (reason, _) in enumerate(self.endings) if reason == FILTER]
        ids = np.array(places.ids, np.uint64).reshape(-1, 2)
        filtered = np.isin(np.array(places.endings, np.int32), self._filtered_endings)
        order = np.lexsort((filtered, ids[:, 1], ids[:, 0]))  # stable: the first of equal ones stays the first
        new = np.ones(len(order), bool)
        new[1:] = (ids[order[1:]] != ids[order[:-1]]).any(axis=1)
        kept = np.sort(order[new])
        self._files, self._starts, self.ending_numbers = (
            np.array(column)[kept] for column in (places.files, places.starts, places.endings)
        )
        ids = ids[kept]
        self._order = np.lexsort((ids[:, 1], ids[:, 0])).astype(np.int32)
        self._ids = ids[self._order]

    def find(self, ids: NDArray[np.uint64]) -> NDArray[np.int64]:
        """[n, 2] of `key_ids` → [n] the rows that have these keys; -1: none has."""
        if not len(self):
            return np.full(len(ids), -1)
        places = np.minimum(np.searchsorted(self._ids[:, 0], ids[:, 0]), len(self) - 1)
        same = self._ids[places] == ids
        for at in np.flatnonzero(same[:, 0] & ~same[:, 1]):  # two keys that begin alike
            places[at] = np.searchsorted(self._ids[:, 0], ids[at, 0], "right") - 1
            while not (self._ids[places[at]] == ids[at]).all() and places[at] > 0:
                places[at] -= 1
            same[at] = self._ids[places[at]] == ids[at]
        return np.where(same.all(axis=1), self._order[places], -1)

    def is_filtered(self, numbers: NDArray[np.int64]) -> NDArray[np.bool_]:
        """[n] rows → [n] whether a content filter cut the answer, or left it out; -1 (no row) is none."""
        endings = np.append(self.ending_numbers, -1)[numbers]
        return np.isin(endings, self._filtered_endings)

    def row(self, number: int) -> JournalRow:
        """Read one from the disk. Raises ProviderError where it is no longer what it was."""
        path, start = self._paths[self._files[number]], int(self._starts[number])
        with path.open("rb") as file:
            payload = _payload(file, start, path.stat().st_size)
        if payload is None:
            raise ProviderError(
                f"{path}: a completion (at byte {start:,}) has been damaged since this run began",
                "run again: it is found, told, and asked again",
            )
        return JournalRow(_batch(payload), 0)

    def __getitem__(self, key: Key) -> JournalRow:
        number = int(self.find(key_ids([key]))[0])
        if number < 0:
            raise KeyError(key)
        return self.row(number)

    def __contains__(self, key: object) -> bool:
        return isinstance(key, tuple) and bool(self.find(key_ids([key]))[0] >= 0)

    def __iter__(self) -> Iterator[Key]:
        return (_key(self.row(number).batch) for number in range(len(self)))

    def __len__(self) -> int:
        return len(self._starts)


@attrs.define
class _Places:
    """Where rows stand, while files are read."""

    files: "array[int]" = attrs.Factory(lambda: array("i"))
    starts: "array[int]" = attrs.Factory(lambda: array("q"))
    ids: "array[int]" = attrs.Factory(lambda: array("Q"))
    endings: "array[int]" = attrs.Factory(lambda: array("i"))
    known_endings: dict[Ending, int] = attrs.Factory(dict)

    def add(self, file: int, start: int, batch: pa.RecordBatch) -> None:
        self.files.append(file)
        self.starts.append(start)
        self.ids.extend(key_ids([_key(batch)])[0].tolist())
        ending = ending_of(batch.column("finish_reason")[0].as_py(), batch.column("repairs")[0].as_py())
        self.endings.append(self.known_endings.setdefault(ending, len(self.known_endings)))


def _key(batch: pa.RecordBatch) -> Key:
    return batch.column("request_sha256")[0].as_py(), batch.column("sample_idx")[0].as_py()


@attrs.frozen
class Journal:
    """What the journal of a raw folder holds."""

    rows: Rows
    damaged: int
    """Frames that are not what was written, a torn one too; each was one completion. A file's beginning counts, too."""


def read_journal(folder: Path, but_not: Collection[Path] = ()) -> Journal:
    """Every completion of a raw folder by its key; of several with one key the first that no filter cut.

    `but_not` are files to leave out.

    Raises ProviderError for a file of another version.
    """
    paths = in_order(set(folder.glob(FILES)).difference(but_not))
    places = _Places()
    damaged = 0
    for number, path in enumerate(paths):
        before = len(places.starts)
        for start, payload in _frames(path):
            if payload is None:
                damaged += 1
            else:
                places.add(number, start, _batch(payload))
        if not _begins_well(path):
            damaged += 1
            if len(places.starts) == before:
                raise ProviderError(
                    f"{path} was not written by this version of bitnet-providers", "move it out of the folder"
                )
    return Journal(Rows(paths, places), damaged)


def _batch(payload: bytes) -> pa.RecordBatch:
    return pa.ipc.read_record_batch(pa.py_buffer(payload), RAW_SCHEMA)


def _begins_well(path: Path) -> bool:
    """Also where nothing stands behind the beginning."""
    with path.open("rb") as file:
        return file.read(len(MAGIC)) == MAGIC or not file.read(1)


def _frames(path: Path) -> Iterator[tuple[int, bytes | None]]:
    """(where it stands, payload) for each frame of a file; None: it is damaged.

    Read, not mapped: what was read of a mapped file counts as this process's memory.
    """
    size, start = path.stat().st_size, len(MAGIC)
    with path.open("rb") as file:
        while start < size:
            payload = _payload(file, start, size)
            if payload is not None:
                yield start, payload
                start += _HEADER_BYTES + len(payload)
                continue
            end = _next_mark(file, start + 1, size)
            # File systems fill a file's end with zeros after a power cut: nothing was written there.
            if any(block.strip(b"\0") for block in _blocks(file, start, end)):
                yield start, None
            start = end


def _payload(file: BinaryIO, start: int, size: int) -> bytes | None:
    """The payload of the frame at `start`; None where no whole frame stands."""
    file.seek(start)
    header = file.read(_HEADER_BYTES)
    length = int.from_bytes(header[len(FRAME) : len(FRAME) + 8], "little")
    begin, digest = start + _HEADER_BYTES, header[len(FRAME) + 8 :]
    if header[: len(FRAME)] != FRAME or not 0 < length <= size - begin:
        return None
    if length > 16 * _BLOCK:  # a damaged length, most likely: not all of it into memory to find out
        found = hashlib.sha256()
        for block in _blocks(file, begin, begin + length):
            found.update(block)
        if found.digest() != digest:
            return None
        file.seek(begin)
    payload = file.read(length)
    return payload if hashlib.sha256(payload).digest() == digest else None


def _next_mark(file: BinaryIO, start: int, size: int) -> int:
    """Where the next frame may begin; `size`: nowhere."""
    place, rest = start, b""
    for block in _blocks(file, start, size):
        found = (rest + block).find(FRAME)
        if found >= 0:
            return place - len(rest) + found
        place += len(block)
        rest = (rest + block)[-len(FRAME) + 1 :]
    return size


def _blocks(file: BinaryIO, start: int, end: int) -> Iterator[bytes]:
    file.seek(start)
    while start < end and (block := file.read(min(_BLOCK, end - start))):
        yield block
        start += len(block)


class JournalWriter:
    """Appends rows to a new file of the journal; the file is made with the first row. A context manager."""

    def __init__(self, folder: Path, file_bytes: int | None = None) -> None:
        """`file_bytes`: a file that has so many is followed by a new one."""
        self._folder, self._file_bytes = folder, file_bytes
        self._file: BinaryIO | None = None

    def append(self, rows: Sequence[pa.RecordBatch]) -> None:
        """Write rows (`row_batch` of each) and wait until the disk has them. Raises OSError."""
        if not rows:
            return
        if self._file is None:
            self._file = new_file(self._folder, "journal", ".bin")
            self._file.write(MAGIC)
        try:
            for row in rows:  # a frame each, so that damage takes one completion
                payload = row.serialize()
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
        if self._file_bytes is not None and self._file.tell() >= self._file_bytes:
            self.close()

    def close(self) -> None:
        """Nothing more goes into the file; what is appended later begins a new one."""
        if self._file is not None:
            file, self._file = self._file, None
            file.close()

    def __enter__(self) -> "JournalWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


Result = TypeVar("Result")


@attrs.frozen(eq=False)
class _Waiting:
    """A completion that somebody has handed over."""

    row: pa.RecordBatch
    tokens: int
    kept: "asyncio.Future[None]"


class GroupCommit:
    """Takes rows from the requests and keeps them: many of them, one fsync, in a thread; one event loop's.

    Who hands one over waits until the disk has it, and asks nothing new before. So a kill takes no more completions
    than there are requests under way (`collect.concurrency`), and a slow disk slows the questions down.
    """

    def __init__(self, journal: JournalWriter, sync: Callable[[], None], on_kept: Callable[[int, int], None]) -> None:
        """`sync` waits until the disk has the ledger's lines; it runs in a thread.

        `on_kept` hears of each group: completions, response tokens. Only then do they count.
        """
        self._journal, self._sync, self._on_kept = journal, sync, on_kept
        self._arrived: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "journal")
        self._group: list[_Waiting] = []
        self._saving: Future[None] | None = None

    async def put(self, row: pa.RecordBatch, tokens: int) -> None:
        """Hand over a finished completion: from the call on it will be kept. Then wait until the disk has it."""
        kept = asyncio.get_running_loop().create_future()
        self._arrived.put_nowait(_Waiting(row, tokens, kept))
        await kept

    async def between_groups(self, work: Callable[[], Result]) -> Result:
        """Do something with the journal's files, in the thread, while nothing is written."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def end(self) -> None:
        """Nothing more will come."""
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Keep what comes until `end`. Raises OSError for a disk that takes no more."""
        more = True
        while more:
            first = await self._arrived.get()
            arrived = [first, *self._rest()]
            more = None not in arrived
            self._group = [each for each in arrived if each is not None]
            self._saving = self._thread.submit(self._save, self._group)
            await asyncio.shield(asyncio.wrap_future(self._saving))
            kept, self._group, self._saving = self._group, [], None
            if kept:
                self._on_kept(len(kept), sum(each.tokens for each in kept))
            for each in kept:
                if not each.kept.done():  # who waited may have been cancelled
                    each.kept.set_result(None)

    def close(self) -> None:
        """After a stop or a failure too: keep what has arrived, and let the thread go.

        Raises nothing: who is told of a failing disk is told by `run`.
        """
        with contextlib.suppress(OSError):
            if self._saving is not None:
                self._saving.result()
                self._group = []
        self._group += [each for each in self._rest() if each is not None]
        with contextlib.suppress(OSError):
            self._thread.submit(self._save, self._group).result()
        self._thread.shutdown()

    def _rest(self) -> list[_Waiting | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    def _save(self, group: Sequence[_Waiting]) -> None:
        self._journal.append([each.row for each in group])
        self._sync()
