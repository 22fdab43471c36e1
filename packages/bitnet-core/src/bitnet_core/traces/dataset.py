"""KD traces as sequences and batches. B sequences, T positions, K candidates, R rows of a shard, N positions."""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, open_parquet, shard_files, whole
from bitnet_core.traces.splits import held_out
from bitnet_core.traces.tokenizer import tokenizer_identity

KDBatch = dict[str, Tensor]
"""input_ids, teacher_sample_id int64 [B, T]; attention_mask, is_struct_token, has_kd, is_prompt bool [B, T];
topk_ids int64 and topk_logprobs float32 [B, T, K]; other_logprob, sample_logprob float32 [B, T]. An item has no B."""

_COLUMNS = [name for name in schema.SCHEMA.names if name != "teacher_sample_text"]
_OPTIONAL = [name for name in _COLUMNS if name not in schema.SEED_COLUMNS]
_FALLBACK_HOLDOUT = 0.1
"""Share of the documents held out of traces without a split column (by the hash of prompt_idx, seed 0)."""


@attrs.frozen(eq=False)
class KDPositions:
    """All positions with KD, flat, with the token before: what an n-gram needs. Log-probabilities in nats."""

    prev_token: NDArray[np.int32]
    """[N]"""
    topk_ids: NDArray[np.int32]
    """[N, K], 0 in unused slots"""
    topk_logprobs: NDArray[np.floating[Any]]
    """[N, K] as stored, -inf in unused slots"""
    other_logprob: NDArray[np.float32]
    """[N]"""
    sample_id: NDArray[np.int32]
    """[N] the token that stands there"""
    document: NDArray[np.int64]
    """[N] index of the sequence in the dataset"""


@attrs.frozen(eq=False)
class _Shard:
    """The rows of one file that belong to the dataset, sorted by document and step; views of Arrow's buffers."""

    prompt_idx: NDArray[np.int64]
    sample_idx: NDArray[np.int32]
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
    is_train: NDArray[np.bool_]
    starts: NDArray[np.int64]
    """First row of each document, and the number of rows at the end."""


