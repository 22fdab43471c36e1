"""What every value of a KD shard must be; errors name file, row group and fix. R rows of a part, K candidates."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, whole

CANDIDATES = ("topk_ids", "topk_logprobs")
MASS_TOLERANCE = 0.005
"""A position's Σp may be off 1 by this. float16 moves each log-probability by up to 1 part in 2,048 of itself, which
moves the sum by at most that part of the entropy in nats: under 0.005 for all but the flattest distributions."""
LARGEST_LOGPROB = 1e-3
"""Above 0 by more is no log-probability."""


def read_groups(file: pq.ParquetFile, path: Path, groups: range, columns: Sequence[str]) -> pa.Table:
    with damage_named(path, schema.MADE_BY):
        table = file.read_row_groups(list(groups), columns=list(columns))
    for name in table.column_names:
        if table[name].null_count:
            raise CoreError(
                f"{path}: row group {groups.start}: {table[name].null_count} empty values in {name}",
                f"run {schema.MADE_BY} again",
            )
    return table


def check_rows(table: pa.Table, path: Path, group: int, vocab_size: int | None) -> int:
    """Check other_logprob and, where they were read, the token ids; returns the largest id, -1 if there is none."""
    if not table.num_rows:
        return -1
    _check_largest_logprob("other_logprob", table["other_logprob"].to_numpy().max(), path, group)
    if "teacher_sample_id" not in table.column_names:
        return -1
    ids = table["teacher_sample_id"].to_numpy()
    check_id_range(int(ids.min()), int(ids.max()), path, group, vocab_size)
    return int(ids.max())


def check_candidates(file: pq.ParquetFile, path: Path, group: int, vocab_size: int | None) -> tuple[int, int]:
    """K and the largest candidate id of a row group, by the file's statistics where they tell."""
    statistics = _statistics(file, group)
    if statistics is not None:
        k, smallest, largest, logprob = statistics
        if smallest >= 0 and largest < (vocab_size or np.inf) and logprob <= LARGEST_LOGPROB:
            return k, largest
    table = read_groups(file, path, range(group, group + 1), CANDIDATES)
    ids_RK, logprobs_RK = (fixed_width(whole(table[name]), path, group) for name in CANDIDATES)
    check_candidate_values(ids_RK, logprobs_RK, path, group, vocab_size)
    return ids_RK.shape[1], int(ids_RK.max(initial=-1))


def _statistics(file: pq.ParquetFile, group: int) -> tuple[int, int, int, float] | None:
    """(K, smallest and largest candidate id, largest log-probability) of a row group; None where the file is silent."""
    rows = file.metadata.row_group(group).num_rows
    leaves = column_records(file, group)
    ids, logprobs = (leaves[name] for name in CANDIDATES)
    k, rest = divmod(ids.num_values, rows)
    ids_range, logprobs_range = stated_range(ids), stated_range(logprobs)
    if rest or k == 0 or logprobs.num_values != ids.num_values or ids_range is None or logprobs_range is None:
        return None
    largest = logprobs_range[1]
    if isinstance(largest, bytes):  # pyarrow gives a half float's statistics as its two bytes
        largest = np.frombuffer(largest, dtype="<f2")[0]
    return k, ids_range[0], ids_range[1], float(largest)


def column_records(file: pq.ParquetFile, group: int) -> dict[str, Any]:
    """What the file says of each column of a row group. Raises what pyarrow raises for a damaged one.

    `record.column` ends the process where it finds the records contradict the schema; a reader, which looks at them
    too, says so. It is asked for no row: one row would cost unpacking the whole group, candidates and all.
    """
    next(file.reader.iter_batches(0, [group], use_threads=False), None)
    record = file.metadata.row_group(group)
    columns = (record.column(i) for i in range(record.num_columns))
    return {column.path_in_schema.split(".")[0]: column for column in columns}


def stated_range(column: Any) -> tuple[Any, Any] | None:
    """Smallest and largest value of a column without empty values; None where the file doesn't say."""
    statistics = column.statistics if column.is_stats_set else None
    if statistics is None or not (statistics.has_min_max and statistics.has_null_count) or statistics.null_count:
        return None
    return statistics.min, statistics.max


def fixed_width(array: pa.Array, path: Path, group: int) -> NDArray[Any]:
    lengths = list_lengths(array)
    if not len(lengths):
        return flat_values(array).reshape(0, 1)
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        raise unequal_k(path, group, (lengths.min(), lengths.max()))
    return flat_values(array).reshape(len(lengths), int(lengths[0]))


def unequal_k(path: Path, group: int, found: Sequence[Any]) -> CoreError:
    return CoreError(
        f"{path}: row group {group}: positions with {found[0]} to {found[1]} candidates, and K must be one "
        "number (short lists are padded with id 0 and log-probability -inf)",
        f"run {schema.MADE_BY} again",
    )


