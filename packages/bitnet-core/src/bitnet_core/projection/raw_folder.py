"""A folder of raw shards v1 (docs/raw-shard.md): each one's version, columns and metadata, which must fit the others',
and the index of their completions. D completions.
"""

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.projection.teacher_text import END_NAMES, ends_by_content
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, open_parquet, shard_files, whole
from bitnet_core.traces.target_kinds import TOPK, extra_columns, target_of

RAW_VERSION = 1
METADATA_KEY = b"bitnet_raw"
SHARDS = "shard_*.parquet"
MADE_BY = "the collect stage (bitnet run MANIFEST --from collect)"
INDEX_COLUMNS = ["prompt_idx", "sample_idx", "source_id", "kind", "messages", "prompt_ids", "token_ids"]

BATCH_COLUMNS = [
    *("text", "prompt_ids", "token_ids", "token_logprobs"),
    *("candidate_counts", "candidate_ids", "candidate_logprobs"),
]


# Candidates repeat: Parquet stores a dictionary, and it is read as one: what is done for a string is done once.
AS_DICTIONARY = ("token_bytes.list.element", "candidate_bytes.list.element")

CROSS_TOKENIZER = (
    "bring back the teacher's folder (teacher.model_folder in the raw metadata), or collect with a teacher that gives "
    "bytes, which traces for another tokenizer need; for a student with the teacher's own tokenizer set "
    "project.tokenizer to that tokenizer's folder"
)
"""The end of errors about ids whose tokenizer is not at hand."""


def raw_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise CoreError(f"{path}: not a raw shard (no bitnet_raw metadata)", f"remove the file, or run {MADE_BY} again")
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = metadata["version"]
        int(metadata["top_k"])
        _ = (metadata.get("teacher") or {}).get("model"), (metadata.get("target") or {}).get("kind")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoreError(f"{path}: its bitnet_raw metadata is malformed ({error!r})", f"run {MADE_BY} again") from error
    if version != RAW_VERSION:
        raise CoreError(
            f"{path}: raw shard version {version}, but this bitnet-core reads version {RAW_VERSION}",
            "install the bitnet-core that fits the bitnet-providers that wrote it",
        )
    return metadata


def check_same_teacher(first: Mapping[str, Any], first_path: Path, other: Mapping[str, Any], path: Path) -> None:
    def identity(metadata: Mapping[str, Any]) -> dict[str, Any]:
        teacher = metadata.get("teacher") or {}
        return {
            "teacher kind": metadata.get("kind"),
            "model": teacher.get("model"),
            "vocab_size": teacher.get("vocab_size"),
            "top_k": metadata["top_k"],
            "target": metadata.get("target") or TOPK,
            "test_from": metadata.get("test_from"),
        }

    ours, theirs = identity(first), identity(other)
    differing = [f"{name} {ours[name]!r} and {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise CoreError(
            f"{first_path} and {path.name} do not belong together ({'; '.join(differing)})",
            "keep the shards of one teacher and one K in a raw folder",
        )


def check_raw_columns(schema: pa.Schema, path: Path, extra: Sequence[str]) -> None:
    missing = sorted({*INDEX_COLUMNS, *BATCH_COLUMNS, *extra} - set(schema.names))
    if missing:
        raise CoreError(f"{path}: not a raw shard, it lacks the columns {', '.join(missing)}", f"run {MADE_BY} again")


