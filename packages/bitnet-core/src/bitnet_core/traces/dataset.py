"""KD traces as sequences and batches. B sequences, T positions, K candidates, D documents, N positions."""

import warnings
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import Dataset

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.checks_on_reading import NOTHING_BEFORE
from bitnet_core.traces.collate import PADDING, KDBatch, Side, check_side, collate_fn
from bitnet_core.traces.parquet import damage_named, open_parquet, shard_files
from bitnet_core.traces.read_shards import (
    TOKEN,
    Part,
    PartRows,
    ShardIndex,
    as_words,
    in_split,
    index_shard,
    read_part,
    with_splits,
)
from bitnet_core.traces.splits import FALLBACK_HOLDOUT
from bitnet_core.traces.target_kinds import TOPK, extra_columns, is_sampled
from bitnet_core.traces.tokenizer import Identity, tokenizer_digests

__all__ = ["KDBatch", "KDPositions", "KDTraceDataset", "clip_topk", "collate_fn"]

CACHE_BYTES = 48 * 2**20
"""Decoded rows that a dataset keeps: about 370,000 positions at K = 20."""
_ROW_BYTES = 16
"""Of a decoded row, beside 6 bytes a candidate."""


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
    log_z: NDArray[np.float32] | None = None
    """[N] where the target's kind has it (docs/targets.md)"""
    entropy: NDArray[np.float32] | None = None
    """[N] of a sampled target: the teacher's, of its whole distribution"""


