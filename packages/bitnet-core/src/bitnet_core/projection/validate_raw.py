"""Raw shards for human eyes: all that is wrong with them, and what is in them. R completions of a row group.

What a reader must survive (docs/raw-shard.md) is counted by `raw_stats` and is no fault: missing and repeated
candidates, masses a little over 1, answers of which only the text is known.
"""

import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.files import by_number
from bitnet_core.projection.raw_folder import (
    MADE_BY,
    METADATA_KEY,
    SHARDS,
    check_raw_columns,
    check_same_teacher,
    is_text_alone,
    raw_metadata,
)
from bitnet_core.projection.top_k_other import known_logprobs
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, open_parquet, whole
from bitnet_core.traces.target_kinds import extra_columns, target_of
from bitnet_core.traces.validate_shards import GroupChecks, Problem, Validation, as_problem

_AGAIN = f"restore it from a copy, or delete it and run {MADE_BY} again"
_FULL = ("prompt_idx", "sample_idx", "kind", "messages", "text", "token_logprobs", "candidate_counts")


def raw_files(run_or_folder: Path) -> list[Path]:
    """The raw shards of a run folder or of a folder of shards, or the one file if it is one; may be empty."""
    if run_or_folder.is_file():
        try:
            is_raw = METADATA_KEY in (open_parquet(run_or_folder, MADE_BY).schema_arrow.metadata or {})
        except CoreError:
            is_raw = run_or_folder.match(SHARDS)
        return [run_or_folder] if is_raw else []
    raw = run_or_folder / "raw"
    return sorted((raw if raw.is_dir() else run_or_folder).glob(SHARDS), key=by_number)


class _SeenRows:
    """A set of rows of whole numbers on disk, so that memory does not grow with a folder; SQLite keeps 2 MB of it."""

    def __init__(self, width: int) -> None:
        names = ", ".join(f"n{i}" for i in range(width))
        self._database = sqlite3.connect("")  # a file of its own that goes with the connection
        self._database.execute(f"CREATE TABLE seen ({names}, PRIMARY KEY ({names})) WITHOUT ROWID")
        self._insert = f"INSERT OR IGNORE INTO seen VALUES ({', '.join('?' * width)})"

    def add(self, row: tuple[int, ...]) -> bool:
        """False where it is in there already."""
        return self._database.execute(self._insert, row).rowcount == 1

    def add_all(self, rows: Iterable[tuple[int, ...]]) -> None:
        self._database.executemany(self._insert, rows)

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM seen").fetchone()[0])


def validate_raw(files: Sequence[Path]) -> Validation:
    """Read every value of raw shards, a row group at a time; ``rows`` are completions.

    Found: damaged files, missing columns, empty values, lists whose lengths don't belong together, tokens with neither
    ids nor bytes, ids outside the teacher's vocabulary, conversations that can't be read, completions that stand
    twice, shards of different teachers, versions or targets.
    """
    problems: list[Problem] = []
    rows, first, seen = 0, None, _SeenRows(2)
    for path in files:
        try:
            file = open_parquet(path, MADE_BY)
            metadata = raw_metadata(file.schema_arrow, path)
            target = target_of(metadata, path)
            check_raw_columns(file.schema_arrow, path, extra_columns(target))
            first = first or (metadata, path)
            check_same_teacher(*first, metadata, path)
        except CoreError as error:
            problems.append(as_problem(path, None, error))
            continue
        rows += file.metadata.num_rows
        for group in range(file.num_row_groups):
            checks = GroupChecks(path, group, _AGAIN)
            try:
                with damage_named(path, MADE_BY):
                    table = file.read_row_group(group, use_threads=False)
                    _check_group(checks, table, metadata, extra_columns(target), seen)
            except CoreError as error:
                problems.append(as_problem(path, group, error))
                continue
            problems += checks.problems
    return Validation(len(files), rows, tuple(problems))