def is_text_alone(table: pa.Table, token_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [completions]: a text and no tokens."""
    sizes: NDArray[Any] = pc.fill_null(pc.binary_length(table["text"]), 0).to_numpy()
    return (token_counts == 0) & (sizes > 0)


@attrs.frozen(eq=False)
class RawFolder:
    """All shards of a folder: their common metadata and the index of their completions. None is kept open."""

    paths: Sequence[Path]
    metadata: Mapping[str, Any]
    """Of the first shard; all shards agree on version, teacher kind, model, K and target."""
    target: Mapping[str, Any]
    """``kind`` and its settings; see `traces.target_kinds`"""
    file: NDArray[np.int32]
    """[D] which file the completion is in."""
    row_group: NDArray[np.int32]
    row: NDArray[np.int64]
    """[D] row within the row group."""
    prompt_idx: NDArray[np.int64]
    sample_idx: NDArray[np.int64]
    source_id: Sequence[str]
    kind: Sequence[str]
    prompt_lengths: NDArray[np.int64]
    """[D] tokens"""
    response_lengths: NDArray[np.int64]
    """[D] tokens"""
    without_ids: str | None
    """What has no ids ("token_ids", ...) so that identity can't project it; None where all are there."""
    has_ids: bool
    """In every completion, of tokens and of candidates."""
    has_bytes: bool
    """As `has_ids`."""
    end_names: frozenset[bytes]
    """Tokens that end a turn: the usual names, and what texts prove to be one and none of them says."""


def open_raw_folder(folder: Path) -> RawFolder:
    """Open every shard, check versions and that they belong together, and index their completions.

    Raises CoreError naming the file for a damaged, foreign or newer shard, for shards of different teachers, and for
    completions with neither ids nor bytes.
    """
    paths = shard_files(folder, SHARDS, MADE_BY)
    metadata = raw_metadata(open_parquet(paths[0], MADE_BY).schema_arrow, paths[0])
    for path in paths[1:]:
        check_same_teacher(metadata, paths[0], raw_metadata(open_parquet(path, MADE_BY).schema_arrow, path), path)
    target = target_of(metadata, paths[0])
    groups: list[_Group] = []
    lacking: set[str] = set()
    for number, path in enumerate(paths):
        file = open_parquet(path, MADE_BY, AS_DICTIONARY)
        check_raw_columns(file.schema_arrow, path, extra_columns(target))
        for group in range(file.num_row_groups):
            with damage_named(path, MADE_BY):
                groups.append(_read_group(file, path, number, group))
            lacking |= groups[-1].lacking
            _check_named(lacking, path)
    said, proved = Counter[bytes](), Counter[bytes](name for each in groups for name in each.proved_ends)
    for path in paths if proved else ():
        said.update(_times_said(open_parquet(path, MADE_BY, AS_DICTIONARY), path, proved))
    index = pa.concat_tables([each.index for each in groups]) if groups else None
    if index is None or index.num_rows == 0:
        raise CoreError(f"{folder}: the raw shards hold no completion", f"run {MADE_BY} again")
    counts = [each.index.num_rows for each in groups]
    return RawFolder(
        paths=paths,
        metadata=metadata,
        target=target,
        file=np.repeat(np.array([each.file for each in groups], dtype=np.int32), counts),
        row_group=np.repeat(np.array([each.number for each in groups], dtype=np.int32), counts),
        row=np.concatenate([np.arange(count) for count in counts]),
        prompt_idx=index["prompt_idx"].to_numpy().astype(np.int64),
        sample_idx=index["sample_idx"].to_numpy().astype(np.int64),
        source_id=_strings(index["source_id"]),
        kind=_strings(index["kind"]),
        prompt_lengths=np.concatenate([each.prompt_lengths for each in groups]),
        response_lengths=np.concatenate([each.response_lengths for each in groups]),
        without_ids=next((name for name in ("token_ids", "prompt_ids", "candidate_ids") if name in lacking), None),
        has_ids=not {"token_ids", "candidate_ids"} & lacking,
        has_bytes=not {"token_bytes", "candidate_bytes"} & lacking,
        end_names=END_NAMES | {name for name, times in proved.items() if said[name] == times},
    )


def _strings(column: pa.ChunkedArray) -> list[Any]:
    """A value that repeats is one object, so that it takes 8 bytes a row."""
    encoded = whole(column).dictionary_encode()
    distinct = encoded.dictionary.to_pylist()
    return [None if place is None else distinct[place] for place in encoded.indices.to_pylist()]


@attrs.frozen(eq=False)
class _Group:
    """What a row group says of its completions."""

    file: int
    number: int
    index: pa.Table
    prompt_lengths: NDArray[np.int64]
    response_lengths: NDArray[np.int64]
    lacking: set[str]
    proved_ends: Sequence[bytes]


def _read_group(file: pq.ParquetFile, path: Path, file_number: int, number: int) -> _Group:
    with damage_named(path, MADE_BY):
        table = file.read_row_group(number, columns=INDEX_COLUMNS)
        lacking = _lacking(file, number, table)
        has_ids = "token_ids" not in lacking
        tokens = table if has_ids else file.read_row_group(number, columns=_END_COLUMNS)
    lengths = list_lengths(whole(tokens["token_ids" if has_ids else "token_bytes"]))
    return _Group(
        file=file_number,
        number=number,
        index=table.select(["prompt_idx", "sample_idx", "source_id", "kind"]),
        prompt_lengths=list_lengths(whole(table["prompt_ids"])),
        response_lengths=lengths if has_ids else np.where(is_text_alone(tokens, lengths), 1, lengths),
        lacking=lacking,
        proved_ends=() if has_ids else tuple(_proved_ends(tokens)),
    )


def _check_named(lacking: Set[str], path: Path) -> None:
    for part in ("token", "candidate"):
        if {f"{part}_ids", f"{part}_bytes"} <= lacking:
            raise CoreError(
                f"{path}: there are {part}s with neither ids nor bytes (columns {part}_ids, "
                f"{part}_bytes), or some with one and some with the other",
                "collect again with a teacher that gives either",
            )


_END_COLUMNS = ["token_bytes", "text", "finish_reason"]


def _proved_ends(table: pa.Table) -> Iterator[bytes]:
    """The last tokens that are no part of their texts."""
    tokens = whole(table["token_bytes"])
    counts = list_lengths(tokens)
    values = tokens.flatten().cast(pa.binary())
    bytes_before = np.concatenate([[0], np.cumsum(np.asarray(pc.binary_length(values), dtype=np.int64))])
    stops = np.cumsum(counts)
    sizes: NDArray[Any] = pc.fill_null(pc.binary_length(table["text"]), 0).to_numpy()
    behind = bytes_before[stops] - bytes_before[stops - counts] - sizes
    for row in np.flatnonzero((counts > 0) & (behind > 0)).tolist():
        *others, last = values.slice(int(stops[row] - counts[row]), int(counts[row])).to_pylist()
        text, reason = table["text"][row].as_py(), table["finish_reason"][row].as_py()
        if ends_by_content(b"".join([*others, last]), last, text, reason):
            yield last


def _times_said(file: pq.ParquetFile, path: Path, names: Mapping[bytes, int]) -> Iterator[bytes]:
    """Each of these tokens as often as it stands anywhere."""
    wanted = pa.array(sorted(names), pa.binary())
    for group in range(file.num_row_groups):
        with damage_named(path, MADE_BY):
            table = file.read_row_group(group, columns=["token_bytes"])
            values = whole(table["token_bytes"]).flatten().cast(pa.binary())
        yield from values.filter(pc.is_in(values, wanted)).to_pylist()


def _lacking(file: pq.ParquetFile, group: int, table: pa.Table) -> set[str]:
    """Which of the columns with ids or bytes have a completion without them."""
    lacking = {"token_ids"} if table["token_ids"].null_count else set()
    nulls = table["prompt_ids"].is_null().to_numpy(zero_copy_only=False)
    if nulls.any() and any(messages != "[]" for messages in table["messages"].filter(nulls).to_pylist()):
        lacking.add("prompt_ids")
    counts = file.read_row_group(group, columns=["candidate_counts"])["candidate_counts"].combine_chunks()
    offered = np.zeros(len(counts), dtype=np.int64)
    np.add.at(offered, np.repeat(np.arange(len(counts)), list_lengths(counts)), flat_values(counts).astype(np.int64))
    for name in ("token_bytes", "candidate_ids", "candidate_bytes"):
        nulls = file.read_row_group(group, columns=[name])[name].is_null().to_numpy(zero_copy_only=False)
        if (nulls & (offered > 0) if name.startswith("candidate") else nulls).any():
            lacking.add(name)
    return lacking
