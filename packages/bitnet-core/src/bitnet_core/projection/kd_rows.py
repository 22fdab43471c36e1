"""What the student shall learn from some completions, and the KD rows that say so. Log-probabilities in nats.

D completions, P prompt tokens and S response tokens over all of them (the student's), R = P + S rows, N positions with
candidates, C candidates, K kept.
"""

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.raw_folder import MADE_BY, RawFolder
from bitnet_core.projection.student_text import Vocabulary
from bitnet_core.projection.top_k_other import TopK, top_k_with_other
from bitnet_core.traces.schema import SPLITS
from bitnet_core.traces.target_kinds import TOPK, is_sampled, is_tempered, is_topk
from bitnet_core.traces.write_shards import kd_table

_TRUSTED_MASS = 1.001
"""Above this a position's mass is no rounding: it is reported."""


@attrs.frozen(eq=False)
class Targets:
    """Some completions in the student's tokens, with the candidates of N positions."""

    prompt_lengths: NDArray[np.int64]
    """[D]"""
    response_lengths: NDArray[np.int64]
    """[D] student tokens"""
    prompt_ids: NDArray[np.int32]
    response_ids: NDArray[np.int32]
    """[S]"""
    is_unknown: NDArray[np.bool_]
    """[S] no token of the student's for what the teacher said there"""
    sample_logprob: NDArray[np.float32]
    """[S] the teacher's, of the teacher tokens that begin within this token: over a text both sum to the same"""
    kd_rows: NDArray[np.int64]
    """[N] positions within S"""
    candidate_counts: NDArray[np.int64]
    """[N]"""
    candidate_ids: NDArray[np.int32]
    """[C] the student's; below 0 where it has no token for a candidate: its mass goes to other"""
    candidate_logprobs: NDArray[np.floating]
    extra: Mapping[str, NDArray[np.float32]] = attrs.field(factory=dict)
    """[N] each: the columns that come with the target's kind"""


def target_rows(
    targets: Targets,
    top: TopK,
    prompt_idx_D: NDArray[np.int64],
    sample_idx_D: NDArray[np.int64],
    split_D: NDArray[np.int32],
    vocabulary: Vocabulary,
    counted: Counter[str],
    target: Mapping[str, Any] = TOPK,
    extra: Mapping[str, NDArray[np.float32]] = MappingProxyType({}),
    unknown_in_ce: bool = False,
) -> pa.Table:
    """The KD rows of some completions (columns of `kd_schema(target)`); adds to `counted`.

    top, extra: of the N positions (`kd_columns`). split_D: places in `SPLITS`.
    """
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

    def spread(values_N: NDArray[Any], empty: float, dtype: type[np.generic]) -> NDArray[Any]:
        """[N, ...] over all rows; `empty` where there is no KD."""
        values_R = np.full((rows, *values_N.shape[1:]), empty, dtype=dtype)
        values_R[kd_R] = values_N[has_kd_N]
        return values_R

    sample_logprob_R = np.full(rows, np.nan, dtype=np.float32)
    sample_logprob_R[~in_prompt_R] = np.where(targeted_T, targets.sample_logprob, np.nan)
    _count(counted, targets, top, has_kd_N)
    split_R = pa.DictionaryArray.from_arrays(pa.array(split_D[completion_R]), pa.array(SPLITS, pa.string()))
    in_ce_R = np.ones(rows, dtype=bool)
    in_ce_R[~in_prompt_R] = ~targets.is_unknown | unknown_in_ce
    columns = {
        "prompt_idx": prompt_idx_D[completion_R],
        "sample_idx": sample_idx_D[completion_R].astype(np.int32),
        "step_idx": step_R.astype(np.int32),
        "teacher_sample_id": ids_R,
        "other_logprob": spread(top.other, 0.0, np.float32),
        "is_struct_token": vocabulary.is_struct[ids_R],
        "teacher_sample_text": vocabulary.bytes.take(pa.array(ids_R)),
        "is_prompt": in_prompt_R | (step_R == 0),
        "has_kd": spread(has_kd_N, False, np.bool_),
        "sample_logprob": sample_logprob_R,
        "split": split_R,
        "in_ce": in_ce_R,
        **{name: spread(values_N, 0.0, np.float32) for name, values_N in extra.items()},
    }
    logprobs_RK = spread(top.logprobs, -np.inf, np.float32 if is_sampled(target) else np.float16)
    return kd_table(columns, spread(top.ids, 0, np.int32), logprobs_RK, target)


