"""Reader of raw shards v1 (docs/raw-shard.md): what the teacher said, one row a completion.

Everything comes back columnar, as numpy views of Arrow's buffers. D completions, P prompt tokens over all of them,
T response tokens over all of them, C candidates over all response tokens. Ragged columns are flat with offsets.
A completion of which only the text is known (no log-probabilities were given) is read as one token over all of it: it
goes the way of every other one, and each of the student's tokens trains by cross-entropy alone.
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


def is_text_alone(table: pa.Table, token_counts: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [completions]: a text and no tokens."""
    sizes: NDArray[Any] = pc.fill_null(pc.binary_length(table["text"]), 0).to_numpy()
    return (token_counts == 0) & (sizes > 0)


def texts_as_tokens(table: pa.Table) -> pa.Table:
    """The same completions; those without tokens have one: the text, of unknown log-probability, no candidates."""
    tokens = whole(table["token_bytes"])
    counts = list_lengths(tokens)
    which = is_text_alone(table, counts)
    if not which.any():
        return table
    values = tokens.flatten().cast(pa.binary())
    texts = whole(table["text"]).cast(pa.binary()).filter(pa.array(which))
    place = (np.cumsum(counts) - counts)[which]
    order = np.insert(np.arange(len(values)), place, len(values) + np.arange(len(texts)))
    added = {
        "token_bytes": pa.concat_arrays([values, texts]).take(pa.array(order)),
        "token_logprobs": _inserted(table["token_logprobs"], place, np.nan),
        "candidate_counts": _inserted(table["candidate_counts"], place, 0),
    }
    offsets = pa.array(np.concatenate([[0], np.cumsum(np.where(which, 1, counts))]), pa.int32())
    for name, flat in added.items():
        table = table.set_column(table.schema.get_field_index(name), name, pa.ListArray.from_arrays(offsets, flat))
    return table


def _inserted(column: pa.ChunkedArray, place: NDArray[np.int64], value: float) -> pa.Array:
    flat = whole(column).flatten()
    return pa.array(np.insert(flat.to_numpy(zero_copy_only=False), place, value), flat.type)


RAW_VERSION = 1


METADATA_KEY = b"bitnet_raw"


SHARDS = "shard_*.parquet"


MADE_BY = "the collect stage (bitnet run MANIFEST --from collect)"


_INDEX_COLUMNS = ["prompt_idx", "sample_idx", "source_id", "kind", "messages", "prompt_ids", "token_ids"]


_BATCH_COLUMNS = [
    *("text", "prompt_ids", "token_ids", "token_logprobs"),
    *("candidate_counts", "candidate_ids", "candidate_logprobs"),
]


_ANSWER_COLUMNS = [
    *("text", "messages", "finish_reason", "token_ids", "token_bytes", "token_logprobs"),
    *("candidate_counts", "candidate_ids", "candidate_bytes", "candidate_logprobs"),
]


# Candidates repeat: Parquet stores a dictionary, and it is read as one: what is done for a string is done once.
_AS_DICTIONARY = ("token_bytes.list.element", "candidate_bytes.list.element")


CROSS_TOKENIZER = (
    "bring back the teacher's folder (teacher.model_folder in the raw metadata), or collect with a teacher that gives "
    "bytes, which traces for another tokenizer need; for a student with the teacher's own tokenizer set "
    "project.tokenizer to that tokenizer's folder"
)
"""The end of errors about ids whose tokenizer is not at hand."""


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


@attrs.frozen(eq=False)
class RawAnswers:
    """Some completions as bytes or ids, whichever the teacher gave: what the byte-aligned projection reads."""

    text: Sequence[bytes]
    messages: Sequence[str]
    """[D] JSON"""
    finish_reason: Sequence[str]
    response_lengths: NDArray[np.int64]
    """[D]"""
    tokens: pa.Array
    """[T] int32 ids, or binary (plain or as a dictionary)"""
    token_logprobs: NDArray[np.float32]
    """[T]"""
    candidate_counts: NDArray[np.int64]
    """[T]"""
    candidates: pa.Array
    """[C] of the type of `tokens`; null where the teacher named a candidate without its bytes"""
    candidate_logprobs: NDArray[np.float32]
    """[C]"""