class KDTraceDataset(Dataset[KDBatch]):
    """The documents (a prompt's completion, prompt included) of a folder's KD shards; item i is a dict of tensors [T].

    Memory does not grow with the data, but for 24 bytes a document: rows are decoded a part (a row group) at a time and
    the last `cache_bytes` of them are kept. Where all fits it is decoded once; beyond, walk the documents window by
    window (`windows`; `epoch_batches` and `TraceBatches` do) and each part is decoded once an epoch.

    folder: where the ``kd_shard_*.parquet`` are, or one such file. split: "train", "heldout", "test", or None for all.
    tokenizer_folder: the student's tokenizer; its digest must be the traces'. max_seq_len: positions kept of an item.
    max_topk: candidates kept; the mass of the others moves to other. Shards with the seed's seven columns alone load
    too, and a warning says what they lack.
    Raises CoreError for an empty folder, a damaged shard, shards that don't belong together, another tokenizer, ids
    outside the vocabulary, rows twice, missing or out of order, and a split without documents. The candidates' own
    bytes are read, and checked, when an item needs them: damage there, a mass that is not 1, and a candidate twice are
    told then (`bitnet traces validate` reads everything).
    """

    def __init__(
        self,
        folder: Path | str,
        split: Literal["train", "heldout", "test"] | str | None = None,
        *,
        tokenizer_folder: Path | str | None = None,
        max_seq_len: int | None = None,
        max_topk: int | None = None,
        cache_bytes: int = CACHE_BYTES,
    ) -> None:
        _check_settings(split, max_seq_len=max_seq_len, max_topk=max_topk)
        folder = Path(folder)
        files = [folder] if folder.is_file() else shard_files(folder, schema.SHARDS, schema.MADE_BY)
        identity = tokenizer_digests(Path(tokenizer_folder)) if tokenizer_folder is not None else None
        self.split = split
        self.metadata = common_metadata(files)
        """The shards' metadata; None where they have none."""
        if identity is not None and self.metadata is not None:
            check_tokenizer(self.metadata, identity, folder, Path(str(tokenizer_folder)))
        self.target = self.metadata.target if self.metadata else TOPK
        """``kind`` of the targets, and its settings (docs/targets.md)."""
        self._stated_vocab_size = self.metadata.vocab_size if self.metadata else identity.size if identity else None
        indexes = _index_shards(files, self._stated_vocab_size)
        lacking = sorted({name for index in indexes for name in index.lacking})
        self.lacking: tuple[str, ...] = (*lacking, *(() if self.metadata else ("bitnet_kd metadata",)))
        """What the shards don't say (columns, metadata); empty for KD shards v1 and v2."""
        if self.lacking:
            warnings.warn(_what_follows(folder, self.lacking), stacklevel=2)
        self._parts: list[Part] = [part for index in indexes for part in index.parts if in_split(part, split).any()]
        if not self._parts:
            wanted = "" if split is None else f' in split "{split}"'
            raise CoreError(f"{folder}: no document{wanted}", "collect more, or change project.holdout_fraction")
        stored_k = _one_width(folder, indexes, self.metadata)
        if is_sampled(self.target) and max_topk is not None and max_topk < stored_k:
            raise CoreError(
                f"{folder}: sampled targets can't be cut to max_topk = {max_topk}: without some of its draws an "
                "estimate is biased",
                "leave max_topk out, or collect again with a lower collect.draws",
            )
        is_half = all(index.logprob_dtype == np.float16 for index in indexes)
        self._logprob_dtype = np.dtype(np.float16 if is_half else np.float32)
        self.k: int = min(stored_k, max_topk or stored_k)
        """Candidates of each position, K."""
        self.vocab_size: int = self._stated_vocab_size or 1 + max(index.largest_id for index in indexes)
        """V: the tokenizer's; where nothing says it, one more than the largest id."""
        self.cache_bytes = cache_bytes
        self._cache: OrderedDict[int, PartRows] = OrderedDict()
        self._row_bytes = (8 if is_sampled(self.target) else 6) * stored_k + _ROW_BYTES
        self._row_bytes += 4 * len(extra_columns(self.target))
        self._list_documents(max_seq_len)

    def _list_documents(self, max_seq_len: int | None) -> None:
        """Where each document of the parts is, and how long."""
        kept = [in_split(part, self.split) for part in self._parts]
        lengths = [np.diff(part.starts)[keep] for part, keep in zip(self._parts, kept, strict=True)]
        self.full_lengths: NDArray[np.int64] = np.concatenate(lengths)
        """int64 [documents]: positions of each document, before max_seq_len."""
        self.lengths: NDArray[np.int64] = np.minimum(self.full_lengths, max_seq_len or np.iinfo(np.int64).max)
        """int64 [documents]: positions of each item."""
        self.prompt_idx: NDArray[np.int64] = np.concatenate(
            [part.prompt_idx[keep] for part, keep in zip(self._parts, kept, strict=True)]
        )
        """int64 [documents]"""
        counts = [len(part_lengths) for part_lengths in lengths]
        self._part_of = np.repeat(np.arange(len(counts)), counts)
        self._first_of_part = np.cumsum([0, *counts])
        self._first_row = np.concatenate([np.cumsum(part_lengths) - part_lengths for part_lengths in lengths])

    def __len__(self) -> int:
        return len(self.lengths)

    @property
    def windows(self) -> NDArray[np.int64]:
        """int64 [documents]: numbers that part the documents so that those of one window fit into the cache together.

        A window takes parts from all over the data, so that its documents are a fair sample.
        """
        rows_of_part = [int(self.full_lengths[a:b].sum()) for a, b in zip(*self._part_edges(), strict=True)]
        at_once = max(1, self.cache_bytes // (max(rows_of_part) * self._row_bytes))
        count = -(-len(self._parts) // at_once)
        return self._part_of % count

    def __getitem__(self, index: int) -> KDBatch:
        """The tensors of one document (see KDBatch, without B), freshly made."""
        if not -len(self) <= index < len(self):
            raise IndexError(f"document {index} of {len(self)}")
        return {name: tensor[0] for name, tensor in self.batch([index % len(self)]).items()}

    def batch(
        self, indices: Sequence[int] | NDArray[np.integer], pad_token_id: int = 0, side: Side = "right"
    ) -> KDBatch:
        """What `collate_fn` makes of these items, without making them one by one. Raises CoreError as it does."""
        check_side(side)
        documents = [int(index) for index in indices]
        if not documents:
            raise CoreError("a batch of no documents", "name at least one")
        part_B, length_B, first_B = (of[documents] for of in (self._part_of, self.lengths, self._first_row))
        shape = (len(documents), int(length_B.max()))
        tokens_BT = np.empty(shape, dtype=TOKEN)
        words_BTW = as_words(tokens_BT)
        words_BTW[:] = as_words(_pad_token(pad_token_id))
        # Filled as they are stored, and widened by rows: torch is seven times faster than numpy at halves, but for more
        # than some ten thousand at once it calls in threads that wait for each other longer than the work takes.
        ids_BTK = np.zeros((*shape, self.k), dtype=np.int32)
        logprobs_BTK = np.full((*shape, self.k), PADDING["topk_logprobs"], dtype=self._logprob_dtype)
        names = extra_columns(self.target)
        extra_BTE = np.zeros((*shape, len(names)), dtype=np.float32)
        for number in np.unique(part_B).tolist():
            rows = self._rows(number)
            words_RW = as_words(rows.tokens)
            for b in np.flatnonzero(part_B == number).tolist():
                length, first = int(length_B[b]), int(first_B[b])
                source = slice(first, first + length)
                where = slice(0, length) if side == "right" else slice(shape[1] - length, shape[1])
                words_BTW[b, where] = words_RW[source]
                ids_BTK[b, where], logprobs_BTK[b, where], other = self._candidates(rows, source)
                extra_BTE[b, where] = rows.extra[source]
                if self.k < rows.topk_ids.shape[1]:
                    tokens_BT["other_logprob"][b, where] = other
        topk_logprobs_BTK = torch.empty(logprobs_BTK.shape)
        for wide, stored in zip(topk_logprobs_BTK, torch.from_numpy(logprobs_BTK), strict=True):
            wide.copy_(stored)
        steps_T = np.arange(shape[1])
        is_token_BT = steps_T < length_B[:, None] if side == "right" else steps_T >= shape[1] - length_B[:, None]
        columns = {name: torch.from_numpy(tokens_BT[name].copy()) for name in TOKEN.names or ()}
        input_ids = columns["teacher_sample_id"].long()
        return {
            "input_ids": input_ids,
            "attention_mask": torch.from_numpy(is_token_BT),
            **columns,
            "teacher_sample_id": input_ids.clone(),
            "topk_ids": torch.from_numpy(ids_BTK.astype(np.int64)),
            "topk_logprobs": topk_logprobs_BTK,
            **{name: torch.from_numpy(extra_BTE[..., e].copy()) for e, name in enumerate(names)},
        }

    def positions(self, split: str | None = None) -> KDPositions:
        """Every KD position of the items (of one split, of those loaded), as the items have them: cut, clipped."""
        if split is not None and self.split not in (None, split):
            raise CoreError(f'positions("{split}") of a dataset with split "{self.split}"', f'load split "{split}"')
        gathered: list[tuple[NDArray[Any], ...]] = []
        for number, (start, stop) in enumerate(zip(*self._part_edges(), strict=True)):
            rows, part, full = self._rows(number), self._parts[number], self.full_lengths[start:stop]
            step = np.arange(int(full.sum())) - np.repeat(self._first_row[start:stop], full)
            chosen = rows.tokens["has_kd"] & (step < np.repeat(self.lengths[start:stop], full))
            if split is not None:
                chosen &= np.repeat(in_split(part, split)[in_split(part, self.split)], full)
            where = np.flatnonzero(chosen)
            ids, logprobs, other = self._candidates(rows, where)
            document = np.repeat(np.arange(start, stop), full)[where]
            # has_kd is never set at a document's first row, so the row before belongs to the same document.
            tokens = rows.tokens["teacher_sample_id"]
            gathered.append((tokens[where - 1], ids, logprobs, other, tokens[where], document, *rows.extra[where].T))
        return KDPositions(*(np.concatenate(column) for column in zip(*gathered, strict=True)))

    def _part_edges(self) -> tuple[list[int], list[int]]:
        edges: list[int] = self._first_of_part.tolist()
        return edges[:-1], edges[1:]

    def _rows(self, number: int) -> PartRows:
        """A part's rows out of the cache, which they enter if need be, and push out what was used longest ago."""
        rows = self._cache.get(number)
        if rows is not None:
            self._cache.move_to_end(number)
            return rows
        # Room is made before reading, so that old and new parts don't stand in memory together.
        expected = self._row_bytes * int(self.full_lengths[slice(*self._first_of_part[number : number + 2])].sum())
        while self._cache and expected + sum(kept.nbytes for kept in self._cache.values()) > self.cache_bytes:
            self._cache.popitem(last=False)
        rows = self._cache[number] = read_part(self._parts[number], self.split, self._stated_vocab_size)
        return rows

    def _candidates(
        self, rows: PartRows, which: slice | NDArray[np.int64]
    ) -> tuple[NDArray[np.int32], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
        return clip_topk(rows.topk_ids[which], rows.topk_logprobs[which], rows.tokens["other_logprob"][which], self.k)

    def __getstate__(self) -> dict[str, Any]:
        # A DataLoader's worker fills its own cache.
        return self.__dict__ | {"_cache": OrderedDict()}


def _pad_token(pad_token_id: int) -> NDArray[np.void]:
    """[] of `TOKEN`"""
    padding = PADDING | {"teacher_sample_id": pad_token_id}
    return np.array(tuple(padding.get(name, 0) for name in TOKEN.names or ()), dtype=TOKEN)


def clip_topk(
    ids_NK: NDArray[np.int32], logprobs_NK: NDArray[np.floating[Any]], other_N: NDArray[np.floating[Any]], k: int
) -> tuple[NDArray[np.int32], NDArray[np.floating[Any]], NDArray[np.floating[Any]]]:
    """Keep the first `k` candidates; the others' mass joins other (log-sum-exp in float64)."""
    if k >= ids_NK.shape[1]:
        return ids_NK, logprobs_NK, other_N
    cut = logprobs_NK[:, k:].astype(np.float64)
    other = np.logaddexp(other_N.astype(np.float64), np.logaddexp.reduce(cut, axis=1))
    return ids_NK[:, :k], logprobs_NK[:, :k], other


# --- checks ----------------------------------------------------------------------------------------------------------


def _check_settings(split: str | None, **at_least_1: int | None) -> None:
    if split is not None and split not in schema.SPLITS:
        raise CoreError(f'there is no split "{split}"', f"choose one of: {', '.join(schema.SPLITS)}")
    for name, value in at_least_1.items():
        if value is not None and value < 1:
            raise CoreError(f"{name} = {value} is too low", "set it to at least 1")


def _index_shards(files: Sequence[Path], vocabulary: int | None) -> list[ShardIndex]:
    """Each begins where the one before has ended. Raises CoreError for rows twice, missing or out of order."""
    indexes: list[ShardIndex] = []
    for file in files:
        with damage_named(file, schema.MADE_BY):
            indexes.append(index_shard(file, vocabulary, indexes[-1].last if indexes else NOTHING_BEFORE))
    return with_splits(indexes)


def _one_width(folder: Path, indexes: Sequence[ShardIndex], metadata: schema.KDMetadata | None) -> int:
    """K, which must be that of all shards. Raises CoreError."""
    widths = {index.k for index in indexes if index.k is not None} | ({metadata.k} if metadata else set())
    if len(widths) != 1:
        raise CoreError(
            f"{folder}: the shards have {' and '.join(map(str, sorted(widths)))} candidates a position, and "
            "K must be one number",
            f"run {schema.MADE_BY} again",
        )
    return widths.pop()


def common_metadata(files: Sequence[Path]) -> schema.KDMetadata | None:
    """The metadata of the first shard, when all shards belong to one projection."""
    found = []
    for path in files:
        parquet_schema = open_parquet(path, schema.MADE_BY).schema_arrow
        schema.check_columns(parquet_schema, path)
        found.append(schema.read_metadata(parquet_schema, path))
    first = found[0]
    for path, other in zip(files[1:], found[1:], strict=True):
        if (other is None) != (first is None):
            raise CoreError(f"{files[0]} and {path.name}: one has bitnet_kd metadata, one has none", "keep them apart")
        if first is not None and other is not None:
            for name in ("tokenizer_sha256", "k", "vocab_size", "projection", "target", "tokenizer", "template"):
                ours, theirs = getattr(first, name), getattr(other, name)
                if ours != theirs:
                    raise CoreError(
                        f"{files[0]} and {path.name} come from different projections ({name} {ours} and {theirs})",
                        f"run {schema.MADE_BY} again",
                    )
    return first


def check_tokenizer(metadata: schema.KDMetadata, found: Identity, folder: Path, tokenizer_folder: Path) -> None:
    """Raise CoreError where the tokenizer's ids, or its way of cutting text, are not those of the traces."""
    fix = f"set project.tokenizer to the traces' tokenizer, or run {schema.MADE_BY} again"
    if found.ids != metadata.tokenizer_sha256:
        raise CoreError(
            f"{folder}: the traces were made for the tokenizer with sha256 {metadata.tokenizer_sha256}, but the one in "
            f"{tokenizer_folder} has {found.ids}",
            fix,
        )
    if metadata.tokenizer["cutting"] not in (None, found.cutting):
        raise CoreError(
            f"{folder}: the tokenizer in {tokenizer_folder} has the traces' ids, but cuts text otherwise: its "
            "normaliser, pre-tokenizer, post-processor, decoder or added tokens' flags have changed",
            fix,
        )


def _what_follows(folder: Path, lacking: Sequence[str]) -> str:
    consequences = {
        "sample_idx": "one sample a prompt is assumed",
        "is_prompt": "all positions but the first count as response",
        "has_kd": "positions with a candidate have KD",
        "sample_logprob": "the teacher's perplexity is unknown",
        "split": f"{FALLBACK_HOLDOUT:.0%} of the prompts are held out by the hash of prompt_idx",
        "bitnet_kd metadata": "tokenizer and teacher are not checked",
    }
    return f"{folder}: the traces lack " + "; ".join(f"{name} ({consequences[name]})" for name in lacking)