def _count(counted: Counter[str], targets: Targets, top: TopK, has_kd_N: NDArray[np.bool_]) -> None:
    is_sampled_NK = (top.ids == targets.response_ids[targets.kd_rows][:, None]) & np.isfinite(top.logprobs)
    counted["sampled_outside_top_k"] += int((has_kd_N & ~is_sampled_NK.any(axis=1)).sum())
    counted["missing_candidates"] += top.missing
    counted["merged_candidates"] += top.merged
    counted["positions_beyond_k"] += top.clipped
    counted["mass_clamped_positions"] += top.clamped
    counted["mass_above_one_positions"] += int((top.mass > _TRUSTED_MASS).sum())


def check_target_projects(raw: RawFolder, raw_folder: object, by_bytes: bool, config: ProjectConfig) -> None:
    """Raise CoreError where the target does not survive a change of tokenizer.

    log Z is a sum over the teacher's vocabulary, and not a function of the student's. Draws could move as top-K
    candidates do, but a piece of their mass would land in no token of the student, and the estimate is of all tokens.
    """
    if is_topk(raw.target) or not by_bytes:
        return
    fix = (
        'set project.alignment = "auto"' if config.alignment == "bytes" else 'set project.tokenizer = "teacher"'
    )  # the same tokenizer may be asked to go by bytes
    raise CoreError(
        f'{raw_folder}: collected with collect.targets = "{raw.target["kind"]}", which goes to a student with '
        "the teacher's own tokenizer only, by id",
        f'{fix}, or collect.targets = "topk" and collect again',
    )


def kd_columns(targets: Targets, target: Mapping[str, Any], k: int) -> tuple[TopK, Mapping[str, NDArray[np.float32]]]:
    """K candidates + other of each position, and the columns [N] that come with the target's kind.

    Raises CoreError for draws that are not whole: one left out would bias the estimate.
    """
    top = top_k_with_other(targets.candidate_counts, targets.candidate_ids, targets.candidate_logprobs, k)
    if is_sampled(target):
        return _draws(top, targets.extra)
    if is_tempered(target):
        return top, {"log_z": _log_z(top, targets.extra["log_z"], float(target["tau"]))}
    return top, {}


def _draws(top: TopK, extra: Mapping[str, NDArray[np.float32]]) -> tuple[TopK, Mapping[str, NDArray[np.float32]]]:
    """All mass is in the draws: nothing is left for other, and nothing was clamped."""
    drawn_N = np.isfinite(top.logprobs[:, 0])
    unknown_N = drawn_N & ~(np.isfinite(extra["log_z"]) & np.isfinite(extra["entropy"]))
    if top.missing or top.clipped or unknown_N.any():
        raise CoreError(
            f"sampled targets with {top.missing} draws without a weight, {top.clipped} positions with more "
            f"draws than the metadata's top_k, {int(unknown_N.sum())} without log_z or entropy",
            f"delete the raw shards and run {MADE_BY} again",
        )
    logprobs = np.where(drawn_N[:, None], top.logprobs, 0.0)
    total_N1 = np.where(drawn_N, np.log(np.exp(logprobs).sum(axis=1)), 0.0)[:, None]
    top = attrs.evolve(
        top,
        logprobs=top.logprobs - total_N1,
        other=np.where(drawn_N, -np.inf, 0.0),
        clamped=0,
        mass=np.exp(total_N1)[:, 0],
    )
    return top, {name: np.where(drawn_N, extra[name], 0.0).astype(np.float32) for name in ("log_z", "entropy")}


def _log_z(top: TopK, log_z_N: NDArray[np.float32], tau: float) -> NDArray[np.float32]:
    """log Z for the candidates as they are stored, in halves.

    The loss takes P̂(other) = 1 - Σ exp(log p / τ - log Z); with rounded p and exact Z a small rest would drown in the
    rounding. Moved by it (less than 0.002/τ), log Z gives the exact rest again.
    """
    has_N = np.isfinite(top.logprobs[:, 0])
    if (has_N & ~np.isfinite(log_z_N)).any():
        raise CoreError("tempered targets without log_z", f"delete the raw shards and run {MADE_BY} again")
    exact_N, stored_N = (
        np.log(np.exp(np.where(has_N[:, None], each, 0.0) / tau).sum(axis=1))
        for each in (top.logprobs, top.logprobs.astype(np.float16).astype(np.float64))
    )
    rest_N = np.clip(-np.expm1(np.where(has_N, exact_N - log_z_N, 0.0)), 0.0, 1.0 - 1e-6)
    return np.where(has_N, stored_N - np.log1p(-rest_N), 0.0).astype(np.float32)