@attrs.frozen(eq=False)
class RawBatch:
    """Some completions, columnar. Log-probabilities in nats as the teacher gave them, sentinels included."""

    text: Sequence[bytes]
    prompt_lengths: NDArray[np.int64]
    """[D]"""
    prompt_ids: NDArray[np.int32]
    """[P]"""
    response_lengths: NDArray[np.int64]
    """[D]"""
    token_ids: NDArray[np.int32]
    """[T]"""
    token_logprobs: NDArray[np.float32]
    """[T]"""
    candidate_counts: NDArray[np.int64]
    """[T]"""
    candidate_ids: NDArray[np.int32]
    """[C]"""
    candidate_logprobs: NDArray[np.float32]
    """[C]"""
    extra: Mapping[str, NDArray[np.float32]]
    """[T] each: the columns that come with the target's kind"""


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
        file = open_parquet(path, MADE_BY, _AS_DICTIONARY)
        check_raw_columns(file.schema_arrow, path, extra_columns(target))
        for group in range(file.num_row_groups):
            with damage_named(path, MADE_BY):
                groups.append(_read_group(file, path, number, group))
            lacking |= groups[-1].lacking
            _check_named(lacking, path)
    said, proved = Counter[bytes](), Counter[bytes](name for each in groups for name in each.proved_ends)
    for path in paths if proved else ():
        said.update(_times_said(open_parquet(path, MADE_BY, _AS_DICTIONARY), path, proved))
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
        table = file.read_row_group(number, columns=_INDEX_COLUMNS)
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


_AT_ONCE = 4096
"""Conversations in memory."""


class RawReader:
    """Reads chosen completions of a `RawFolder`; keeps the last row group, where the next ones usually lie."""

    def __init__(self, folder: RawFolder) -> None:
        self._folder = folder
        self._kept: tuple[tuple[int, int], pa.Table] | None = None
        self._open: tuple[int, pq.ParquetFile] | None = None

    def read(self, completions: NDArray[np.int64]) -> RawBatch:
        """The completions at these positions of the index, in this order. Raises CoreError for inconsistent columns."""
        columns = [*_BATCH_COLUMNS, *extra_columns(self._folder.target)]
        return _batch(self._rows(completions, columns), self._folder.paths[int(self._folder.file[completions[0]])])

    def read_answers(self, completions: NDArray[np.int64]) -> RawAnswers:
        """The same, as bytes where every completion has them, else as ids."""
        folder = self._folder
        table = self._rows(completions, _ANSWER_COLUMNS)
        return _answers(table, folder.paths[int(folder.file[completions[0]])], folder.has_bytes)

    def conversations(self, completions: NDArray[np.int64]) -> Iterator[tuple[str, bytes]]:
        """(messages as JSON, the response's bytes) of each of these, in this order. For a reader of its own."""
        for start in range(0, len(completions), _AT_ONCE):
            table = self._rows(completions[start : start + _AT_ONCE], ["messages", "text"])
            yield from zip(table["messages"].to_pylist(), table["text"].to_pylist(), strict=True)

    def _rows(self, completions: NDArray[np.int64], columns: list[str]) -> pa.Table:
        folder = self._folder
        groups = np.stack([folder.file[completions], folder.row_group[completions]], axis=1)
        distinct, of_group = np.unique(groups, axis=0, return_inverse=True)
        tables, order = [], np.empty(len(completions), dtype=np.int64)
        start = 0
        for number, (file, group) in enumerate(distinct.tolist()):
            wanted = np.flatnonzero(of_group.ravel() == number)
            tables.append(self._row_group(file, group, columns).take(folder.row[completions[wanted]]))
            order[wanted] = np.arange(start, start + len(wanted))
            start += len(wanted)
        table = tables[0] if len(tables) == 1 else pa.concat_tables(tables)
        return table.take(order) if (np.diff(order) != 1).any() else table

    def _row_group(self, file: int, group: int, columns: list[str]) -> pa.Table:
        if self._kept is None or self._kept[0] != (file, group):
            path = self._folder.paths[file]
            if self._open is None or self._open[0] != file:
                self._open = file, open_parquet(path, MADE_BY, _AS_DICTIONARY)
            with damage_named(path, MADE_BY):
                table = self._open[1].read_row_group(group, columns=columns)
            self._kept = ((file, group), table)
        return self._kept[1]


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
    missing = sorted({*_INDEX_COLUMNS, *_BATCH_COLUMNS, *extra} - set(schema.names))
    if missing:
        raise CoreError(f"{path}: not a raw shard, it lacks the columns {', '.join(missing)}", f"run {MADE_BY} again")


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


