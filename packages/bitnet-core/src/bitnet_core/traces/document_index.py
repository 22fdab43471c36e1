"""The documents of a KD shard, found without reading its candidates. R rows of a part, D documents.

Rows are sorted by their keys (prompt, sample, step), across the files too. A part is what one row group holds: the
documents that begin in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.checks_on_reading import (
    check_candidates,
    check_id_range,
    check_rows,
    column_records,
    read_groups,
    stated_range,
    unequal_k,
)
from bitnet_core.traces.parquet import open_parquet, whole
from bitnet_core.traces.splits import held_out

FALLBACK_HOLDOUT = 0.1
"""Share of the documents held out of traces without a split column (by the hash of prompt_idx, seed 0)."""


KEYS = ("prompt_idx", "sample_idx", "step_idx", "split")


@attrs.frozen(eq=False)
class RowKeys:
    """What rows are sorted by, each [R]."""

    prompt_idx: NDArray[np.int64]
    sample_idx: NDArray[np.int64]
    step_idx: NDArray[np.int64]


@attrs.frozen
class LastRow:
    """The row before a row group."""

    prompt_idx: int
    sample_idx: int
    step_idx: int
    split: int


NOTHING_BEFORE = LastRow(np.iinfo(np.int64).min, 0, 0, 0)


def keys_of(table: pa.Table) -> RowKeys:
    prompt, step = (table[name].to_numpy().astype(np.int64, copy=False) for name in ("prompt_idx", "step_idx"))
    known = "sample_idx" in table.column_names
    sample = table["sample_idx"].to_numpy().astype(np.int64) if known else np.zeros(len(prompt), dtype=np.int64)
    return RowKeys(prompt, sample, step)


def begins_document(keys: RowKeys, before: LastRow) -> NDArray[np.bool_]:
    """[R] True where a document begins."""
    prompt = np.diff(keys.prompt_idx) != 0
    sample = np.diff(keys.sample_idx) != 0
    first = keys.prompt_idx[:1] != before.prompt_idx
    first |= keys.sample_idx[:1] != before.sample_idx
    return np.concatenate([first, prompt | sample])


def check_order(keys: RowKeys, before: LastRow, path: Path, group: int) -> None:
    """Raise CoreError where a row doesn't come after the one before it, or rows of a document are missing between."""
    columns = zip(attrs.astuple(keys, recurse=False), attrs.astuple(before), strict=False)
    (prompt, prompt_), (sample, sample_), (step, step_) = (
        (column, np.concatenate([[last], column[:-1]])) for column, last in columns
    )
    same = (prompt == prompt_) & (sample == sample_)
    rises = (prompt > prompt_) | ((prompt == prompt_) & (sample > sample_)) | (same & (step > step_))
    if not rises.all():
        row = int(rises.argmin())
        is_twice = same[row] and step[row] == step_[row]
        what = "the same prompt_idx, sample_idx and step_idx as" if is_twice else "an earlier place than"
        raise CoreError(
            f"{path}: row group {group}: row {row} has {what} the row before it",
            f"run {schema.MADE_BY} again; in shards of your own sort the rows by prompt_idx, sample_idx, step_idx, "
            "each once",
        )
    skips = same & (step != step_ + 1)
    if skips.any():
        row = int(skips.argmax())
        raise CoreError(
            f"{path}: row group {group}: row {row} is step {step[row]} of its document, and the row before it step "
            f"{step_[row]}: rows are missing, so that tokens would follow which never did",
            f"run {schema.MADE_BY} again; in shards of your own keep all rows of a document, prompts too",
        )


def splits_of(table: pa.Table, path: Path, group: int) -> NDArray[np.int8] | None:
    """[R] places in `schema.SPLITS`; None where the file has no split column."""
    if "split" not in table.column_names:
        return None
    split = table["split"]
    is_dictionary = pa.types.is_dictionary(split.type)  # as the project stage writes it
    names = whole(split.unify_dictionaries() if is_dictionary else split.cast(pa.string()).dictionary_encode())
    dictionary = names.dictionary.to_pylist()
    unknown = sorted(set(dictionary) - set(schema.SPLITS))
    if unknown:
        raise CoreError(
            f'{path}: row group {group}: split "{unknown[0]}" is not one of: {", ".join(schema.SPLITS)}',
            f"run {schema.MADE_BY} again",
        )
    place = np.array([schema.SPLITS.index(name) for name in dictionary], dtype=np.int8)
    result: NDArray[np.int8] = place[names.indices.to_numpy()]
    return result


def splits_by_hash(prompt_idx_D: NDArray[np.int64]) -> NDArray[np.int8]:
    prompts, document = np.unique(prompt_idx_D, return_inverse=True)
    chosen = held_out([f"prompt_idx {prompt}" for prompt in prompts.tolist()], FALLBACK_HOLDOUT, seed=0)
    return chosen[document].astype(np.int8)


def with_splits(indexes: Sequence["ShardIndex"]) -> list["ShardIndex"]:
    """Those of files without a split column get theirs, of all such files together: how documents lie in files plays no
    part, and a prompt whose samples lie in two of them is in one split."""
    parts = [part for index in indexes if "split" in index.lacking for part in index.parts]
    if not parts:
        return list(indexes)
    split_D = splits_by_hash(np.concatenate([part.prompt_idx for part in parts]))
    ends = np.cumsum([len(part.prompt_idx) for part in parts])[:-1]
    found = iter(attrs.evolve(part, split=split) for part, split in zip(parts, np.split(split_D, ends), strict=True))
    return [
        attrs.evolve(index, parts=[next(found) for _ in index.parts]) if "split" in index.lacking else index
        for index in indexes
    ]


