"""KD shards of one projection that lie in several folders, into one. Memory: a row group of each file that overlaps.

Two projections are never put into one: each has split its own documents, and a text that repeats in both could be
learnt from and measured on. Raw folders are merged instead, and projected once.
"""

import heapq
import itertools
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.dataset import common_metadata
from bitnet_core.traces.parquet import damage_named, open_parquet
from bitnet_core.traces.schema import SHARDS, kd_schema, trace_files
from bitnet_core.traces.write_shards import ROW_GROUP_ROWS, ShardFiles

Place = tuple[int, int]
"""prompt_idx, sample_idx"""


@attrs.frozen(eq=False)
class _Document:
    place: Place
    path: Path
    rows: pa.Table


def merge_kd(
    folders: Sequence[Path], out: Path, rows_per_shard: int = ProjectConfig().rows_per_shard
) -> dict[str, Any]:
    """Write all documents of KD folders into `out`, once each, in order; returns counts (plain JSON values).

    Raises CoreError, and leaves nothing, for shards of two projections, for a document that stands twice with
    different rows, for damaged files, and where `out` holds shards already.
    """
    if any(out.glob(SHARDS)):
        raise CoreError(f"{out}: holds KD shards already", "name an empty folder with --out")
    files = [path for folder in folders for path in trace_files(folder)]
    metadata = _one_projection(files)
    counts = {"documents": 0, "positions": 0, "duplicates": 0}
    columns = kd_schema(metadata.target)
    try:
        out.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".merge-", dir=out) as partial:
            with ShardFiles(Path(partial), metadata, rows_per_shard) as shards:
                documents = heapq.merge(
                    *(_documents(chain, columns) for chain in _chains(files)), key=lambda document: document.place
                )
                for some in _row_groups(_distinct(documents, counts)):
                    lengths = np.array([document.rows.num_rows for document in some])
                    shards.write(pa.concat_tables([document.rows for document in some]).combine_chunks(), lengths)
                    counts["documents"] += len(some)
                    counts["positions"] += int(lengths.sum())
            for path in shards.files:
                path.replace(out / path.name)
    except OSError as error:
        raise CoreError(f"{out}: cannot be written ({error})", "free space or name another folder") from error
    return {"kind": "kd", "folders": len(folders), "shards": len(shards.files), **counts}


def _one_projection(files: Sequence[Path]) -> schema.KDMetadata:
    try:
        metadata = common_metadata(files)
    except CoreError as error:
        if "different projections" not in error.why:
            raise
        raise CoreError(error.why, "merge the raw folders (--kind raw) and project once") from error
    if metadata is None or not metadata.projection.get("id"):
        raise CoreError(
            f"{files[0]}: does not say which projection made it", "merge the raw folders (--kind raw) and project once"
        )
    return metadata


def _chains(files: Sequence[Path]) -> list[list[Path]]:
    """As few rows of files as there can be, each with rising documents: what must be open at once."""
    chains: list[list[Path]] = []
    ends: list[tuple[Place, int]] = []
    for first, last, path in sorted(filter(None, map(_ends, files))):
        if ends and ends[0][0] < first:
            number = heapq.heappop(ends)[1]
        else:
            number = len(chains)
            chains.append([])
        chains[number].append(path)
        heapq.heappush(ends, (last, number))
    return chains


def _ends(path: Path) -> tuple[Place, Place, Path] | None:
    """The first and the last document of a file; None where it has no row."""
    file = open_parquet(path, schema.MADE_BY)
    groups = [group for group in range(file.num_row_groups) if file.metadata.row_group(group).num_rows]
    if not groups:
        return None
    with damage_named(path, schema.MADE_BY):
        first, last = (
            file.read_row_group(group, columns=["prompt_idx", "sample_idx"]) for group in (groups[0], groups[-1])
        )
        return _place(first, 0), _place(last, last.num_rows - 1), path


def _place(table: pa.Table, row: int) -> Place:
    return table["prompt_idx"][row].as_py(), table["sample_idx"][row].as_py()


def _documents(files: Sequence[Path], columns: pa.Schema) -> Iterator[_Document]:
    """Of one file after the other; a document may go on in the next row group."""
    for path in files:
        file = open_parquet(path, schema.MADE_BY)
        rest: pa.Table | None = None
        for group in range(file.num_row_groups):
            with damage_named(path, schema.MADE_BY):
                table = file.read_row_group(group, use_threads=False)
                if "in_ce" not in table.column_names:  # version 1
                    table = table.append_column("in_ce", pa.array(np.ones(table.num_rows, dtype=bool)))
                table = table.select(columns.names).cast(columns)
            table = table if rest is None else pa.concat_tables([rest, table])
            starts = _starts(table)
            for start, stop in itertools.pairwise(starts):
                yield _Document(_place(table, start), path, table.slice(start, stop - start))
            rest = table.slice(starts[-1]) if len(starts) else None
        if rest is not None:
            yield _Document(_place(rest, 0), path, rest)


def _starts(table: pa.Table) -> list[int]:
    """The rows with which documents begin."""
    keys = np.stack([table[name].to_numpy().astype(np.int64) for name in ("prompt_idx", "sample_idx")])
    changes = np.flatnonzero((np.diff(keys) != 0).any(axis=0)) + 1
    return [0, *changes.tolist()] if table.num_rows else []


def _distinct(documents: Iterable[_Document], counts: dict[str, int]) -> Iterator[_Document]:
    last: _Document | None = None
    for each in documents:
        if last is not None and each.place < last.place:
            raise CoreError(
                f"{each.path}: documents are not in order (prompt_idx {each.place[0]})",
                "find the damage with `bitnet traces validate`",
            )
        if last is not None and each.place == last.place:
            if _as_written(each.rows) != _as_written(last.rows):
                raise CoreError(
                    f"{last.path} and {each.path}: prompt_idx {each.place[0]}, sample_idx {each.place[1]} stands in "
                    "both with different rows",
                    "find the damage with `bitnet traces validate`, and leave the damaged folder out",
                )
            counts["duplicates"] += 1
            continue
        last = each
        yield each


def _as_written(rows: pa.Table) -> list[Any]:
    """Comparable: NaN as text, as Arrow would hold two of them to differ."""
    return [repr(rows[name].to_pylist()) for name in rows.column_names]


def _row_groups(documents: Iterable[_Document]) -> Iterator[list[_Document]]:
    """As many documents as fit in a row group; a longer one alone. The projection writes so."""
    some: list[_Document] = []
    rows = 0
    for each in documents:
        if some and rows + each.rows.num_rows > ROW_GROUP_ROWS:
            yield some
            some, rows = [], 0
        some.append(each)
        rows += each.rows.num_rows
    if some:
        yield some
