"""Raw shards to KD traces: by id where the student has the teacher's own tokenizer, else by bytes (align.py).

D completions, P prompt tokens, T response tokens over all of them (the student's), R = P + T rows, N positions with
candidates, C candidates, K kept, V vocabulary.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces.align import Aligned, Aligner, TeacherTokens
from bitnet_core.traces.candidates import TopK, known_logprobs, top_k_with_other
from bitnet_core.traces.config import ProjectConfig
from bitnet_core.traces.first_subtoken import NONE
from bitnet_core.traces.raw import CROSS_TOKENIZER, RawAnswers, RawBatch, RawFolder, RawReader, open_raw_folder
from bitnet_core.traces.schema import ROW_GROUP_ROWS, SHARDS, SPLITS, KDMetadata, kd_table
from bitnet_core.traces.shard_files import ShardFiles, cut
from bitnet_core.traces.splits import held_out
from bitnet_core.traces.stats import TraceSums
from bitnet_core.traces.structure import is_struct_token
from bitnet_core.traces.student_text import UNKNOWN, Student
from bitnet_core.traces.tokenizer import (
    end_ids,
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

    `tokenizer_folder`: the student's tokenizer. No position is dropped: one without usable candidates keeps its token
    (CE only). Rows are sorted by prompt_idx, sample_idx, step_idx. Shards of an earlier projection go when all new ones
    are written. Memory: one raw row group and one KD shard.
    Raises CoreError where ids can't be read without a tokenizer that is gone, a raw shard is damaged, or the disk
    refuses.
    """
    raw = open_raw_folder(raw_folder)
    way = choose_way(raw, raw_folder, tokenizer_folder, config)
    vocabulary = way.vocabulary
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
            "path": way.name,
            "id": projection_id(raw, vocabulary, config, seed),
            "seed": seed,
            "holdout_fraction": config.holdout_fraction,
            **({"sampled_span": config.sampled_span} if way.aligner else {}),
        },
    )

    reader, counted, sums = RawReader(raw), Counter[str](), TraceSums()
    mass = dict.fromkeys(("merged", "span", "unmapped"), 0.0)
    largest_mass, done = 0.0, 0
    with ShardFiles(data_folder, metadata, config.rows_per_shard) as shards:
        for part in cut((raw.prompt_lengths + raw.response_lengths)[order], ROW_GROUP_ROWS):
            chosen = order[part]
            if way.aligner is None:
                batch = reader.read(chosen)
                check_texts(batch, vocabulary, raw_folder, counted)
                targets = identity_targets(batch, vocabulary, k, counted)
            else:
                answers = reader.read_answers(chosen)
                check_answer_ids(answers, way, raw_folder)
                targets = aligned_targets(way.aligner.align(answers, counted, mass), k)
                check_assumed_tokenizer(way, counted, raw_folder)
            table = target_rows(
                targets, raw.prompt_idx[chosen], raw.sample_idx[chosen], held_out_D[part], vocabulary, counted
            )
            largest_mass = max(largest_mass, float(targets.top.mass.max(initial=0.0)))
            mass["merged"] += targets.top.merged_mass
            sums.add(table)
            shards.write(table, targets.prompt_lengths + targets.response_lengths)
            done += len(chosen)
            on_progress(done, len(order), f"{sums.rows:,} positions, {sums.kd_positions:,} with KD")
    for stale in set(data_folder.glob(SHARDS)) - set(shards.files):
        stale.unlink()
    for leftover in data_folder.glob(f".{SHARDS}.partial"):  # of a projection that was killed
        leftover.unlink()
    kinds = Counter(raw.kind[i] for i in order.tolist())
    per_position = max(1, sums.kd_positions)
    return {
        "shards": [file.name for file in shards.files],
        "k": k,
        "vocab_size": vocabulary.size,
        "tokenizer_sha256": vocabulary.sha256,
        "projection": dict(metadata.projection),
        "completions": len(order),
        "completions_by_kind": dict(sorted(kinds.items())),
        "empty_completions": len(empty),
        "repeated_completions": repeated,
        **sums.summary(),
        **{name: counted[name] for name in _COUNTS},
        "merged_mass": mass["merged"] / per_position,
        "largest_mass": largest_mass,
        **({} if way.aligner is None else _aligned_summary(counted, mass, per_position, raw, order)),
    }


