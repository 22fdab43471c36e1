"""Raw shards to KD traces, for a student with the teacher's own tokenizer: identity by id, exact.

D completions, P prompt tokens, T response tokens over all of them, R = P + T rows, C candidates, K kept, V vocabulary.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces.candidates import known_logprobs, top_k_with_other
from bitnet_core.traces.config import ProjectConfig
from bitnet_core.traces.raw import CROSS_TOKENIZER, RawBatch, RawFolder, RawReader, open_raw_folder
from bitnet_core.traces.schema import ROW_GROUP_ROWS, SHARDS, SPLITS, KDMetadata, kd_table, kd_writer
from bitnet_core.traces.splits import held_out
from bitnet_core.traces.stats import TraceSums
from bitnet_core.traces.structure import is_struct_token
from bitnet_core.traces.tokenizer import (
    id_to_bytes,
    load_tokenizer,
    special_ids,
    tokenizer_identity,
    tokenizer_sha256,
    vocabulary_size,
)

OnProgress = Callable[[int, int, str], None]
_CHECKED_TEXTS = 64
"""Completions of each batch whose text is compared with the bytes of their tokens."""
_TRUSTED_MASS = 1.001
"""Above this a position's mass is no rounding: it is reported."""


@attrs.frozen(eq=False)
class Vocabulary:
    """What the projection needs to know of each id of the student's tokenizer."""

    sha256: str
    size: int
    """V: ids that the traces may hold (the teacher's output width where it is larger than the tokenizer)."""
    bytes: pa.Array
    """binary [V]"""
    is_struct: NDArray[np.bool_]
    """[V]"""
    is_special: NDArray[np.bool_]
    """[V]"""


def project(
    raw_folder: Path,
    data_folder: Path,
    tokenizer_folder: Path,
    config: ProjectConfig,
    seed: int,
    on_progress: OnProgress = lambda done, total, note: None,
) -> dict[str, Any]:
    """Write ``kd_shard_NNN.parquet`` into `data_folder`; returns counts (plain JSON values).

    `tokenizer_folder`: the student's tokenizer, which must be the teacher's. No position is dropped: one without usable
    candidates keeps its token (CE only). Rows are sorted by prompt_idx, sample_idx, step_idx. Shards of an earlier
    projection go when all new ones are written. Memory: one raw row group and one KD shard.
    Raises CoreError where the tokenizers differ, a raw shard is damaged, or the disk refuses.
    """
    raw = open_raw_folder(raw_folder)
    vocabulary = load_vocabulary(tokenizer_folder, raw.metadata)
    order, repeated = completions_in_order(raw)
    empty = order[raw.response_lengths[order] == 0]
    order = order[raw.response_lengths[order] > 0]
    if not len(order):
        raise CoreError(f"{raw_folder}: no completion has a token; look at the prompts and the teacher, collect again")
    names = [raw.source_id[i] or f"prompt_idx {raw.prompt_idx[i]}" for i in order.tolist()]
    held_out_D = held_out(names, config.holdout_fraction, seed)
    k = max(1, int(raw.metadata["top_k"]))
    metadata = KDMetadata(
        k=k,
        vocab_size=vocabulary.size,
        tokenizer_sha256=vocabulary.sha256,
        raw=raw.metadata,
        projection={
            "path": "identity",
            "id": projection_id(raw, vocabulary, config, seed),
            "seed": seed,
            "holdout_fraction": config.holdout_fraction,
        },
    )

    reader, counted, sums = RawReader(raw), Counter[str](), TraceSums()
    largest_mass, done, files = 0.0, 0, []
    lengths = (raw.prompt_lengths + raw.response_lengths)[order]
    for number, shard in enumerate(cut(lengths, config.rows_per_shard)):
        file = data_folder / f"kd_shard_{number:03d}.parquet"
        with kd_writer(file, metadata) as writer:
            for part in cut(lengths[shard], ROW_GROUP_ROWS):
                chosen = order[shard][part]
                batch = reader.read(chosen)
                check_texts(batch, vocabulary, raw_folder, counted)
                table, mass = project_batch(
                    batch,
                    raw.prompt_idx[chosen],
                    raw.sample_idx[chosen],
                    held_out_D[shard][part],
                    vocabulary,
                    k,
                    counted,
                )
                largest_mass = max(largest_mass, mass)
                sums.add(table)
                writer.write_table(table, row_group_size=ROW_GROUP_ROWS)
                done += len(chosen)
                on_progress(done, len(order), f"{sums.rows:,} positions, {sums.kd_positions:,} with KD")
        files.append(file)
    for stale in set(data_folder.glob(SHARDS)) - set(files):
        stale.unlink()
    for leftover in data_folder.glob(f".{SHARDS}.partial"):  # of a projection that was killed
        leftover.unlink()
    kinds = Counter(raw.kind[i] for i in order.tolist())
    return {
        "shards": [file.name for file in files],
        "k": k,
        "vocab_size": vocabulary.size,
        "tokenizer_sha256": vocabulary.sha256,
        "projection": dict(metadata.projection),
        "completions": len(order),
        "completions_by_kind": dict(sorted(kinds.items())),
        "empty_completions": len(empty),
        "repeated_completions": repeated,
        **sums.summary(),
        **{
            name: counted[name]
            for name in (
                "missing_candidates",
                "merged_candidates",
                "positions_beyond_k",
                "mass_clamped_positions",
                "mass_above_one_positions",
                "sampled_outside_top_k",
                "texts_checked",
                "texts_differing",
            )
        },
        "largest_mass": largest_mass,
    }


