"""Read every value of KD shards and list all that is wrong. R rows of a row group, K candidates, V vocabulary.

The dataset refuses the first fault that it meets; this goes on, and names the row group and the first row of each.
"""

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces import schema
from bitnet_core.traces.checks_on_reading import CANDIDATES, LARGEST_LOGPROB, MASS_TOLERANCE, repeated
from bitnet_core.traces.dataset import check_tokenizer, common_metadata
from bitnet_core.traces.parquet import damage_named, flat_values, list_lengths, open_parquet, whole
from bitnet_core.traces.schema import trace_files
from bitnet_core.traces.target_kinds import ALL_EXTRA, TOPK, extra_columns, is_sampled
from bitnet_core.traces.tokenizer import Identity, tokenizer_digests

_AGAIN = f"delete it and run {schema.MADE_BY} again"

OnProgress = Callable[[int, int, str], None]


@attrs.frozen
class Problem:
    """One fault of one row group (of the whole file where `row_group` is None)."""

    file: str
    row_group: int | None
    what: str
    fix: str

    def __str__(self) -> str:
        where = self.file if self.row_group is None else f"{self.file}: row group {self.row_group}"
        return f"{where}: {self.what}  → {self.fix}"


@attrs.frozen
class Validation:
    """What was read, and all that is wrong with it."""

    files: int
    rows: int
    problems: tuple[Problem, ...]


def validate_traces(
    run_or_folder: Path,
    tokenizer_folder: Path | None = None,
    on_progress: OnProgress = lambda done, total, note: None,
) -> Validation:
    """Check the KD shards of a run folder or a folder, a row group at a time (memory: one row group).

    Found: damaged and truncated files, missing columns, empty values, mixed K, NaN and positive log-probabilities,
    ids outside the vocabulary or twice in a position, masses that don't add up to 1, candidates in a wrong order,
    rows out of order, twice or missing, documents in two splits, shards of different projections, another tokenizer.
    Raises CoreError only where there are no shards at all.
    """
    files = trace_files(run_or_folder)
    identity = None if tokenizer_folder is None else tokenizer_digests(tokenizer_folder)
    problems: list[Problem] = []
    metadata = None
    try:
        metadata = common_metadata(files)
        if identity is not None and tokenizer_folder is not None and metadata is not None:
            check_tokenizer(metadata, identity, run_or_folder, tokenizer_folder)
    except CoreError:
        pass  # told file by file below, with the others
    vocab_size = metadata.vocab_size if metadata else identity.size if identity else None
    rows, before = 0, _Before()
    for number, path in enumerate(files):
        try:
            found, count = _check_file(path, vocab_size, before)
            problems += found
            rows += count
            problems += _foreign(files[0], path, identity, tokenizer_folder)
        except CoreError as error:
            problems.append(as_problem(path, None, error))
            before.key = None
        on_progress(number + 1, len(files), f"{rows:,} positions, {len(problems)} problems")
    return Validation(len(files), rows, tuple(problems))


def _foreign(first: Path, path: Path, identity: Identity | None, folder: Path | None) -> Iterator[Problem]:
    """Whether a file belongs to the first one and to the tokenizer."""
    try:
        metadata = common_metadata([path] if path == first else [first, path])
        if metadata is not None and identity is not None and folder is not None and path == first:
            check_tokenizer(metadata, identity, path, folder)
    except CoreError as error:
        if path == first or not str(error).startswith(f"{first}: "):  # the first file's own faults are told once
            yield as_problem(path, None, error)


def as_problem(path: Path, group: int | None, error: CoreError) -> Problem:
    return Problem(str(path), group, error.why.removeprefix(f"{path}: "), error.fix)


@attrs.define
class _Before:
    """The last row that was read: order and splits are checked across row groups and files."""

    key: tuple[int, int, int] | None = (-(2**62), 0, 0)
    """None: unknown, since a row group could not be read."""
    split: str = ""
    k: int | None = None
    """Of the files before."""


def _check_file(path: Path, vocab_size: int | None, before: _Before) -> tuple[list[Problem], int]:
    file = open_parquet(path, schema.MADE_BY)
    schema.check_columns(file.schema_arrow, path)
    metadata = schema.read_metadata(file.schema_arrow, path)
    problems, k = [], metadata.k if metadata else before.k
    target = metadata.target if metadata else TOPK
    for group in range(file.num_row_groups):
        checks = GroupChecks(path, group)
        try:
            with damage_named(path, schema.MADE_BY):
                table = _read(file, path, group)
                if table.num_rows and checks.no_nulls(table):
                    k = _check_group(checks, table, k, vocab_size, target)
                    _check_order(checks, table, before)
        except CoreError as error:
            problems.append(as_problem(path, group, error))
            before.key = None
            continue
        problems += checks.problems
    before.k = k
    return problems, file.metadata.num_rows