_COUNTS = (
    *("missing_candidates", "merged_candidates", "positions_beyond_k", "mass_clamped_positions"),
    *("mass_above_one_positions", "sampled_outside_top_k", "texts_checked", "texts_differing"),
)
_ALIGNED_COUNTS = (
    *("spans_of_several_tokens", "spans_with_unknown_logprobs", "unmapped_candidates", "cut_characters"),
    "prompt_boundaries_forced",
)


def _aligned_summary(
    counted: Counter[str], mass: Mapping[str, float], per_position: int, raw: RawFolder, order: NDArray[np.int64]
) -> dict[str, Any]:
    reasons = {name: count for name, count in sorted(counted.items()) if name.startswith("ce_only_")}
    return {
        **{name: counted[name] for name in _ALIGNED_COUNTS},
        "ce_only": {name.removeprefix("ce_only_"): count for name, count in reasons.items()},
        "mass_lost_to_other": (mass["unmapped"] + mass["span"]) / per_position,
        "unmapped_mass": mass["unmapped"] / per_position,
        "span_mass": mass["span"] / per_position,
        "teacher_tokens": int(raw.response_lengths[order].sum()),
    }


# --- what belongs together -------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Way:
    """How this raw folder is projected for this student."""

    name: str
    """"identity" or "bytes"."""
    vocabulary: Vocabulary
    aligner: Aligner | None
    teacher: TeacherTokens | None
    assumed: bool
    """Nothing but the texts says that the teacher's ids are of the student's tokenizer."""


def choose_way(raw: RawFolder, raw_folder: Path, tokenizer_folder: Path, config: ProjectConfig) -> Way:
    """Identity where ids are there and the tokenizer is the teacher's; else by bytes: the teacher's own, or its ids'.

    Raises CoreError where the teacher gave ids of another tokenizer whose folder is gone.
    """
    tokenizer = load_tokenizer(tokenizer_folder)
    sha256, size = tokenizer_sha256(tokenizer), vocabulary_size(tokenizer)
    teacher = raw.metadata.get("teacher") or {}
    teacher_folder = Path(teacher["model_folder"]) if teacher.get("model_folder") else None
    teacher_sha256 = teacher.get("tokenizer_sha256")
    if teacher_sha256 is None and teacher_folder is not None and teacher_folder.is_dir():
        same_folder = teacher_folder.resolve() == Path(tokenizer_folder).resolve()
        teacher_sha256 = sha256 if same_folder else tokenizer_identity(teacher_folder)[0]
    same = teacher_sha256 == sha256
    # A model's output may be wider than its tokenizer (padded to a round number): its candidates can be any of these.
    width = max(size, (teacher.get("vocab_size") or 0)) if same or teacher_sha256 is None else size
    by_id = raw.without_ids is None and (same or (teacher_sha256 is None and not raw.has_bytes))
    if by_id and config.alignment == "auto":
        _check_size(tokenizer_folder, size, teacher, teacher_sha256)
        return Way("identity", load_vocabulary(tokenizer, sha256, width), None, None, teacher_sha256 is None)

    tokens, assumed = None, False
    student = Student(Path(tokenizer_folder), read_template(config.chat_template))
    if not raw.has_bytes:
        assumed = teacher_sha256 is None
        if same or assumed:
            _check_size(tokenizer_folder, size, teacher, teacher_sha256)
            tokens = teacher_tokens(tokenizer, Path(tokenizer_folder), width, student, same_tokenizer=True)
        elif teacher_folder is not None and teacher_folder.is_dir():
            theirs = load_tokenizer(teacher_folder)
            their_width = max(vocabulary_size(theirs), teacher.get("vocab_size") or 0)
            tokens = teacher_tokens(theirs, teacher_folder, their_width, student, same_tokenizer=False)
        else:
            raise CoreError(
                f"{raw_folder}: the teacher gave token ids but no bytes, its tokenizer (sha256 {teacher_sha256}) is "
                f"not the one in {tokenizer_folder} (sha256 {sha256}), and its folder "
                f"{teacher_folder or '(teacher.model_folder: not named)'} is not there. {CROSS_TOKENIZER}"
            )
    vocabulary = load_vocabulary(tokenizer, sha256, width)
    return Way("bytes", vocabulary, Aligner(student, tokens, config.sampled_span), tokens, assumed)


def _check_size(folder: Path, size: int, teacher: Mapping[str, Any], teacher_sha256: str | None) -> None:
    teacher_size = teacher.get("vocab_size")
    if teacher_sha256 is None and teacher_size is not None and teacher_size < size:
        raise CoreError(
            f"the tokenizer in {folder} has {size} ids, the teacher only {teacher_size}: it is not the teacher's. "
            f"{CROSS_TOKENIZER}"
        )


