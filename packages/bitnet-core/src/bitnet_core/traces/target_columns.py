"""The teacher's candidates as the KD columns of their target's kind. N positions, C candidates, K kept; nats."""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces.candidates import TopK, top_k_with_other
from bitnet_core.traces.config import ProjectConfig
from bitnet_core.traces.raw import MADE_BY, RawFolder
from bitnet_core.traces.target_kind import is_sampled, is_tempered, is_topk
from bitnet_core.traces.targets import Targets


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
        f'{raw_folder}: collected with collect.targets = "{raw.target["kind"]}", which goes to a student with the '
        f'teacher\'s own tokenizer only, by id: {fix}, or collect.targets = "topk" and collect again'
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
            f"sampled targets with {top.missing} draws without a weight, {top.clipped} positions with more draws than "
            f"the metadata's top_k, {int(unknown_N.sum())} without log_z or entropy: delete the raw shards and run "
            f"{MADE_BY} again"
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
        raise CoreError(f"tempered targets without log_z: delete the raw shards and run {MADE_BY} again")
    exact_N, stored_N = (
        np.log(np.exp(np.where(has_N[:, None], each, 0.0) / tau).sum(axis=1))
        for each in (top.logprobs, top.logprobs.astype(np.float16).astype(np.float64))
    )
    rest_N = np.clip(-np.expm1(np.where(has_N, exact_N - log_z_N, 0.0)), 0.0, 1.0 - 1e-6)
    return np.where(has_N, stored_N - np.log1p(-rest_N), 0.0).astype(np.float32)