def _read(file: pq.ParquetFile, path: Path, group: int) -> pa.Table:
    names = [name for name in (*schema.SCHEMA.names, *ALL_EXTRA) if name in file.schema_arrow.names]
    with damage_named(path, schema.MADE_BY):
        return file.read_row_group(group, columns=names, use_threads=False)


class GroupChecks:
    """Collects the problems of one row group."""

    def __init__(self, path: Path, group: int, fix: str = _AGAIN) -> None:
        """fix: of those problems that have none of their own."""
        self._path, self._group, self._fix = path, group, fix
        self.problems: list[Problem] = []

    def tell(self, what: str, fix: str = "") -> None:
        self.problems.append(Problem(str(self._path), self._group, what, fix or self._fix))

    def none_of(self, wrong_R: NDArray[np.bool_] | np.bool_, what: str, fix: str = "") -> bool:
        """Tell how many rows are wrong and which is the first; True where none is."""
        count = int(wrong_R.sum())
        if count:
            rows = "1 row" if count == 1 else f"{count:,} rows"
            self.tell(f"{rows} with {what} (the first: row {int(wrong_R.argmax())} of the row group)", fix)
        return count == 0

    def no_nulls(self, table: pa.Table) -> bool:
        empty = [name for name in table.column_names if table[name].null_count]
        lists = [name for name in CANDIDATES if whole(table[name]).flatten().null_count]
        empty += [f"the lists of {name}" for name in lists]
        for name in empty:
            self.tell(f"empty values in {name}")
        return not empty


def _check_group(
    checks: GroupChecks, table: pa.Table, k: int | None, vocab_size: int | None, target: Mapping[str, Any]
) -> int | None:
    """Check the values of a row group; returns K."""
    outside = f"a token id outside the vocabulary of {vocab_size}"
    other_fix = f"{_AGAIN}: the traces are another tokenizer's or the file is damaged"
    sample = table["teacher_sample_id"].to_numpy()
    checks.none_of((sample < 0) | (sample >= (vocab_size or np.inf)), f"{outside} in teacher_sample_id", other_fix)
    other_R: NDArray[np.float64] = table["other_logprob"].to_numpy().astype(np.float64)
    fine = checks.none_of(np.isnan(other_R), "NaN in other_logprob")
    fine &= checks.none_of(other_R > LARGEST_LOGPROB, "other_logprob above 0")
    lengths = {name: list_lengths(whole(table[name])) for name in CANDIDATES}
    ids_lengths, logprobs_lengths = lengths.values()
    if not checks.none_of(ids_lengths != logprobs_lengths, "topk_ids and topk_logprobs of different length"):
        return k
    k = k or int(ids_lengths[0])
    found = ", ".join(map(str, np.unique(ids_lengths[ids_lengths != k])[:3].tolist()))
    if not checks.none_of(
        ids_lengths != k,
        f"{found} candidates, a number of candidates other than K = {k}",
        f"{_AGAIN}: K must be one number, short lists padded with id 0 and log-probability -inf",
    ):
        return k
    ids_RK, logprobs_RK = (flat_values(whole(table[name])).reshape(-1, k) for name in lengths)
    logprobs_RK = logprobs_RK.astype(np.float64)
    used_RK = np.isfinite(logprobs_RK)
    checks.none_of(((ids_RK < 0) | (ids_RK >= (vocab_size or np.inf))).any(axis=1), f"{outside} in topk_ids", other_fix)
    fine &= checks.none_of(np.isnan(logprobs_RK).any(axis=1), "NaN in topk_logprobs")
    fine &= checks.none_of((logprobs_RK > LARGEST_LOGPROB).any(axis=1), "a topk_logprobs above 0")
    checks.none_of((logprobs_RK[:, 1:] > logprobs_RK[:, :-1]).any(axis=1), "candidates not by falling log-probability")
    checks.none_of(repeated(ids_RK, used_RK), "one id twice among the candidates", f"merge by log-sum-exp: {_AGAIN}")
    if fine:
        mass_R: NDArray[np.float64] = np.exp(np.where(used_RK, logprobs_RK, -np.inf)).sum(axis=1) + np.exp(other_R)
        checks.none_of(mass_R > 1.0 + MASS_TOLERANCE, f"a mass over 1 (up to {mass_R.max():.4f}, other included)")
        checks.none_of(mass_R < 1.0 - MASS_TOLERANCE, f"a mass under 1 (down to {mass_R.min():.4f}, other included)")
    _check_extra(checks, table, used_RK, np.where(used_RK, logprobs_RK, -np.inf), other_R, target)
    if "has_kd" in table.column_names:
        has_kd_R = table["has_kd"].to_numpy()
        checks.none_of(has_kd_R & ~used_RK.any(axis=1), "has_kd but no candidate")
        checks.none_of(~has_kd_R & used_RK.any(axis=1), "candidates but no has_kd")
        checks.none_of(has_kd_R & (table["step_idx"].to_numpy() == 0), "has_kd at step 0, before which nothing stands")
    if "sample_logprob" in table.column_names:
        checks.none_of(table["sample_logprob"].to_numpy() > LARGEST_LOGPROB, "sample_logprob above 0")
    return k