def read_template(file: str) -> str | None:
    """The text of ``project.chat_template``; None for "". Raises CoreError where it can't be read."""
    if not file:
        return None
    try:
        return Path(file).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CoreError(f"{file}: cannot be read ({error}); set project.chat_template to a Jinja file") from error


def load_vocabulary(tokenizer: Any, sha256: str, width: int) -> Vocabulary:
    """The student's tokenizer as arrays over V = `width`. Raises CoreError where its tokens' bytes can't be told."""
    table = id_to_bytes(tokenizer, width)
    special = special_ids(tokenizer)
    is_special = np.zeros(width, dtype=bool)
    is_special[special] = True
    return Vocabulary(sha256, width, pa.array(table, pa.binary()), is_struct_token(table, special), is_special)


def teacher_tokens(
    tokenizer: Any, folder: Path, width: int, student: Student, *, same_tokenizer: bool
) -> TeacherTokens:
    """The teacher's ids as bytes, and what its special tokens are to the student.

    A token that ends a generation is the student's own of that name where it ends one too, else the student's end of
    turn; another special token is the student's of that name, or nothing. Raises CoreError.
    """
    table = id_to_bytes(tokenizer, width)
    special, ends = special_ids(tokenizer), end_ids(folder, tokenizer)
    is_special, is_end = np.zeros(width, dtype=bool), np.zeros(width, dtype=bool)
    is_special[special] = True
    is_end[[id_ for id_ in ends if id_ < width]] = True
    if same_tokenizer:
        student_id = np.arange(width, dtype=np.int32)
    else:
        student_id = np.full(width, UNKNOWN, dtype=np.int32)
        for id_ in {*special, *ends}:
            twin = student.special_id(table[id_].decode("utf-8", "replace"))
            if id_ in ends and twin not in student.end_ids:
                twin = student.end_of_turn
            student_id[id_] = NONE if twin is None else twin
    return TeacherTokens(pa.array(table, pa.binary()), is_special, student_id, is_end)


def check_answer_ids(answers: RawAnswers, way: Way, raw_folder: Path) -> None:
    if way.teacher is not None:
        for name, ids in (("token_ids", answers.tokens), ("candidate_ids", answers.candidates)):
            check_id_range(ids.to_numpy(), len(way.teacher.bytes), name, raw_folder)


def check_assumed_tokenizer(way: Way, counted: Counter[str], raw_folder: Path) -> None:
    if way.assumed and counted["texts_differing"] > counted["texts_checked"] / 2:
        raise _not_the_teachers(raw_folder, counted["texts_differing"], counted["texts_checked"])


def _not_the_teachers(raw_folder: Path, differing: int, checked: int) -> CoreError:
    return CoreError(
        f"{raw_folder}: in {differing} of {checked} completions the tokenizer's bytes for the teacher's ids are "
        f"not the teacher's text: it is not the teacher's tokenizer. {CROSS_TOKENIZER}"
    )


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
        raise _not_the_teachers(raw_folder, differing, checked)


def check_id_range(ids: NDArray[np.int32], size: int, column: str, raw_folder: Path) -> None:
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        raise CoreError(
            f"{raw_folder}: {column} holds ids from {ids.min()} to {ids.max()}, but the tokenizer has {size}: "
            f"it is not the teacher's. {CROSS_TOKENIZER}"
        )


# --- the projection itself -------------------------------------------------------------------------------------------


@attrs.frozen(eq=False)
class Targets:
    """Some completions in the student's tokens, with candidates + other where the teacher gave them."""

    prompt_lengths: NDArray[np.int64]
    """[D]"""
    response_lengths: NDArray[np.int64]
    """[D]"""
    prompt_ids: NDArray[np.int32]
    """[P]"""
    response_ids: NDArray[np.int32]
    """[T]"""
    sample_logprob: NDArray[np.float32]
    """[T] NaN: unknown"""
    kd_rows: NDArray[np.int64]
    """[N] positions within T"""
    top: TopK
    """of the N"""


