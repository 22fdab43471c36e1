"""Reader of raw shards v1 (docs/raw-shard.md): what the teacher said, one row a completion.

Everything comes back columnar, as numpy views of Arrow's buffers. D completions, P prompt tokens over all of them,
T response tokens over all of them, C candidates over all response tokens. Ragged columns are flat with offsets.
A completion of which only the text is known (no log-probabilities were given) is read as one token over all of it: it
goes the way of every other one, and each of the student's tokens trains by cross-entropy alone.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.projection.raw_folder import (
    AS_DICTIONARY,
    BATCH_COLUMNS,
    CROSS_TOKENIZER,
    MADE_BY,
    RawFolder,
    is_text_alone,
)
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, open_parquet, whole
from bitnet_core.traces.target_kinds import extra_columns


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


_ANSWER_COLUMNS = [
    *("text", "messages", "finish_reason", "token_ids", "token_bytes", "token_logprobs"),
    *("candidate_counts", "candidate_ids", "candidate_bytes", "candidate_logprobs"),
]


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
        columns = [*BATCH_COLUMNS, *extra_columns(self._folder.target)]
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
                self._open = file, open_parquet(path, MADE_BY, AS_DICTIONARY)
            with damage_named(path, MADE_BY):
                table = self._open[1].read_row_group(group, columns=columns)
            self._kept = ((file, group), table)
        return self._kept[1]


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
    extra = [name for name in columns if name not in BATCH_COLUMNS]
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