# --- what belongs together -------------------------------------------------------------------------------------------


def load_vocabulary(folder: Path, raw_metadata: Mapping[str, Any]) -> Vocabulary:
    """The student's tokenizer as arrays over V. Raises CoreError where it is known not to be the teacher's."""
    tokenizer = load_tokenizer(folder)
    sha256, size = tokenizer_sha256(tokenizer), vocabulary_size(tokenizer)
    teacher = raw_metadata.get("teacher") or {}
    teacher_sha256 = teacher.get("tokenizer_sha256")
    teacher_folder = teacher.get("model_folder")
    if teacher_sha256 is None and teacher_folder and Path(teacher_folder).is_dir():
        same_folder = Path(teacher_folder).resolve() == Path(folder).resolve()
        teacher_sha256 = sha256 if same_folder else tokenizer_identity(Path(teacher_folder))[0]
    if teacher_sha256 is not None and teacher_sha256 != sha256:
        raise CoreError(
            f"the tokenizer in {folder} (sha256 {sha256}) is not the teacher's (sha256 {teacher_sha256}). "
            f"{CROSS_TOKENIZER}"
        )
    teacher_size = teacher.get("vocab_size")
    if teacher_sha256 is None and teacher_size is not None and teacher_size < size:
        raise CoreError(
            f"the tokenizer in {folder} has {size} ids, the teacher only {teacher_size}: it is not the teacher's. "
            f"{CROSS_TOKENIZER}"
        )
    # A model's output may be wider than its tokenizer (padded to a round number): its candidates can be any of these.
    width = max(size, teacher_size or 0)
    table = id_to_bytes(tokenizer, width)
    special = special_ids(tokenizer)
    is_special = np.zeros(width, dtype=bool)
    is_special[special] = True
    return Vocabulary(sha256, width, pa.array(table, pa.binary()), is_struct_token(table, special), is_special)


def completions_in_order(raw: RawFolder) -> tuple[NDArray[np.int64], int]:
    """Index positions sorted by prompt_idx, sample_idx, without repetitions (the first stays); how many those were."""
    order = np.lexsort((np.arange(len(raw.prompt_idx)), raw.sample_idx, raw.prompt_idx))
    prompt, sample = raw.prompt_idx[order], raw.sample_idx[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (prompt[1:] != prompt[:-1]) | (sample[1:] != sample[:-1])
    return order[first], int((~first).sum())


def projection_id(raw: RawFolder, vocabulary: Vocabulary, config: ProjectConfig, seed: int) -> str:
    """The same for all shards of one projection, so that a folder with a mixture of two is noticed."""
    record = {
        "raw": raw.metadata,
        "completions": hashlib.sha256(
            b"".join(np.ascontiguousarray(a).tobytes() for a in (raw.prompt_idx, raw.sample_idx, raw.response_lengths))
        ).hexdigest(),
        "tokenizer": vocabulary.sha256,
        "config": attrs.asdict(config) | {"tokenizer": None},
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]


def cut(lengths_D: NDArray[np.int64], rows: int) -> Iterator[slice]:
    """Consecutive runs of completions with at most `rows` rows each; one that is longer by itself stands alone."""
    ends = np.cumsum(lengths_D)
    start = 0
    while start < len(lengths_D):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + rows, side="right")))
        yield slice(start, stop)
        start = stop


def check_texts(batch: RawBatch, vocabulary: Vocabulary, raw_folder: Path, counted: Counter[str]) -> None:
    """Compare the text of some completions with the bytes of their tokens: another tokenizer would give other bytes.

    Special tokens may be absent from the text, and a leading space (SentencePiece) too. Raises CoreError where more
    than half of the texts differ.
    """
    offsets = np.concatenate([[0], np.cumsum(batch.response_lengths)])
    checked = min(_CHECKED_TEXTS, len(batch.text))
    check_id_range(batch.token_ids, vocabulary.size, "token_ids", raw_folder)
    differing = 0
    for completion in range(checked):
        ids = batch.token_ids[offsets[completion] : offsets[completion + 1]]
        spoken = {
            b"".join(vocabulary.bytes.take(pa.array(some)).to_pylist()).lstrip(b" ")
            for some in (ids, ids[~vocabulary.is_special[ids]])
        }
        differing += batch.text[completion].lstrip(b" ") not in spoken
    counted["texts_checked"] += checked
    counted["texts_differing"] += differing
    if differing > checked / 2:
        raise CoreError(
            f"{raw_folder}: in {differing} of {checked} completions the tokenizer's bytes for the teacher's ids are "
            f"not the teacher's text: it is not the teacher's tokenizer. {CROSS_TOKENIZER}"
        )


