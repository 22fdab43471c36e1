"""Raw shards to KD shards: by id where the student has the teacher's own tokenizer, else by bytes. D completions.

Shards are written one after another; no document is cut by a shard's end.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection import near_duplicates
from bitnet_core.projection.by_id_or_bytes import (
    Way,
    check_answer_ids,
    check_assumed_tokenizer,
    check_texts,
    choose_way,
    identity_targets,
)
from bitnet_core.projection.kd_rows import Targets, check_target_projects, kd_columns, target_rows
from bitnet_core.projection.raw_folder import RawFolder, open_raw_folder
from bitnet_core.projection.read_raw_shards import RawReader
from bitnet_core.projection.student_text import unknown_note
from bitnet_core.traces.schema import SHARDS, SPLITS, KDMetadata
from bitnet_core.traces.splits import held_out
from bitnet_core.traces.stats import TraceSums
from bitnet_core.traces.write_shards import ROW_GROUP_ROWS, ShardFiles


def cut(lengths_D: NDArray[np.int64], rows: int) -> Iterator[slice]:
    """Consecutive runs of completions with at most `rows` rows each; one that is longer by itself stands alone."""
    ends = np.cumsum(lengths_D)
    start = 0
    while start < len(lengths_D):
        before = int(ends[start - 1]) if start else 0
        stop = max(start + 1, int(np.searchsorted(ends, before + rows, side="right")))
        yield slice(start, stop)
        start = stop


OnProgress = Callable[[int, int, str], None]


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
    check_target_projects(raw, raw_folder, way.aligner is not None, config)
    order, left_out = completions_with_tokens(raw, raw_folder)
    split_D, documents = split_documents(raw, order, config.holdout_fraction, seed)
    metadata = shard_metadata(raw, way, config, documents["test_documents"], seed)

    reader, counted, sums = RawReader(raw), Counter[str](), TraceSums(raw.target)
    mass = dict.fromkeys(("merged", "span", "unmapped"), 0.0)
    largest_mass, done = 0.0, 0
    with ShardFiles(data_folder, metadata, config.rows_per_shard) as shards:
        for part in cut((raw.prompt_lengths + raw.response_lengths)[order], ROW_GROUP_ROWS):
            chosen = order[part]
            targets = read_targets(reader, chosen, way, raw_folder, counted, mass)
            top, extra = kd_columns(targets, raw.target, metadata.k)
            ids_and_split = raw.prompt_idx[chosen], raw.sample_idx[chosen], split_D[part]
            table = target_rows(
                targets, top, *ids_and_split, way.vocabulary, counted, raw.target, extra, config.unknown_in_ce
            )
            largest_mass = max(largest_mass, float(top.mass.max(initial=0.0)))
            mass["merged"] += top.merged_mass
            sums.add(table)
            shards.write(table, targets.prompt_lengths + targets.response_lengths)
            done += len(chosen)
            on_progress(done, len(order), f"{sums.rows:,} positions, {sums.kd_positions:,} with KD")
    remove_stale(data_folder, shards.files)
    per_position = {name: total / max(1, sums.kd_positions) for name, total in mass.items()}
    return {
        "shards": [file.name for file in shards.files],
        "k": metadata.k,
        "vocab_size": metadata.vocab_size,
        "tokenizer_sha256": metadata.tokenizer_sha256,
        "projection": dict(metadata.projection),
        "completions": len(order),
        "completions_by_kind": dict(sorted(Counter(raw.kind[i] for i in order.tolist()).items())),
        **left_out,
        **documents,
        **sums.summary(),
        **{name: counted[name] for name in _COUNTS},
        "merged_mass": per_position["merged"],
        "largest_mass": largest_mass,
        **({} if way.aligner is None else _aligned_summary(counted, per_position, raw, order)),
        "warnings": [*way.notes, *unknown_note(counted["unknown_tokens"], config)],
    }


def shard_metadata(raw: RawFolder, way: Way, config: ProjectConfig, test_documents: int, seed: int) -> KDMetadata:
    """What every shard of the projection says of itself."""
    return KDMetadata(
        k=max(1, int(raw.metadata["top_k"])),
        vocab_size=way.vocabulary.size,
        tokenizer_sha256=way.vocabulary.sha256,
        raw=raw.metadata,
        projection={
            "path": way.name,
            "id": projection_id(raw, way, config, seed),
            "seed": seed,
            "holdout_fraction": config.holdout_fraction,
            "near_duplicates": near_duplicates.RULE,
            "test_documents": test_documents,
            **({"sampled_span": config.sampled_span} if way.aligner else {}),
        },
        target=raw.target,
        template=way.template,
        tokenizer={"ids": way.vocabulary.sha256, "cutting": way.vocabulary.cutting_sha256},
    )


def split_documents(
    raw: RawFolder, order: NDArray[np.int64], fraction: float, seed: int
) -> tuple[NDArray[np.int32], dict[str, int]]:
    """The place in `SPLITS` of each completion of `order` [D], and what is to be said of it.

    Those from the raw metadata's ``test_from`` on are test documents. Documents that repeat one another are in one
    split: with a test document that is test, else by their common name.
    """
    asked_for_test_D = raw.prompt_idx[order] >= raw.metadata.get("test_from", np.inf)
    names = [
        ("test " if is_test else "") + (raw.source_id[i] or f"prompt_idx {raw.prompt_idx[i]}")
        for i, is_test in zip(order.tolist(), asked_for_test_D.tolist(), strict=True)
    ]
    keys = np.empty((len(order), 1 + near_duplicates.BANDS), dtype=np.uint64)
    for row, each in enumerate(RawReader(raw).conversations(order)):
        keys[row] = near_duplicates.keys_of(*each)
    shared = near_duplicates.shared_names(names, keys)
    of_test = {name for name, is_test in zip(shared, asked_for_test_D.tolist(), strict=True) if is_test}
    test_D = np.array([name in of_test for name in shared])
    split_D = np.full(len(order), SPLITS.index("test"), dtype=np.int32)
    others = [name for name in shared if name not in of_test]
    split_D[~test_D] = held_out(others, fraction, seed)
    # A document that repeats others has the name of the first of them.
    repeating = {each for pair in zip(shared, names, strict=True) if pair[0] != pair[1] for each in pair}
    return split_D, {
        "test_documents": len({name for name, is_test in zip(names, test_D.tolist(), strict=True) if is_test}),
        "near_duplicate_documents": len(repeating),
        "moved_to_test": int((test_D & ~asked_for_test_D).sum()),
    }


def read_targets(
    reader: RawReader,
    chosen: NDArray[np.int64],
    way: Way,
    raw_folder: Path,
    counted: Counter[str],
    mass: dict[str, float],
) -> Targets:
    """These completions in the student's tokens; adds to `counted` and `mass`."""
    if way.aligner is None:
        batch = reader.read(chosen)
        check_texts(batch, way.vocabulary, raw_folder, counted)
        return identity_targets(batch, way.vocabulary)
    answers = reader.read_answers(chosen)
    check_answer_ids(answers, way, raw_folder)
    targets = way.aligner.align(answers, counted, mass)
    check_assumed_tokenizer(way, counted, raw_folder)
    return targets