def check_candidate_values(
    ids_RK: NDArray[Any], logprobs_RK: NDArray[Any], path: Path, group: int, vocab_size: int | None
) -> bool:
    """Whether they were seen to be in falling order, as the project stage writes them; False: not looked at."""
    if ids_RK.shape != logprobs_RK.shape:
        raise CoreError(
            f"{path}: row group {group}: topk_ids and topk_logprobs differ in length", f"run {schema.MADE_BY} again"
        )
    if not ids_RK.size:
        return True
    if not _are_below(ids_RK, vocab_size):
        check_id_range(int(ids_RK.min()), int(ids_RK.max()), path, group, vocab_size)
    is_falling = _are_falling_halves(logprobs_RK)
    if not is_falling:
        _check_largest_logprob("topk_logprobs", logprobs_RK.max(), path, group)
    return is_falling


def _are_below(ids: NDArray[Any], vocab_size: int | None) -> bool:
    """Whether all are int32, from 0 to `vocab_size` - 1: one pass, since a negative number has a great unsigned one."""
    return ids.dtype == np.int32 and int(ids.view(np.uint32).max()) < (vocab_size or 2**31)


def check_finite(values: NDArray[np.float32], name: str, path: Path, group: int) -> None:
    if not np.isfinite(values).all():
        raise CoreError(
            f"{path}: row group {group}: {name} holds what is no finite number", f"run {schema.MADE_BY} again"
        )


def check_distributions(
    ids_RK: NDArray[Any],
    logprobs_RK: NDArray[np.floating[Any]],
    other_R: NDArray[Any],
    has_kd_R: NDArray[np.bool_],
    path: Path,
    group: int,
) -> None:
    """Raise CoreError for a row whose candidates and other are not all of the probability, or name a token twice."""
    # By torch, which is several times faster than numpy at halves.
    logprobs = torch.from_numpy(logprobs_RK)
    used = logprobs.isfinite()
    mass_R = torch.where(used, logprobs, -torch.inf).float().exp().sum(1).numpy() + np.exp(other_R)
    used_RK = used.numpy()
    mass_K = mass_R[has_kd_R]
    faults = {
        f"a row with a mass over 1 ({mass_R.max(initial=0.0):.4f}, other included)": ~(mass_R <= 1.0 + MASS_TOLERANCE),
        f"a row with a mass under 1 ({mass_K.min(initial=1.0):.4f}, other included)": mass_K < 1.0 - MASS_TOLERANCE,
        "a row that has_kd and no candidate": has_kd_R & ~used_RK.any(axis=1),
        "one id twice among a row's candidates": repeated(ids_RK, used_RK),
    }
    for what, rows in faults.items():
        if rows.any():
            raise CoreError(f"{path}: row group {group}: {what}", f"run {schema.MADE_BY} again")


def repeated(ids_RK: NDArray[Any], used_RK: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """[R] whether an id stands twice among a position's used slots."""
    signed = np.promote_types(ids_RK.dtype, np.int32)
    unused = -1 - np.arange(ids_RK.shape[1], dtype=signed)  # distinct, and no ids
    ordered = np.sort(np.where(used_RK, ids_RK, unused), axis=1)
    result: NDArray[np.bool_] = (ordered[:, 1:] == ordered[:, :-1]).any(axis=1)
    return result


def check_id_range(smallest: int, largest: int, path: Path, group: int, vocab_size: int | None) -> None:
    if smallest < 0 or largest >= (vocab_size or np.inf):
        raise CoreError(
            f"{path}: row group {group}: token ids outside the vocabulary of {vocab_size} ({smallest} to "
            f"{largest}): the traces are another tokenizer's or the file is damaged",
            f"run {schema.MADE_BY} again",
        )


def _check_largest_logprob(name: str, largest: Any, path: Path, group: int) -> None:
    # max ignores nothing: a NaN anywhere makes it NaN, and NaN <= 1e-3 is False.
    if not largest <= LARGEST_LOGPROB:
        raise CoreError(
            f"{path}: row group {group}: {name} holds {largest}, which is no log-probability",
            f"run {schema.MADE_BY} again",
        )


def _are_falling_halves(values_RK: NDArray[Any]) -> bool:
    """Whether all are float16, at most -0, no NaN, and each row falls or stays.

    Seen on the bits, ten times faster than numpy's float16: of negative numbers the lower has the greater bits.
    """
    if values_RK.dtype != np.float16:
        return False
    bits_RK = np.ascontiguousarray(values_RK).view(np.uint16)
    rises = bits_RK.reshape(-1)[1:] < bits_RK.reshape(-1)[:-1]
    rises[bits_RK.shape[1] - 1 :: bits_RK.shape[1]] = False  # from one row to the next
    return not rises.any() and bool(bits_RK[:, 0].min() >= 0x8000 and bits_RK[:, -1].max() <= 0xFC00)


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
