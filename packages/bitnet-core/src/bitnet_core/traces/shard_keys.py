"""What the rows of a KD shard are sorted by, and to which split they belong. R rows, D documents."""

from pathlib import Path

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.parquet import whole
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
    is_train: bool


NOTHING_BEFORE = LastRow(np.iinfo(np.int64).min, 0, 0, True)


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


def in_order_after(keys: RowKeys, before: LastRow) -> NDArray[np.bool_]:
    """[R] True where a row doesn't come before the one that stands before it."""
    columns = zip(attrs.astuple(keys, recurse=False), attrs.astuple(before), strict=False)
    (prompt, prompt_), (sample, sample_), (step, step_) = (
        (column, np.concatenate([[last], column[:-1]])) for column, last in columns
    )
    return (prompt > prompt_) | ((prompt == prompt_) & ((sample > sample_) | ((sample == sample_) & (step >= step_))))


def is_train_of(table: pa.Table, path: Path, group: int) -> NDArray[np.bool_] | None:
    """[R]; None where the file has no split column."""
    if "split" not in table.column_names:
        return None
    split = table["split"]
    is_dictionary = pa.types.is_dictionary(split.type)  # as the project stage writes it
    names = whole(split.unify_dictionaries() if is_dictionary else split.cast(pa.string()).dictionary_encode())
    dictionary = names.dictionary.to_pylist()
    unknown = sorted(set(dictionary) - set(schema.SPLITS))
    if unknown:
        raise CoreError(
            f'{path}: row group {group}: split "{unknown[0]}" is not one of: {", ".join(schema.SPLITS)}; '
            f"run {schema.MADE_BY} again"
        )
    is_train = np.array([name == "train" for name in dictionary], dtype=bool)
    result: NDArray[np.bool_] = is_train[names.indices.to_numpy()]
    return result


def train_by_hash(prompt_idx_D: NDArray[np.int64]) -> NDArray[np.bool_]:
    prompts, document = np.unique(prompt_idx_D, return_inverse=True)
    return ~held_out([f"prompt_idx {prompt}" for prompt in prompts.tolist()], FALLBACK_HOLDOUT, seed=0)[document]