class KDTraceDataset(Dataset[KDBatch]):
    """The documents (a prompt's completion, prompt included) of a folder's KD shards; item i is a dict of tensors [T].

    Rows are kept as they lie in the files (about 150 bytes a position at K = 20) and widened an item at a time.

    folder: where the ``kd_shard_*.parquet`` are, or one such file. split: "train", "heldout", or None for both.
    tokenizer_folder: the student's tokenizer; its digest must be the traces'. max_seq_len: positions kept of an item.
    max_topk: candidates kept; the mass of the others moves to other. Shards with the seed's seven columns alone load
    too, and a warning says what they lack.
    Raises CoreError for an empty folder, a damaged shard, shards that don't belong together, another tokenizer, ids
    outside the vocabulary, and a split without documents.
    """

    def __init__(
        self,
        folder: Path | str,
        split: Literal["train", "heldout"] | str | None = None,
        *,
        tokenizer_folder: Path | str | None = None,
        max_seq_len: int | None = None,
        max_topk: int | None = None,
    ) -> None:
        if split is not None and split not in schema.SPLITS:
            raise CoreError(f'split "{split}" is not one of: {", ".join(schema.SPLITS)}')
        for name, value in (("max_seq_len", max_seq_len), ("max_topk", max_topk)):
            if value is not None and value < 1:
                raise CoreError(f"{name} is {value}; it must be at least 1")
        folder = Path(folder)
        files = [folder] if folder.is_file() else shard_files(folder, schema.SHARDS, schema.MADE_BY)
        identity = tokenizer_identity(Path(tokenizer_folder)) if tokenizer_folder is not None else None
        self.split = split
        self.metadata = _common_metadata(files)
        """The shards' metadata; None where they have none."""
        if identity is not None and self.metadata is not None:
            _check_tokenizer(self.metadata, identity[0], folder, Path(str(tokenizer_folder)))
        limit = self.metadata.vocab_size if self.metadata else identity[1] if identity else None
        loaded = [_load(file, split, limit) for file in files]
        lacking = sorted({name for _, lacks in loaded for name in lacks})
        self.lacking: tuple[str, ...] = (*lacking, *(() if self.metadata else ("bitnet_kd metadata",)))
        """What the shards don't say (columns, metadata); empty for KD shards v1."""
        if self.lacking:
            warnings.warn(_what_follows(folder, self.lacking), stacklevel=2)
        self._shards = [shard for shard, _ in loaded if len(shard.starts) > 1]
        if not self._shards:
            wanted = "" if split is None else f' in split "{split}"'
            raise CoreError(f"{folder}: no document{wanted}; collect more, or change project.holdout_fraction")
        widths = {shard.topk_ids.shape[1] for shard in self._shards}
        stated = {self.metadata.k} if self.metadata else set()
        if len(widths | stated) != 1:
            raise CoreError(
                f"{folder}: the shards have {' and '.join(map(str, sorted(widths | stated)))} candidates a position; "
                f"K must be one number: run {schema.MADE_BY} again"
            )
        self._stored_k = widths.pop()
        self.k: int = min(self._stored_k, max_topk or self._stored_k)
        """Candidates of each position, K."""
        self.vocab_size: int = limit if limit is not None else 1 + max(_largest_id(shard) for shard in self._shards)
        """V: the tokenizer's; where nothing says it, one more than the largest id."""
        counts = [len(shard.starts) - 1 for shard in self._shards]
        self._shard_of = np.repeat(np.arange(len(counts)), counts)
        self._first_of_shard = np.cumsum([0, *counts])
        self.full_lengths: NDArray[np.int64] = np.concatenate([np.diff(shard.starts) for shard in self._shards])
        """int64 [documents]: positions of each document, before max_seq_len."""
        self.lengths: NDArray[np.int64] = np.minimum(self.full_lengths, max_seq_len or np.iinfo(np.int64).max)
        """int64 [documents]: positions of each item."""
        self.prompt_idx: NDArray[np.int64] = np.concatenate(
            [shard.prompt_idx[shard.starts[:-1]] for shard in self._shards]
        )
        """int64 [documents]"""

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> KDBatch:
        """The tensors of one document (see KDBatch, without B), freshly made."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        index %= len(self)
        number = int(self._shard_of[index])
        shard = self._shards[number]
        start = int(shard.starts[index - self._first_of_shard[number]])
        rows = slice(start, start + int(self.lengths[index]))
        ids, logprobs, other = self._candidates(shard, rows)
        tokens = torch.from_numpy(shard.teacher_sample_id[rows].astype(np.int64))

        def flags(column: NDArray[np.bool_]) -> Tensor:
            return torch.from_numpy(column[rows].copy())

        return {
            "input_ids": tokens,
            "attention_mask": torch.ones(len(tokens), dtype=torch.bool),
            "teacher_sample_id": tokens.clone(),
            "topk_ids": torch.from_numpy(ids.astype(np.int64)),
            "topk_logprobs": torch.from_numpy(logprobs.astype(np.float32)),
            "other_logprob": torch.from_numpy(other.astype(np.float32)),
            "is_struct_token": flags(shard.is_struct_token),
            "has_kd": flags(shard.has_kd),
            "is_prompt": flags(shard.is_prompt),
            "sample_logprob": torch.from_numpy(shard.sample_logprob[rows].astype(np.float32)),
        }

    def positions(self, split: str | None = None) -> KDPositions:
        """Every KD position of the items (of one split, of those loaded), as the items have them: cut, clipped."""
        if split is not None and self.split not in (None, split):
            raise CoreError(f'positions("{split}") of a dataset with split "{self.split}": load split "{split}"')
        parts: list[tuple[NDArray[Any], ...]] = []
        for number, shard in enumerate(self._shards):
            documents = slice(self._first_of_shard[number], self._first_of_shard[number + 1])
            full = self.full_lengths[documents]
            step = np.arange(int(shard.starts[-1])) - np.repeat(shard.starts[:-1], full)
            chosen = shard.has_kd & (step < np.repeat(self.lengths[documents], full))
            if split is not None:
                chosen &= shard.is_train == (split == "train")
            rows = np.flatnonzero(chosen)
            ids, logprobs, other = self._candidates(shard, rows)
            document = np.repeat(np.arange(documents.start, documents.stop), full)[rows]
            # has_kd is never set at a document's first row, so the row before belongs to the same document.
            tokens = shard.teacher_sample_id
            parts.append((tokens[rows - 1], ids, logprobs, other, tokens[rows], document))
        return KDPositions(*(np.concatenate(column) for column in zip(*parts, strict=True)))

    def _candidates(
        self, shard: _Shard, rows: slice | NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        ids, logprobs = shard.topk_ids[rows], shard.topk_logprobs[rows]
        return clip_topk(ids, logprobs, shard.other_logprob[rows], self.k)


def clip_topk(
    ids_NK: NDArray[np.int32], logprobs_NK: NDArray[np.floating[Any]], other_N: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int32], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Keep the first `k` candidates; the others' mass joins other (log-sum-exp in float64)."""
    if k >= ids_NK.shape[1]:
        return ids_NK, logprobs_NK, other_N
    cut = logprobs_NK[:, k:].astype(np.float64)
    other = np.logaddexp(other_N.astype(np.float64), np.logaddexp.reduce(cut, axis=1))
    return ids_NK[:, :k], logprobs_NK[:, :k], other