def remove_stale(data_folder: Path, written: Collection[Path]) -> None:
    """Remove the shards of earlier projections, and what a killed one left."""
    for stale in set(data_folder.glob(SHARDS)) - set(written):
        stale.unlink()
    for leftover in data_folder.glob(f".{SHARDS}.partial"):
        leftover.unlink()


_COUNTS = (
    *("missing_candidates", "merged_candidates", "positions_beyond_k", "mass_clamped_positions"),
    *("mass_above_one_positions", "sampled_outside_top_k", "texts_checked", "texts_differing", "unknown_tokens"),
)

_ALIGNED_COUNTS = (
    *("spans_of_several_tokens", "spans_with_unknown_logprobs", "unmapped_candidates", "cut_characters"),
    *("prompt_boundaries_forced", "ends_by_content"),
)


def _aligned_summary(
    counted: Counter[str], mass: Mapping[str, float], raw: RawFolder, order: NDArray[np.int64]
) -> dict[str, Any]:
    """mass: per KD position"""
    reasons = {name: count for name, count in sorted(counted.items()) if name.startswith("ce_only_")}
    return {
        **{name: counted[name] for name in _ALIGNED_COUNTS},
        "ce_only": {name.removeprefix("ce_only_"): count for name, count in reasons.items()},
        "mass_lost_to_other": mass["unmapped"] + mass["span"],
        "unmapped_mass": mass["unmapped"],
        "span_mass": mass["span"],
        "teacher_tokens": int(raw.response_lengths[order].sum()),
    }


def completions_with_tokens(raw: RawFolder, raw_folder: Path) -> tuple[NDArray[np.int64], dict[str, int]]:
    """As `completions_in_order` but for empty ones; and how many were left out. Raises CoreError where none is left."""
    in_order, repeated = completions_in_order(raw)
    order = in_order[raw.response_lengths[in_order] > 0]
    if not len(order):
        raise CoreError(
            f"{raw_folder}: no completion has a token", "look at the prompts and the teacher, and collect again"
        )
    return order, {"empty_completions": len(in_order) - len(order), "repeated_completions": repeated}


def completions_in_order(raw: RawFolder) -> tuple[NDArray[np.int64], int]:
    """Index positions sorted by prompt_idx, sample_idx, without repetitions (the first stays); how many those were."""
    order = np.lexsort((np.arange(len(raw.prompt_idx)), raw.sample_idx, raw.prompt_idx))
    prompt, sample = raw.prompt_idx[order], raw.sample_idx[order]
    first = np.ones(len(order), dtype=bool)
    first[1:] = (prompt[1:] != prompt[:-1]) | (sample[1:] != sample[:-1])
    return order[first], int((~first).sum())


def projection_id(raw: RawFolder, way: Way, config: ProjectConfig, seed: int) -> str:
    """The same for all shards of one projection, so that a folder with a mixture of two is noticed."""
    record = {
        "raw": raw.metadata,
        "completions": hashlib.sha256(
            b"".join(np.ascontiguousarray(a).tobytes() for a in (raw.prompt_idx, raw.sample_idx, raw.response_lengths))
        ).hexdigest(),
        "tokenizer": [way.vocabulary.sha256, way.vocabulary.cutting_sha256],
        "template": dict(way.template),
        "config": attrs.asdict(config) | {"tokenizer": None},
        "near_duplicates": near_duplicates.RULE,
        "seed": seed,
    }
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:16]
