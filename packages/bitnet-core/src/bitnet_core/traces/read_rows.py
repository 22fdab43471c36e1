"""The rows of one part of a KD shard, every value checked. R rows, D documents, K candidates."""

from collections.abc import Sequence
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from torch.utils.dlpack import from_dlpack

from bitnet_core.traces import schema
from bitnet_core.traces.checks_on_reading import (
    CANDIDATES,
    check_candidate_values,
    check_distributions,
    check_finite,
    check_rows,
    fixed_width,
    read_groups,
)
from bitnet_core.traces.document_index import COLUMNS, KEYS, Part, in_split
from bitnet_core.traces.parquet import open_parquet, whole
from bitnet_core.traces.target_kinds import ALL_EXTRA

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