def identity_targets(batch: RawBatch, vocabulary: Vocabulary, k: int, counted: Counter[str]) -> Targets:
    """The teacher's tokens are the student's."""
    place = Path("prompt_ids and candidate_ids of a batch")
    check_id_range(batch.prompt_ids, vocabulary.size, "prompt_ids", place)
    known_C = known_logprobs(batch.candidate_logprobs)
    check_id_range(batch.candidate_ids[known_C], vocabulary.size, "candidate_ids", place)
    top = top_k_with_other(batch.candidate_counts, batch.candidate_ids, batch.candidate_logprobs, k)
    is_sampled_TK = (top.ids == batch.token_ids[:, None]) & np.isfinite(top.logprobs)
    targeted_T = np.isfinite(top.logprobs[:, 0]) & ~_first_steps(batch.prompt_lengths, batch.response_lengths)
    counted["sampled_outside_top_k"] += int((targeted_T & ~is_sampled_TK.any(axis=1)).sum())
    counted["missing_candidates"] += top.missing
    return Targets(
        prompt_lengths=batch.prompt_lengths,
        response_lengths=batch.response_lengths,
        prompt_ids=batch.prompt_ids,
        response_ids=batch.token_ids,
        sample_logprob=np.where(
            known_logprobs(batch.token_logprobs), np.minimum(batch.token_logprobs, 0.0), np.nan
        ).astype(np.float32),
        kd_rows=np.arange(len(batch.token_ids)),
        top=top,
    )


def aligned_targets(aligned: Aligned, k: int) -> Targets:
    """What `Aligner.align` gave, cut to K."""
    return Targets(
        prompt_lengths=aligned.prompt_lengths,
        response_lengths=aligned.response_lengths,
        prompt_ids=aligned.prompt_ids,
        response_ids=aligned.response_ids,
        sample_logprob=aligned.sample_logprob,
        kd_rows=aligned.kd_rows,
        top=top_k_with_other(aligned.candidate_counts, aligned.candidate_ids, aligned.candidate_logprobs, k),
    )


def _first_steps(prompt_lengths_D: NDArray[np.int64], response_lengths_D: NDArray[np.int64]) -> NDArray[np.bool_]:
    """bool [T]: step 0 of a completion without a prompt: nothing stands before it that could be compared with it."""
    first = np.zeros(int(response_lengths_D.sum()), dtype=bool)
    starts = np.cumsum(response_lengths_D) - response_lengths_D
    first[starts[(prompt_lengths_D == 0) & (response_lengths_D > 0)]] = True
    return first


def target_rows(
    targets: Targets,
    prompt_idx_D: NDArray[np.int64],
    sample_idx_D: NDArray[np.int64],
    held_out_D: NDArray[np.bool_],
    vocabulary: Vocabulary,
    counted: Counter[str],
) -> pa.Table:
    """The KD rows of some completions (columns of `schema.SCHEMA`); adds to `counted`."""
    top = targets.top
    k = top.ids.shape[1]
    lengths_D = targets.prompt_lengths + targets.response_lengths
    rows = int(lengths_D.sum())
    starts_D = np.cumsum(lengths_D) - lengths_D
    completion_R = np.repeat(np.arange(len(lengths_D)), lengths_D)
    step_R = np.arange(rows) - starts_D[completion_R]
    in_prompt_R = step_R < targets.prompt_lengths[completion_R]
    ids_R = np.empty(rows, dtype=np.int32)
    ids_R[in_prompt_R] = targets.prompt_ids
    ids_R[~in_prompt_R] = targets.response_ids

    # KD and CE both begin at step 1.
    targeted_T = step_R[~in_prompt_R] > 0
    has_kd_N = np.isfinite(top.logprobs[:, 0]) & targeted_T[targets.kd_rows]
    kd_R = np.flatnonzero(~in_prompt_R)[targets.kd_rows[has_kd_N]]
    topk_ids_RK = np.zeros((rows, k), dtype=np.int32)
    topk_logprobs_RK = np.full((rows, k), -np.inf, dtype=np.float16)
    other_R = np.zeros(rows, dtype=np.float32)
    has_kd_R = np.zeros(rows, dtype=bool)
    sample_logprob_R = np.full(rows, np.nan, dtype=np.float32)
    has_kd_R[kd_R] = True
    topk_ids_RK[kd_R] = top.ids[has_kd_N]
    topk_logprobs_RK[kd_R] = top.logprobs[has_kd_N]
    other_R[kd_R] = top.other[has_kd_N]
    sample_logprob_R[~in_prompt_R] = np.where(targeted_T, targets.sample_logprob, np.nan)

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
    return kd_table(columns, topk_ids_RK, topk_logprobs_RK)
