"""The rows of one part of a KD shard, every value checked. R rows, D documents, K candidates."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.traces import schema
from bitnet_core.traces.parquet import open_parquet, whole
from bitnet_core.traces.shard_checks import (
    CANDIDATES,
    are_negative_halves,
    check_candidate_values,
    check_finite,
    check_rows,
    fixed_width,
    read_groups,
)
from bitnet_core.traces.shard_index import COLUMNS, Part, in_split
from bitnet_core.traces.shard_keys import KEYS, keys_of
from bitnet_core.traces.target_kind import ALL_EXTRA


@attrs.frozen(eq=False)
class PartRows:
    """The rows of a part that belong to the dataset, sorted by document and step."""

    teacher_sample_id: NDArray[np.int32]
    topk_ids: NDArray[np.int32]
    """[R, K]"""
    topk_logprobs: NDArray[np.floating[Any]]
    """[R, K]"""
    other_logprob: NDArray[np.float32]
    is_struct_token: NDArray[np.bool_]
    is_prompt: NDArray[np.bool_]
    has_kd: NDArray[np.bool_]
    sample_logprob: NDArray[np.float32]
    extra: NDArray[np.float32]
    """[R, E] the columns that come with the target's kind, in the order of `target_kind.ALL_EXTRA`; E may be 0"""

    @property
    def nbytes(self) -> int:
        return sum(column.nbytes for column in attrs.astuple(self, recurse=False))


def read_part(part: Part, split: str | None, vocab_size: int | None) -> PartRows:
    """The rows of the part's documents in `split`, every value checked. Raises CoreError naming the file."""
    file = open_parquet(part.path, schema.MADE_BY)
    names = file.schema_arrow.names
    needless = KEYS if part.in_order else ()  # the index has them
    wanted = [name for name in (*COLUMNS, *ALL_EXTRA) if name in names and name not in needless]
    table = read_groups(file, part.path, part.row_groups, wanted)
    if not part.in_order:
        keys = keys_of(table)
        table = table.take(np.lexsort((keys.step_idx, keys.sample_idx, keys.prompt_idx)))
    first, stop = int(part.starts[0]) - part.first_row, int(part.starts[-1]) - part.first_row
    is_partial = stop - first < table.num_rows
    table = table.slice(first, stop - first)
    group = part.row_groups.start
    check_rows(table, part.path, group, vocab_size)
    columns = {name: whole(table[name]) for name in wanted if name not in KEYS}
    ids_RK, logprobs_RK = (fixed_width(columns[name], part.path, group) for name in CANDIDATES)
    check_candidate_values(ids_RK, logprobs_RK, part.path, group, vocab_size)

    def column(name: str, dtype: Any) -> Any:
        return columns[name].to_numpy(zero_copy_only=False).astype(dtype, copy=False)

    extra_RE = _side_by_side([column(name, np.float32) for name in ALL_EXTRA if name in columns], table.num_rows)
    check_finite(extra_RE, "log_z or entropy", part.path, group)
    lengths_D = np.diff(part.starts)
    is_first = np.zeros(table.num_rows, dtype=bool)
    is_first[part.starts[:-1] - part.starts[0]] = True
    has_kd = column("has_kd", bool) if "has_kd" in columns else np.isfinite(logprobs_RK).any(axis=1)
    rows = PartRows(
        teacher_sample_id=column("teacher_sample_id", np.int32),
        topk_ids=ids_RK.astype(np.int32, copy=False),
        topk_logprobs=logprobs_RK.copy(),  # Arrow's buffers are read-only, which torch doesn't take
        other_logprob=column("other_logprob", np.float32),
        is_struct_token=column("is_struct_token", bool),
        is_prompt=column("is_prompt", bool) | is_first if "is_prompt" in columns else is_first,
        has_kd=has_kd & ~is_first,
        sample_logprob=(
            column("sample_logprob", np.float32)
            if "sample_logprob" in columns
            else np.full(table.num_rows, np.nan, dtype=np.float32)
        ),
        extra=extra_RE,
    )
    keep_D = in_split(part, split)
    if not keep_D.all():
        rows = _select(rows, np.repeat(keep_D, lengths_D))
    elif is_partial:
        rows = _select(rows, slice(None))
    return _descending(rows)


def _side_by_side(columns: Sequence[NDArray[np.float32]], rows: int) -> NDArray[np.float32]:
    return np.stack(columns, axis=1) if columns else np.zeros((rows, 0), dtype=np.float32)


def _select(rows: PartRows, which: NDArray[np.bool_] | slice) -> PartRows:
    """Copies, so that Arrow's larger buffers are let go."""
    return PartRows(*(column[which].copy() for column in attrs.astuple(rows, recurse=False)))


def _descending(rows: PartRows) -> PartRows:
    """Candidates by falling log-probability, as KD shards v1 have them: clipping and top-1 rely on it."""
    logprobs_RK = rows.topk_logprobs
    if logprobs_RK.size and are_negative_halves(logprobs_RK):
        bits_RK = logprobs_RK.view(np.uint16)  # of negative numbers the lower has the greater bits
        is_descending = (bits_RK[:, 1:] >= bits_RK[:, :-1]).all()
    else:
        is_descending = (logprobs_RK[:, 1:] <= logprobs_RK[:, :-1]).all()
    if is_descending:
        return rows
    order = np.argsort(-logprobs_RK, axis=1, kind="stable")
    return attrs.evolve(
        rows,
        topk_ids=np.take_along_axis(rows.topk_ids, order, axis=1),
        topk_logprobs=np.take_along_axis(logprobs_RK, order, axis=1),
    )