def _answers(table: pa.Table, path: Path, as_bytes: bool) -> RawAnswers:
    tokens_name, candidates_name = ("token_bytes", "candidate_bytes") if as_bytes else ("token_ids", "candidate_ids")
    if as_bytes:
        table = texts_as_tokens(table)
    columns = {name: whole(table[name]) for name in table.column_names}
    lengths = list_lengths(columns[tokens_name])
    counts = _integers(columns["candidate_counts"], path, "candidate_counts").astype(np.int64)
    answers = RawAnswers(
        text=columns["text"].to_pylist(),
        messages=columns["messages"].to_pylist(),
        finish_reason=columns["finish_reason"].to_pylist(),
        response_lengths=lengths,
        tokens=columns[tokens_name].flatten(),
        token_logprobs=flat_values(columns["token_logprobs"]),
        candidate_counts=counts,
        candidates=columns[candidates_name].flatten(),
        candidate_logprobs=flat_values(columns["candidate_logprobs"]),
    )
    for name, wanted in (("token_logprobs", len(answers.tokens)), ("candidate_counts", len(answers.tokens))):
        if len(getattr(answers, name)) != wanted or (list_lengths(columns[name]) != lengths).any():
            raise _inconsistent(path, name, len(getattr(answers, name)), wanted)
    for name, values in ((candidates_name, answers.candidates), ("candidate_logprobs", answers.candidate_logprobs)):
        if len(values) != counts.sum():
            raise _inconsistent(path, name, len(values), int(counts.sum()))
    return answers


def _inconsistent(path: Path, name: str, values: int, wanted: int) -> CoreError:
    return CoreError(
        f"{path}: a batch of completions has {values} values in {name} where {wanted} belong: the shard is "
        "inconsistent",
        f"delete it and run {MADE_BY} again",
    )


def _batch(table: pa.Table, path: Path) -> RawBatch:
    columns = {name: whole(table[name]) for name in table.column_names}
    lengths = {name: list_lengths(column) for name, column in columns.items() if name != "text"}
    extra = [name for name in columns if name not in _BATCH_COLUMNS]
    counts = _integers(columns["candidate_counts"], path, "candidate_counts").astype(np.int64)
    batch = RawBatch(
        text=columns["text"].to_pylist(),
        prompt_lengths=lengths["prompt_ids"],
        prompt_ids=_integers(columns["prompt_ids"], path, "prompt_ids"),
        response_lengths=lengths["token_ids"],
        token_ids=_integers(columns["token_ids"], path, "token_ids"),
        token_logprobs=flat_values(columns["token_logprobs"]),
        candidate_counts=counts,
        candidate_ids=_integers(columns["candidate_ids"], path, "candidate_ids"),
        candidate_logprobs=flat_values(columns["candidate_logprobs"]),
        extra={name: flat_values(columns[name]) for name in extra},
    )
    per_row = np.zeros(table.num_rows, dtype=np.int64)
    np.add.at(per_row, np.repeat(np.arange(table.num_rows), lengths["candidate_counts"]), counts)
    if (lengths["candidate_ids"] == 0).all() and per_row.any():
        raise CoreError(f"{path}: the teacher's candidates have no ids (column candidate_ids)", CROSS_TOKENIZER)
    for name, wanted in (
        ("token_logprobs", lengths["token_ids"]),
        ("candidate_counts", lengths["token_ids"]),
        ("candidate_ids", per_row),
        ("candidate_logprobs", per_row),
        *((name, lengths["token_ids"]) for name in extra),
    ):
        wrong = np.flatnonzero(lengths[name] != wanted)
        if len(wrong):
            raise CoreError(
                f"{path}: a completion has {lengths[name][wrong[0]]} values in {name} where {wanted[wrong[0]]} "
                "belong: the shard is inconsistent",
                f"delete it and run {MADE_BY} again",
            )
    return batch


def _integers(array: pa.Array, path: Path, name: str) -> NDArray[np.int32]:
    values = array.flatten()
    if values.null_count:
        raise CoreError(f"{path}: {values.null_count} empty entries in {name}", CROSS_TOKENIZER)
    result: NDArray[np.int32] = values.to_numpy(zero_copy_only=True)
    return result


def check_id_range(ids: NDArray[np.int32], size: int, column: str, raw_folder: Path) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise CoreError(
            f"{raw_folder}: {column} holds ids from {ids.min()} to {ids.max()}, but the tokenizer has {size}: "
            "it is not the teacher's",
            CROSS_TOKENIZER,
        )


def not_the_teachers(raw_folder: Path, differing: int, checked: int) -> CoreError:
    return CoreError(
        f"{raw_folder}: in {differing} of {checked} completions the tokenizer's bytes for the teacher's ids are "
        "not the teacher's text: it is not the teacher's tokenizer",
        CROSS_TOKENIZER,
    )