def _check_group(
    checks: GroupChecks,
    table: pa.Table,
    metadata: Mapping[str, Any],
    extra: Sequence[str],
    seen: _SeenRows,
) -> None:
    empty = [name for name in _FULL if table[name].null_count]
    for name in empty:
        checks.tell(f"empty values in {name}")
    if empty or not table.num_rows:
        return
    columns = {name: whole(table[name]) for name in table.column_names}
    lengths = {name: list_lengths(array) for name, array in columns.items() if pa.types.is_list(array.type)}
    null = {name: array.is_null().to_numpy(zero_copy_only=False) for name, array in columns.items()}
    tokens_R = lengths["token_logprobs"]
    counts = flat_values(columns["candidate_counts"]).astype(np.int64)
    owner = np.repeat(np.arange(table.num_rows), lengths["candidate_counts"])
    candidates_R = np.zeros(table.num_rows, dtype=np.int64)
    np.add.at(candidates_R, owner, counts)
    negative_R = np.zeros(table.num_rows, dtype=bool)
    negative_R[owner[counts < 0]] = True
    checks.none_of(negative_R, "a candidate count below 0")
    of_tokens = ("token_ids", "token_bytes", "candidate_counts", *extra)
    of_candidates = ("candidate_ids", "candidate_bytes", "candidate_logprobs")
    for names, wanted_R, what in ((of_tokens, tokens_R, "tokens"), (of_candidates, candidates_R, "candidates")):
        for name in names:
            wrong_R = (lengths[name] != wanted_R) & ~null[name]
            checks.none_of(wrong_R, f"another number of values in {name} than {what}")
    for part, size_R in (("token", tokens_R), ("candidate", candidates_R)):
        checks.none_of(
            null[f"{part}_ids"] & null[f"{part}_bytes"] & (size_R > 0), f"{part}s that have neither ids nor bytes"
        )
    size = (metadata.get("teacher") or {}).get("vocab_size") or np.inf
    for name in ("prompt_ids", "token_ids", "candidate_ids"):
        ids = flat_values(columns[name])
        outside_R = np.zeros(table.num_rows, dtype=bool)
        outside_R[np.repeat(np.arange(table.num_rows), lengths[name])[(ids < 0) | (ids >= size)]] = True
        checks.none_of(outside_R, f"an id outside the teacher's vocabulary of {size} in {name}")
    kinds = pc.is_in(columns["kind"], pa.array(["sample", "score"])).to_numpy(zero_copy_only=False)
    checks.none_of(~kinds, "a kind that is not one of: sample, score")
    readable = {text: _is_conversation(text) for text in pc.unique(columns["messages"]).to_pylist()}
    checks.none_of(
        np.array([not readable[text] for text in columns["messages"].to_pylist()]),
        "messages that are no JSON list of roles and contents",
    )
    keys = list(zip(columns["prompt_idx"].to_pylist(), columns["sample_idx"].to_pylist(), strict=True))
    twice_R = np.zeros(len(keys), dtype=bool)
    for row, key in enumerate(keys):
        twice_R[row] = not seen.add(key)
    checks.none_of(
        twice_R, "the prompt_idx and sample_idx of another completion", "remove one: only the first is projected"
    )


def _is_conversation(text: str) -> bool:
    try:
        turns = json.loads(text)
    except (ValueError, RecursionError):
        return False
    named = {"role", "content"}
    return isinstance(turns, list) and all(isinstance(each, dict) and named <= each.keys() for each in turns)


def raw_stats(files: Sequence[Path]) -> dict[str, Any]:
    """Counts over raw shards, a row group at a time; means are over positions with candidates. Raises CoreError."""
    counts, reasons, kinds, repairs = Counter[str](), Counter[str](), Counter[str](), Counter[str]()
    mass, prompts = 0.0, _SeenRows(1)
    metadata: Mapping[str, Any] = {}
    for path in files:
        file = open_parquet(path, MADE_BY)
        metadata = metadata or raw_metadata(file.schema_arrow, path)
        check_raw_columns(file.schema_arrow, path, ())
        for group in range(file.num_row_groups):
            with damage_named(path, MADE_BY):
                table = file.read_row_group(group)
                tokens_R = list_lengths(whole(table["token_logprobs"]))
                offered_T = flat_values(whole(table["candidate_counts"]))
                logprobs = flat_values(whole(table["candidate_logprobs"])).astype(np.float64)
                mass_T = _sums(np.where(known_logprobs(logprobs), np.exp(np.minimum(logprobs, 0.0)), 0.0), offered_T)
                counts.update(
                    completions=table.num_rows,
                    texts_alone=int(is_text_alone(table, tokens_R).sum()),
                    empty=int((pc.binary_length(table["text"]).to_numpy() == 0).sum()),
                    tokens=int(tokens_R.sum()),
                    positions_with_candidates=int((offered_T > 0).sum()),
                    candidates=int(offered_T.sum()),
                    candidates_missing=int((~known_logprobs(logprobs)).sum()),
                    positions_over_1=int((mass_T > 1.001).sum()),
                    text_bytes=int(pc.sum(pc.binary_length(table["text"])).as_py() or 0),
                )
                mass += float(mass_T.sum())
                prompts.add_all((prompt,) for prompt in pc.unique(table["prompt_idx"]).to_pylist())
                kinds.update(table["kind"].to_pylist())
                if "finish_reason" in table.column_names:
                    reasons.update(each or "unknown" for each in table["finish_reason"].to_pylist())
                if "repairs" in table.column_names:
                    for record in table["repairs"].drop_null().to_pylist():
                        repairs.update(json.loads(record))
    positions = counts["positions_with_candidates"]
    return {
        "model": (metadata.get("teacher") or {}).get("model"),
        "top_k": metadata.get("top_k"),
        "prompts": len(prompts),
        **counts,
        "mean_candidates": counts["candidates"] / positions if positions else None,
        "mean_topk_mass": mass / positions if positions else None,
        "kinds": dict(sorted(kinds.items())),
        "finish_reasons": dict(sorted(reasons.items())),
        "repairs": dict(sorted(repairs.items())),
        "file_bytes": sum(path.stat().st_size for path in files),
    }


def _sums(values_C: NDArray[np.float64], counts_T: NDArray[Any]) -> NDArray[np.float64]:
    """[T]"""
    running = np.concatenate([[0.0], np.cumsum(values_C)])
    stops = np.cumsum(counts_T)
    result: NDArray[np.float64] = running[stops] - running[stops - counts_T]
    return result