def collate_fn(items: Sequence[KDBatch], pad_token_id: int = 0, side: Literal["right", "left"] = "right") -> KDBatch:
    """Pad items to the longest and stack them to a KDBatch; K is fixed.

    Padding: attention_mask and has_kd False, is_prompt True, ids `pad_token_id`, no candidates, P(other) = 1
    (other_logprob 0), sample_logprob NaN. side: on which side it goes. Raises CoreError for no items or unequal K.
    """
    if not items:
        raise CoreError("collate_fn got no items; a batch has at least one document")
    if side not in ("right", "left"):
        raise CoreError(f'padding side "{side}" is not "right" or "left"')
    widths = {item["topk_ids"].shape[1] for item in items}
    if len(widths) != 1:
        raise CoreError(
            f"items with {' and '.join(map(str, sorted(widths)))} candidates in one batch; load one max_topk"
        )
    padding: dict[str, float] = {
        "input_ids": pad_token_id,
        "teacher_sample_id": pad_token_id,
        "topk_logprobs": -torch.inf,
        "is_prompt": True,
        "sample_logprob": torch.nan,
    }
    longest = max(len(item["input_ids"]) for item in items)
    batch: KDBatch = {}
    for name, first in items[0].items():
        shape = (len(items), longest, *first.shape[1:])
        stacked = torch.full(shape, padding.get(name, 0), dtype=first.dtype)
        for row, item in zip(stacked, items, strict=True):
            length = len(item[name])
            (row[:length] if side == "right" else row[longest - length :]).copy_(item[name])
        batch[name] = stacked
    return batch


# --- loading and its checks ------------------------------------------------------------------------------------------


def _common_metadata(files: Sequence[Path]) -> schema.KDMetadata | None:
    """The metadata of the first shard, when all shards belong to one projection."""
    found = []
    for path in files:
        parquet_schema = open_parquet(path, schema.MADE_BY).schema_arrow
        schema.check_columns(parquet_schema, path)
        found.append(schema.read_metadata(parquet_schema, path))
    first = found[0]
    for path, other in zip(files[1:], found[1:], strict=True):
        if (other is None) != (first is None):
            raise CoreError(f"{files[0]} and {path.name}: one has bitnet_kd metadata, one has none; keep them apart")
        if first is not None and other is not None:
            for name in ("tokenizer_sha256", "k", "vocab_size", "projection"):
                ours, theirs = getattr(first, name), getattr(other, name)
                if ours != theirs:
                    raise CoreError(
                        f"{files[0]} and {path.name} come from different projections ({name} {ours} and {theirs}); "
                        f"run {schema.MADE_BY} again"
                    )
    return first


