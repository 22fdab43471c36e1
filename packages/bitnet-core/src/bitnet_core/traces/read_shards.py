"""A KD shard read: its documents, found without reading its candidates; then a part's rows, every value checked.

R rows of a part, D documents, K candidates. Rows are sorted by their keys (prompt, sample, step), across the files too.
A part is what one row group holds: the documents that begin in it.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.checks_on_reading import (
    CANDIDATES,
    NOTHING_BEFORE,
    LastRow,
    begins_document,
    check_candidate_values,
    check_candidates,
    check_distributions,
    check_finite,
    check_id_range,
    check_order,
    check_rows,
    column_records,
    fixed_width,
    keys_of,
    read_groups,
    stated_range,
    unequal_k,
)
from bitnet_core.traces.parquet import open_parquet, whole
from bitnet_core.traces.splits import splits_by_hash, splits_of
from bitnet_core.traces.target_kinds import ALL_EXTRA

KEYS = ("prompt_idx", "sample_idx", "step_idx", "split")
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


def with_splits(indexes: Sequence[ShardIndex]) -> list[ShardIndex]:
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


TOKEN = np.dtype(
    [
        ("teacher_sample_id", np.int32),
        ("other_logprob", np.float32),
        ("sample_logprob", np.float32),
        ("is_struct_token", np.bool_),
        ("is_prompt", np.bool_),
        ("has_kd", np.bool_),
    ],
    align=True,
)
"""What a row has beside its candidates, together, so that a document is copied at once."""


def as_words(tokens: NDArray[np.void]) -> NDArray[np.int64]:
    """[..., W] the same memory as numbers, of which numpy copies many at once (of records one field at a time)."""
    words: NDArray[np.int64] = tokens.reshape(-1).view(np.int64)
    return words.reshape(*tokens.shape, TOKEN.itemsize // 8)


@attrs.frozen(eq=False)
class PartRows:
    """The rows of a part that belong to the dataset, sorted by document and step."""

    tokens: NDArray[np.void]
    """[R] of `TOKEN`"""
    topk_ids: NDArray[np.int32]
    """[R, K]"""
    topk_logprobs: NDArray[np.floating[Any]]
    """[R, K]"""
    extra: NDArray[np.float32]
    """[R, E] the columns that come with the target's kind, in the order of `target_kinds.ALL_EXTRA`; E may be 0"""

    @property
    def nbytes(self) -> int:
        return self.tokens.nbytes + self.topk_ids.nbytes + self.topk_logprobs.nbytes


def read_part(part: Part, split: str | None, vocab_size: int | None) -> PartRows:
    """The rows of the part's documents in `split`, every value checked. Raises CoreError naming the file."""
    file = open_parquet(part.path, schema.MADE_BY)
    names = file.schema_arrow.names
    wanted = [name for name in (*COLUMNS, *ALL_EXTRA) if name in names and name not in KEYS]  # the index has these
    table = read_groups(file, part.path, part.row_groups, wanted)
    first, stop = int(part.starts[0]) - part.first_row, int(part.starts[-1]) - part.first_row
    is_partial = stop - first < table.num_rows
    table = table.slice(first, stop - first)
    group = part.row_groups.start
    check_rows(table, part.path, group, vocab_size)
    columns = {name: whole(table[name]) for name in wanted}
    ids_RK, logprobs_RK = (fixed_width(columns[name], part.path, group) for name in CANDIDATES)
    is_falling = check_candidate_values(ids_RK, logprobs_RK, part.path, group, vocab_size)

    tokens = np.empty(table.num_rows, dtype=TOKEN)
    tokens["sample_logprob"], tokens["is_prompt"] = np.nan, False
    for name in TOKEN.names or ():
        if name in columns:
            tokens[name] = columns[name].to_numpy(zero_copy_only=False)
    if "has_kd" not in columns:
        tokens["has_kd"] = np.isfinite(logprobs_RK).any(axis=1)
    first_rows = part.starts[:-1] - part.starts[0]
    if "in_ce" in columns:  # what a batch calls prompt is what cross-entropy leaves out
        tokens["is_prompt"] |= ~columns["in_ce"].to_numpy(zero_copy_only=False)
    tokens["is_prompt"][first_rows] = True
    tokens["has_kd"][first_rows] = False
    extra_RE = _side_by_side([_floats(columns[name]) for name in ALL_EXTRA if name in columns], table.num_rows)
    check_finite(extra_RE, "log_z or entropy", part.path, group)
    logprobs_RK = _for_torch(columns["topk_logprobs"], logprobs_RK)
    check_distributions(ids_RK, logprobs_RK, tokens["other_logprob"], tokens["has_kd"], part.path, group)
    rows = PartRows(tokens, ids_RK.astype(np.int32, copy=False), logprobs_RK, extra_RE)
    keep_D = in_split(part, split)
    if not keep_D.all():
        rows = _copied(rows, np.repeat(keep_D, np.diff(part.starts)))
    elif is_partial:
        rows = _copied(rows, slice(None))
    return rows if is_falling else _descending(rows)


def _floats(column: pa.Array) -> NDArray[np.float32]:
    values: NDArray[np.float32] = column.to_numpy(zero_copy_only=False).astype(np.float32, copy=False)
    return values


def _side_by_side(columns: Sequence[NDArray[np.float32]], rows: int) -> NDArray[np.float32]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype=np.float32)


def _for_torch(lists: pa.Array, values_RK: NDArray[Any]) -> NDArray[Any]:
    """numpy shows Arrow's memory as read-only, which torch doesn't take; DLPack shows the same without a copy."""
    if values_RK.flags.writeable:
        return values_RK
    values: NDArray[Any] = from_dlpack(lists.flatten()).numpy()
    return values.reshape(values_RK.shape)


def _copied(rows: PartRows, which_R: NDArray[np.bool_] | slice) -> PartRows:
    """Arrow's larger buffers are let go."""
    return PartRows(*(np.array(column[which_R]) for column in attrs.astuple(rows, recurse=False)))


def _descending(rows: PartRows) -> PartRows:
    """Candidates by falling log-probability, as the project stage has them: clipping and top-1 rely on it."""
    logprobs_RK = rows.topk_logprobs
    if (logprobs_RK[:, 1:] <= logprobs_RK[:, :-1]).all():
        return rows
    order = np.argsort(-logprobs_RK, axis=1, kind="stable")
    return attrs.evolve(
        rows,
        topk_ids=np.take_along_axis(rows.topk_ids, order, axis=1),
        topk_logprobs=np.take_along_axis(logprobs_RK, order, axis=1),
    )
