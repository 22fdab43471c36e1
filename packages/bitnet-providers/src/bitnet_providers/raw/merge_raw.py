"""Raw folders of several machines into one, by prompt and sample. Memory: one shard, and some rows of each open file.

Files whose places overlap are read side by side: a folder that one machine wrote is one open file, however large it is.
"""

import heapq
import itertools
import json
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from bitnet_providers.contract import ProviderError
from bitnet_providers.raw import journal, ledger
from bitnet_providers.raw.write_shard import METADATA_KEY, RAW_SCHEMA, VERSION, shard_path, write_raw_shard

SHARDS = "shard_*.parquet"
COMPLETIONS_PER_SHARD = 512
AT_ONCE = 64
"""Completions of a file in memory."""
OF_TEACHER = ("model", "fingerprint", "vocab_size", "tokenizer_sha256", "template_sha256")
"""What two machines' teachers have in common; their folders, devices and addresses may differ."""

Place = tuple[int, int]
"""prompt_idx, sample_idx"""


@attrs.frozen
class _File:
    path: Path
    folder: int
    """Which of the folders: of two equal completions the first folder's is kept."""
    first: Place
    last: Place
    in_order: bool


@attrs.frozen(eq=False)
class _Row:
    place: Place
    file: _File
    batch: pa.RecordBatch
    """Of one row."""

    def value(self, column: str) -> Any:
        return self.batch[column][0].as_py()


def raw_folder(run_or_folder: Path) -> Path:
    """The folder of raw shards of a run folder, or the folder itself."""
    raw = run_or_folder / "raw"
    return raw if raw.is_dir() else run_or_folder


def merge_raw(folders: Sequence[Path], out: Path, per_shard: int = COMPLETIONS_PER_SHARD) -> dict[str, Any]:
    """Write all completions of raw folders into `out`, once each, in order; returns counts (plain JSON values).

    The shards are those that one machine would have written. Journals and ledgers are copied beside them, so that a
    collection goes on in `out`. A completion that stands twice, by place and request key, is kept once (the first
    folder's): ``duplicates``, and ``differing`` of them with another answer. Raises ProviderError, and leaves nothing,
    where the folders are not of one manifest (teacher, sampling, seed, K, targets; a place with two requests), for a
    damaged shard, and where `out` holds shards or journals already.
    """
    places = [raw_folder(folder) for folder in folders]
    if any(found for pattern in (SHARDS, journal.FILES, ledger.FILES) for found in out.glob(pattern)):
        raise ProviderError(f"{out}: holds raw shards or journals already", "name an empty folder with --out")
    files = [_looked_at(path, number) for number, folder in enumerate(places) for path in _shards(folder)]
    metadata = _common_metadata([file.path for file in files])
    counts = {"completions": 0, "duplicates": 0, "differing": 0}
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=out) as partial:
            rows = _distinct(
                heapq.merge(*map(_rows, _chains(files)), key=lambda row: (row.place, row.file.folder)), counts
            )
            number = 0
            while some := list(itertools.islice(rows, per_shard)):
                table = pa.Table.from_batches([row.batch for row in some], RAW_SCHEMA)
                write_raw_shard(shard_path(Path(partial), number), table.combine_chunks(), metadata)
                counts["completions"] += len(some)
                number += 1
            paid = _copy_what_was_paid(places, Path(partial))
            for path in sorted(Path(partial).iterdir()):
                path.replace(out / path.name)
    except OSError as error:
        raise ProviderError(f"{out}: cannot be written ({error})", "free space or name another folder") from error
    return {"kind": "raw", "folders": len(folders), "shards": number, **counts, "journals_and_ledgers": paid}


def _shards(folder: Path) -> list[Path]:
    found = journal.in_order(folder.glob(SHARDS))
    if not found:
        raise ProviderError(f"{folder}: no {SHARDS} in it", "name a run folder or a folder of raw shards")
    return found


def _looked_at(path: Path, folder: int) -> _File:
    with _damage_named(path):
        with pq.ParquetFile(str(path), page_checksum_verification=True) as file:
            table = file.read(columns=["prompt_idx", "sample_idx"])
        prompt, sample = (table[name].to_numpy().astype(np.int64) for name in ("prompt_idx", "sample_idx"))
        order = np.lexsort((sample, prompt))
        in_order = bool((order == np.arange(len(order))).all())
        ends = [(int(prompt[i]), int(sample[i])) for i in (order[[0, -1]] if len(order) else ())] or [(0, 0)]
    return _File(path, folder, ends[0], ends[-1], in_order)