def _check_tokenizer(metadata: schema.KDMetadata, sha256: str, folder: Path, tokenizer_folder: Path) -> None:
    if sha256 != metadata.tokenizer_sha256:
        raise CoreError(
            f"{folder}: the traces were made for the tokenizer with sha256 {metadata.tokenizer_sha256}, but the one in "
            f"{tokenizer_folder} has {sha256}; set project.tokenizer to the traces' tokenizer, or run "
            f"{schema.MADE_BY} again"
        )


def _load(path: Path, split: str | None, vocab_size: int | None) -> tuple[_Shard, list[str]]:
    """The rows of `split` in one shard, checked, and the optional columns that it lacks."""
    file = open_parquet(path, schema.MADE_BY)
    lacking = [name for name in _OPTIONAL if name not in file.schema_arrow.names]
    with damage_named(path, schema.MADE_BY):
        table = file.read(columns=[name for name in _COLUMNS if name not in lacking])
    for name in table.column_names:
        if table[name].null_count:
            raise CoreError(f"{path}: {table[name].null_count} empty values in {name}; run {schema.MADE_BY} again")
    if "sample_idx" in lacking:
        table = table.append_column("sample_idx", pa.array(np.zeros(table.num_rows, dtype=np.int32)))
    table = table.append_column("is_train", pa.array(_is_train(table, path)))
    if split is not None:
        keep = table["is_train"].to_numpy() == (split == "train")
        table = table if keep.all() else table.filter(pa.array(keep))
    table = _in_order(table)
    columns = {name: whole(table[name]) for name in table.column_names}

    def column(name: str, dtype: Any) -> Any:
        return columns[name].to_numpy(zero_copy_only=False).astype(dtype, copy=False)

    prompt_idx, sample_idx = column("prompt_idx", np.int64), column("sample_idx", np.int32)
    changes = (np.diff(prompt_idx) != 0) | (np.diff(sample_idx) != 0)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1, [len(prompt_idx)]] if len(prompt_idx) else [[0]])
    starts = starts.astype(np.int64)
    is_first = np.zeros(len(prompt_idx), dtype=bool)
    is_first[starts[:-1]] = True
    ids_RK = _fixed_width(columns["topk_ids"], path).astype(np.int32, copy=False)
    logprobs_RK = _fixed_width(columns["topk_logprobs"], path)
    if ids_RK.shape != logprobs_RK.shape:
        raise CoreError(f"{path}: topk_ids and topk_logprobs differ in length; run {schema.MADE_BY} again")
    if "has_kd" in lacking:
        has_kd = np.isfinite(logprobs_RK).any(axis=1) & ~is_first
    else:
        has_kd = column("has_kd", bool) & ~is_first
    is_prompt = is_first if "is_prompt" in lacking else column("is_prompt", bool) | is_first
    shard = _Shard(
        prompt_idx=prompt_idx,
        sample_idx=sample_idx,
        teacher_sample_id=column("teacher_sample_id", np.int32),
        topk_ids=ids_RK,
        topk_logprobs=logprobs_RK,
        other_logprob=column("other_logprob", np.float32),
        is_struct_token=column("is_struct_token", bool),
        is_prompt=is_prompt,
        has_kd=has_kd,
        sample_logprob=(
            np.full(len(prompt_idx), np.nan, dtype=np.float32)
            if "sample_logprob" in lacking
            else column("sample_logprob", np.float32)
        ),
        is_train=column("is_train", bool),
        starts=starts,
    )
    _check_values(shard, path, vocab_size)
    return _descending(shard), lacking