def check_id_range(ids: NDArray[np.int32], size: int, column: str, raw_folder: Path) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise CoreError(
            f"{raw_folder}: {column} holds ids from {ids.min()} to {ids.max()}, but the tokenizer has {size}: "
            f"it is not the teacher's. {CROSS_TOKENIZER}"
        )


# --- the projection itself -------------------------------------------------------------------------------------------


def project_batch(
    batch: RawBatch,
    prompt_idx_D: NDArray[np.int64],
    sample_idx_D: NDArray[np.int64],
    held_out_D: NDArray[np.bool_],
    vocabulary: Vocabulary,
    k: int,
    counted: Counter[str],
) -> tuple[pa.Table, float]:
    """The KD rows of some completions (columns of `schema.SCHEMA`), and the largest mass; adds to `counted`."""
    place = Path(f"prompts {prompt_idx_D[0]} to {prompt_idx_D[-1]}")
    check_id_range(batch.prompt_ids, vocabulary.size, "prompt_ids", place)
    check_id_range(
        batch.candidate_ids[known_logprobs(batch.candidate_logprobs)], vocabulary.size, "candidate_ids", place
    )
    lengths_D = batch.prompt_lengths + batch.response_lengths
    rows = int(lengths_D.sum())
    starts_D = np.cumsum(lengths_D) - lengths_D
    completion_R = np.repeat(np.arange(len(lengths_D)), lengths_D)
    step_R = np.arange(rows) - starts_D[completion_R]
    in_prompt_R = step_R < batch.prompt_lengths[completion_R]
    ids_R = np.empty(rows, dtype=np.int32)
    ids_R[in_prompt_R] = batch.prompt_ids
    ids_R[~in_prompt_R] = batch.token_ids

    top = top_k_with_other(batch.candidate_counts, batch.candidate_ids, batch.candidate_logprobs, k)
    # Nothing stands before step 0, so nothing of the student's can be compared with it: KD and CE both begin at step 1.
    targeted_T = step_R[~in_prompt_R] > 0
    has_kd_T = np.isfinite(top.logprobs[:, 0]) & targeted_T
    topk_ids_RK = np.zeros((rows, k), dtype=np.int32)
    topk_logprobs_RK = np.full((rows, k), -np.inf, dtype=np.float16)
    other_R = np.zeros(rows, dtype=np.float32)
    has_kd_R = np.zeros(rows, dtype=bool)
    sample_logprob_R = np.full(rows, np.nan, dtype=np.float32)
    has_kd_R[~in_prompt_R] = has_kd_T
    topk_ids_RK[has_kd_R] = top.ids[has_kd_T]
    topk_logprobs_RK[has_kd_R] = top.logprobs[has_kd_T]
    other_R[has_kd_R] = top.other[has_kd_T]
    token_logprobs_T = batch.token_logprobs
    sample_logprob_R[~in_prompt_R] = np.where(
        known_logprobs(token_logprobs_T) & targeted_T, np.minimum(token_logprobs_T, 0.0), np.nan
    )

    is_sampled_NK = (top.ids == batch.token_ids[:, None]) & np.isfinite(top.logprobs)
    counted["sampled_outside_top_k"] += int((has_kd_T & ~is_sampled_NK.any(axis=1)).sum())
    counted["missing_candidates"] += top.missing
    counted["merged_candidates"] += top.merged
    counted["positions_beyond_k"] += top.clipped
    counted["mass_clamped_positions"] += top.clamped
    counted["mass_above_one_positions"] += int((top.mass > _TRUSTED_MASS).sum())
    split_R = pa.DictionaryArray.from_arrays(
        pa.array(held_out_D[completion_R].astype(np.int32)), pa.array(SPLITS, pa.string())
    )
    columns = {
        "prompt_idx": prompt_idx_D[completion_R],
        "sample_idx": sample_idx_D[completion_R].astype(np.int32),
        "step_idx": step_R.astype(np.int32),
        "teacher_sample_id": ids_R,
        "other_logprob": other_R,
        "is_struct_token": vocabulary.is_struct[ids_R],
        "teacher_sample_text": vocabulary.bytes.take(pa.array(ids_R)),
        "is_prompt": in_prompt_R | (step_R == 0),
        "has_kd": has_kd_R,
        "sample_logprob": sample_logprob_R,
        "split": split_R,
    }
    return kd_table(columns, topk_ids_RK, topk_logprobs_RK), float(top.mass.max(initial=0.0))