def _check_extra(
    checks: GroupChecks,
    table: pa.Table,
    used_RK: NDArray[np.bool_],
    logprobs_RK: NDArray[np.float64],
    other_R: NDArray[np.float64],
    target: Mapping[str, Any],
) -> None:
    """Check what comes with the target's kind."""
    used_R = used_RK.any(axis=1)
    columns = {name: table[name].to_numpy().astype(np.float64) for name in extra_columns(target)}
    fine = [
        checks.none_of(~np.isfinite(column), f"{name} that is no finite number") for name, column in columns.items()
    ]
    if not all(fine):
        return
    if is_sampled(target):
        checks.none_of(used_R & ~np.isneginf(other_R), "draws, and an other_logprob beside them that is not -inf")
        checks.none_of(columns["entropy"] < -LARGEST_LOGPROB, "an entropy below 0")
        if target["draw_temperature"] == 1.0:
            checks.none_of(np.abs(columns["log_z"]) > LARGEST_LOGPROB, "a log_z other than 0, at draw_temperature 1")
    elif "log_z" in columns:
        tau = float(target["tau"])
        mass_R = np.exp(logprobs_RK / tau - columns["log_z"][:, None]).sum(axis=1)
        checks.none_of(mass_R > 1.0 + MASS_TOLERANCE, f"tempered masses over 1 (up to {mass_R.max():.4f})")


def _check_order(checks: GroupChecks, table: pa.Table, before: _Before) -> None:
    """Rows rise by prompt_idx, sample_idx, step_idx; steps of a document go 0, 1, 2, ... in one split."""
    rows = table.num_rows
    prompt, step = (table[name].to_numpy().astype(np.int64) for name in ("prompt_idx", "step_idx"))
    known = "sample_idx" in table.column_names
    sample = table["sample_idx"].to_numpy().astype(np.int64) if known else np.zeros(rows, dtype=np.int64)
    keys = (prompt, sample, step)
    first = tuple(int(key[0]) for key in keys)
    last = before.key or (first[0] - 1, 0, 0)
    (prompt_, sample_, step_) = (np.concatenate([[end], key[:-1]]) for key, end in zip(keys, last, strict=True))
    same = (prompt == prompt_) & (sample == sample_)
    later = (prompt > prompt_) | ((prompt == prompt_) & (sample > sample_)) | (same & (step > step_))
    twice = same & (step == step_)
    checks.none_of(twice, "the same prompt_idx, sample_idx and step_idx as the row before")
    in_order = checks.none_of(
        ~later & ~twice,
        "an earlier place than the row before it",
        f"sort by prompt_idx, sample_idx, step_idx: {_AGAIN}",
    )
    if in_order:
        follows = np.where(same, step_ + 1, 0)
        if before.key is None:
            follows[0] = step[0]
        checks.none_of((step != follows) & ~twice, "a step that doesn't follow the one before (rows are missing)")
    if "split" in table.column_names:
        split = np.asarray(table["split"].cast(pa.string()).to_pylist(), dtype=object)
        checks.none_of(~np.isin(split, schema.SPLITS), f"a split that is not one of: {', '.join(schema.SPLITS)}")
        split_ = np.concatenate([[before.split], split[:-1]])
        if before.key is None:
            same[0] = False
        checks.none_of(same & (split != split_), "another split than the rest of their document")
        before.split = str(split[-1])
    before.key = (int(prompt[-1]), int(sample[-1]), int(step[-1]))