def _is_train(table: pa.Table, path: Path) -> NDArray[np.bool_]:
    if "split" in table.column_names:
        names = whole(table["split"].cast(pa.string()).dictionary_encode())
        dictionary = names.dictionary.to_pylist()
        unknown = sorted(set(dictionary) - set(schema.SPLITS))
        if unknown:
            raise CoreError(f'{path}: split "{unknown[0]}" is not one of: {", ".join(schema.SPLITS)}')
        result: NDArray[np.bool_] = np.array([name == "train" for name in dictionary], dtype=bool)[
            names.indices.to_numpy()
        ]
        return result
    prompts, row = np.unique(table["prompt_idx"].to_numpy(), return_inverse=True)
    return ~held_out([f"prompt_idx {prompt}" for prompt in prompts.tolist()], _FALLBACK_HOLDOUT, seed=0)[row]


def _in_order(table: pa.Table) -> pa.Table:
    """Sorted by prompt_idx, sample_idx, step_idx; as it is where it is so already (as KD shards v1 are)."""
    keys = [table[name].to_numpy() for name in ("step_idx", "sample_idx", "prompt_idx")]
    step, sample, prompt = (np.diff(key) for key in keys)
    sorted_ = (prompt > 0) | ((prompt == 0) & ((sample > 0) | ((sample == 0) & (step >= 0))))
    return table if sorted_.all() else table.take(np.lexsort(keys))


def _fixed_width(array: pa.Array, path: Path) -> NDArray[Any]:
    lengths = list_lengths(array)
    if not len(lengths):
        return flat_values(array).reshape(0, 1)
    if (lengths != lengths[0]).any() or lengths[0] == 0:
        raise CoreError(
            f"{path}: positions with {lengths.min()} to {lengths.max()} candidates; K must be one number, short lists "
            f"padded with id 0 and log-probability -inf: run {schema.MADE_BY} again"
        )
    return flat_values(array).reshape(len(lengths), int(lengths[0]))


def _check_values(shard: _Shard, path: Path, vocab_size: int | None) -> None:
    ids = (shard.teacher_sample_id, shard.topk_ids)
    if any(column.size and column.min() < 0 for column in ids) or _largest_id(shard) >= (vocab_size or np.inf):
        raise CoreError(
            f"{path}: token ids outside the vocabulary of {vocab_size}; the traces are another tokenizer's or the "
            f"file is damaged: run {schema.MADE_BY} again"
        )
    for name in ("topk_logprobs", "other_logprob"):
        values = getattr(shard, name)
        # max ignores nothing: a NaN anywhere makes it NaN, and NaN <= 1e-3 is False.
        if values.size and not values.max() <= 1e-3:
            raise CoreError(
                f"{path}: {name} holds {values.max()}, which is no log-probability; run {schema.MADE_BY} again"
            )


def _largest_id(shard: _Shard) -> int:
    return int(max(shard.teacher_sample_id.max(initial=-1), shard.topk_ids.max(initial=-1)))


def _descending(shard: _Shard) -> _Shard:
    """Candidates by falling log-probability, as KD shards v1 have them: clipping and top-1 rely on it."""
    logprobs_RK = shard.topk_logprobs
    if (logprobs_RK[:, 1:] <= logprobs_RK[:, :-1]).all():
        return shard
    order = np.argsort(-logprobs_RK, axis=1, kind="stable")
    return attrs.evolve(
        shard,
        topk_ids=np.take_along_axis(shard.topk_ids, order, axis=1),
        topk_logprobs=np.take_along_axis(logprobs_RK, order, axis=1),
    )


def _what_follows(folder: Path, lacking: Sequence[str]) -> str:
    consequences = {
        "sample_idx": "one sample a prompt is assumed",
        "is_prompt": "all positions but the first count as response",
        "has_kd": "positions with a candidate have KD",
        "sample_logprob": "the teacher's perplexity is unknown",
        "split": f"{_FALLBACK_HOLDOUT:.0%} of the prompts are held out by the hash of prompt_idx",
        "bitnet_kd metadata": "tokenizer and teacher are not checked",
    }
    return f"{folder}: the traces lack " + "; ".join(f"{name} ({consequences[name]})" for name in lacking)