class _damage_named:  # noqa: N801 -- used as a function
    """Turn what a broken file raises into a ProviderError that names it."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> None:
        if not self._path.is_file():  # pyarrow waits for ever for what a pipe will say
            raise ProviderError(f"{self._path}: not a file", "remove it from the folder")

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, (pa.ArrowException, OSError, LookupError, TypeError, ValueError)):
            fix = "restore it from a copy, or leave it out and collect again"
            raise ProviderError(f"{self._path}: can't be read as a raw shard ({error})", fix) from error


def _common_metadata(paths: Sequence[Path]) -> Mapping[str, Any]:
    """Of the first file. Raises ProviderError where another manifest made one of the others."""
    first: dict[str, Any] = {}
    for path in paths:
        with _damage_named(path), pq.ParquetFile(str(path)) as file:
            found = json.loads((file.schema_arrow.metadata or {})[METADATA_KEY])
            named = _identity(found)
        first = first or found
        differing = [
            f"{name} {ours!r} and {named[name]!r}" for name, ours in _identity(first).items() if ours != named[name]
        ]
        if differing:
            raise ProviderError(
                f"{paths[0]} and {path} are not of one manifest ({'; '.join(differing)})",
                "merge only what one manifest collected, with the same teacher, sampling and run.seed",
            )
        if found["version"] != VERSION:
            raise ProviderError(
                f"{path}: raw shard version {found['version']}, this reads {VERSION}",
                "install the bitnet that wrote it",
            )
    return first


def _identity(metadata: Mapping[str, Any]) -> dict[str, Any]:
    names = ("version", "kind", "sampling", "top_k", "target", "template", "test_from")
    teacher = metadata.get("teacher") or {}
    return {name: metadata.get(name) for name in names} | {f"teacher {name}": teacher.get(name) for name in OF_TEACHER}


def _chains(files: Sequence[_File]) -> list[list[_File]]:
    """As few rows of files as there can be, each with rising places: what must be open at once."""
    chains: list[list[_File]] = []
    ends: list[tuple[Place, int]] = []
    for file in sorted(files, key=lambda file: (file.first, file.folder)):
        if ends and ends[0][0] < file.first:
            number = heapq.heappop(ends)[1]
        else:
            number = len(chains)
            chains.append([])
        chains[number].append(file)
        heapq.heappush(ends, (file.last, number))
    return chains


def _rows(files: Sequence[_File]) -> Iterator[_Row]:
    """The completions of one file after the other, by place."""
    for file in files:
        with _damage_named(file.path), pq.ParquetFile(str(file.path), page_checksum_verification=True) as parquet:
            missing = [field for field in RAW_SCHEMA if field.name not in parquet.schema_arrow.names]
            if any(not field.nullable for field in missing):
                raise LookupError(f"it lacks {', '.join(field.name for field in missing)}")
            if file.in_order:
                batches = parquet.iter_batches(batch_size=AT_ONCE, use_threads=False)
            else:
                by_place = parquet.read().sort_by([("prompt_idx", "ascending"), ("sample_idx", "ascending")])
                batches = iter(by_place.combine_chunks().to_batches())
            for batch in batches:
                for field in missing:
                    batch = batch.append_column(field, pa.nulls(batch.num_rows, field.type))
                batch = batch.select(RAW_SCHEMA.names).cast(RAW_SCHEMA)
                keys = zip(batch["prompt_idx"].to_pylist(), batch["sample_idx"].to_pylist(), strict=True)
                for number, place in enumerate(keys):
                    yield _Row(place, file, batch.slice(number, 1))


def _distinct(rows: Iterator[_Row], counts: dict[str, int]) -> Iterator[_Row]:
    """Without those that stand there already; counts them. Raises ProviderError for prompts that are not the same."""
    last: _Row | None = None
    for row in rows:
        if last is not None and row.place[0] == last.place[0]:
            same_place = row.place == last.place
            for column in ("messages", *(("request_sha256",) if same_place else ())):
                if row.value(column) != last.value(column):
                    what = "requests" if column == "request_sha256" else "conversations"
                    raise ProviderError(
                        f"{last.file.path} and {row.file.path} are not of one manifest: prompt_idx {row.place[0]} has "
                        f"two {what}",
                        "merge only what one manifest collected from the same prompts; join imported dumps before "
                        "`bitnet traces import`",
                    )
            if same_place:
                counts["duplicates"] += 1
                counts["differing"] += row.value("text") != last.value("text")
                continue
        last = row
        yield row


def _copy_what_was_paid(folders: Sequence[Path], to: Path) -> int:
    """Journals and ledgers. A name holds a random token: two of one name are one file, the shorter an older copy."""
    found: dict[str, Path] = {}
    for path in (path for folder in folders for kind in (journal.FILES, ledger.FILES) for path in folder.glob(kind)):
        if path.name not in found or path.stat().st_size > found[path.name].stat().st_size:
            found[path.name] = path
    for name, path in found.items():
        shutil.copy2(path, to / name)
    return len(found)