COLUMNS = [name for name in schema.SCHEMA.names if name != "teacher_sample_text"]
OPTIONAL = [name for name in COLUMNS if name not in (*schema.SEED_COLUMNS, *schema.SINCE_2)]


@attrs.frozen(eq=False)
class Part:
    """Some documents of one file, read together."""

    path: Path
    row_groups: range
    """Those that hold the rows."""
    first_row: int
    """The file's row with which the first of `row_groups` begins."""
    starts: NDArray[np.int64]
    """[D + 1] the file's row of each document's start, and the end"""
    prompt_idx: NDArray[np.int64]
    """[D]"""
    split: NDArray[np.int8]
    """[D] places in `schema.SPLITS`"""


@attrs.frozen(eq=False)
class ShardIndex:
    """What is in a file: its parts, and what was found while looking."""

    parts: Sequence[Part]
    k: int | None
    """None in a file without rows."""
    largest_id: int
    lacking: Sequence[str]
    """Optional columns that the file doesn't have."""
    logprob_dtype: np.dtype[Any]
    """In which the candidates' log-probabilities are stored."""
    last: LastRow


def index_shard(path: Path, vocab_size: int | None, before: LastRow = NOTHING_BEFORE) -> ShardIndex:
    """Find the documents of a file and check its keys, ids and masses, a row group at a time. before: the last row of
    the file before. Where there is no split column all are for training: see `with_splits`.

    The candidates are checked by the file's own statistics (K, range of ids, largest log-probability), and where those
    are absent or show a fault, by reading them; `read_part` checks every value again when it is used.
    Raises CoreError naming the file and row group.
    """
    file = open_parquet(path, schema.MADE_BY)
    names = set(file.schema_arrow.names)
    lacking = [name for name in OPTIONAL if name not in names]
    logprob_dtype = np.dtype(file.schema_arrow.field("topk_logprobs").type.value_type.to_pandas_dtype())
    first_rows = np.cumsum([0, *(file.metadata.row_group(g).num_rows for g in range(file.num_row_groups))])
    starts: list[NDArray[np.int64]] = []
    prompts: list[NDArray[np.int64]] = []
    splits: list[NDArray[np.int8]] = []
    largest_id, k = -1, None
    for group in range(file.num_row_groups):
        ids_range = stated_range(column_records(file, group)["teacher_sample_id"])
        checked = ["other_logprob"] if ids_range is not None else ["teacher_sample_id", "other_logprob"]
        table = read_groups(file, path, range(group, group + 1), [n for n in (*KEYS, *checked) if n in names])
        if table.num_rows == 0:
            continue
        keys = keys_of(table)
        split = splits_of(table, path, group)
        if ids_range is not None:
            check_id_range(*ids_range, path, group, vocab_size)
            largest_id = max(largest_id, ids_range[1])
        largest_id = max(largest_id, check_rows(table, path, group, vocab_size))
        group_k, largest_candidate = check_candidates(file, path, group, vocab_size)
        if k not in (None, group_k):
            raise unequal_k(path, group, (k, group_k))
        k, largest_id = group_k, max(largest_id, largest_candidate)
        check_order(keys, before, path, group)
        is_start = begins_document(keys, before)
        is_start[0] |= not starts  # a file begins with a document, whatever stands in the one before
        if split is not None:
            previous = np.concatenate([[before.split], split[:-1]])
            mixed = ~is_start & (split != previous)
            if mixed.any():
                raise CoreError(
                    f"{path}: row group {group}: a document lies in two splits (row {int(mixed.argmax())})",
                    f"run {schema.MADE_BY} again",
                )
            splits.append(split[is_start])
        rows = np.flatnonzero(is_start)
        starts.append(rows + first_rows[group])
        prompts.append(keys.prompt_idx[rows])
        before = LastRow(
            keys.prompt_idx[-1], keys.sample_idx[-1], keys.step_idx[-1], 0 if split is None else int(split[-1])
        )
    if k is None:
        return ShardIndex((), None, -1, lacking, logprob_dtype, before)
    starts_D = np.concatenate(starts)
    prompt_idx_D = np.concatenate(prompts)
    split_D = np.concatenate(splits) if splits else np.zeros(len(starts_D), dtype=np.int8)
    parts = _parts(path, starts_D, prompt_idx_D, split_D, first_rows)
    return ShardIndex(parts, k, largest_id, lacking, logprob_dtype, before)


def in_split(part: Part, split: str | None) -> NDArray[np.bool_]:
    """[D] which documents of the part belong to `split`; None: all."""
    return np.ones(len(part.split), dtype=bool) if split is None else part.split == schema.SPLITS.index(split)


def _parts(
    path: Path,
    starts_D: NDArray[np.int64],
    prompt_idx_D: NDArray[np.int64],
    split_D: NDArray[np.int8],
    first_rows: NDArray[np.int64],
) -> list[Part]:
    """One part for each row group in which a document begins."""
    group_D = np.searchsorted(first_rows, starts_D, side="right") - 1
    ends = np.concatenate([starts_D[1:], first_rows[-1:]])
    parts = []
    for group in np.unique(group_D):
        documents = np.flatnonzero(group_D == group)
        end = int(ends[documents[-1]])
        last_group = int(np.searchsorted(first_rows, end - 1, side="right")) - 1
        parts.append(
            Part(
                path=path,
                row_groups=range(int(group), last_group + 1),
                first_row=int(first_rows[group]),
                starts=np.append(starts_D[documents], end),
                prompt_idx=prompt_idx_D[documents],
                split=split_D[documents],
            )
        )
    return parts
