"""Student tokens against the teacher's, by the bytes where they begin. T teacher tokens, S student tokens."""

from collections import Counter
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.traces.candidates import known_logprobs
from bitnet_core.traces.teacher_text import UNKNOWN


@attrs.frozen(eq=False)
class Match:
    """Student tokens against the teacher's. [S] each."""

    aligned: NDArray[np.bool_]
    """It starts where a teacher token starts."""
    inside: NDArray[np.bool_]
    """It starts within a teacher token."""
    token: NDArray[np.int64]
    """Where aligned: that teacher token."""
    span: NDArray[np.int64]
    """Where aligned: how many teacher tokens start in it."""
    rest_logprob: NDArray[np.float64]
    """Log-probability of the teacher tokens that start in it after the first; NaN: unknown; 0 where there is none."""
    sample_logprob: NDArray[np.float32]
    """Of all that start in it; NaN: unknown."""


def match_tokens(
    placed: NDArray[np.int64],
    starts_P: NDArray[np.int64],
    ends_P: NDArray[np.int64],
    starts_S: NDArray[np.int64],
    ends_S: NDArray[np.int64],
    token_logprobs_T: NDArray[np.float32],
) -> Match:
    """placed: the P teacher tokens that have a place, in rising order of their starts."""
    if not len(placed):  # one that no byte meets
        placed, starts_P, ends_P = np.zeros(1, dtype=np.int64), np.full(1, -9), np.full(1, -9)
    last = len(placed) - 1
    known_S = starts_S != UNKNOWN
    found, stop = np.searchsorted(starts_P, starts_S), np.searchsorted(starts_P, ends_S)
    stop = np.maximum(stop, found)
    first, final = np.minimum(found, last), np.clip(stop - 1, 0, last)
    aligned = known_S & (starts_P[first] == starts_S) & (stop > found)
    before = np.maximum(found - 1, 0)
    inside = known_S & ~aligned & (found > 0) & (ends_P[before] > starts_S)
    span = np.where(aligned, stop - found, 0)
    # Sums over tokens as differences of running sums; what is unknown is counted, not summed.
    logprobs_P = token_logprobs_T[placed].astype(np.float64)
    known_P = known_logprobs(logprobs_P)
    logprobs_P = np.where(known_P, np.minimum(logprobs_P, 0.0), 0.0)
    sums, unknown, bytes_before = _running(logprobs_P), _running(~known_P), _running(ends_P - starts_P)
    # Teacher tokens without a place may lie between two that have one.
    has_gap = (ends_P[final] - starts_P[first]) != (bytes_before[final + 1] - bytes_before[first])
    several = stop - found > 1
    second = np.minimum(found + 1, last + 1)
    rest_known = (unknown[stop] == unknown[second]) & ~has_gap
    rest = np.where(span > 1, np.where(rest_known, sums[stop] - sums[second], np.nan), 0.0)
    total = np.where(several, sums[stop] - sums[found], np.where(stop > found, logprobs_P[first], 0.0))
    # A token's log-probability stands at the first student token in it; the rest of it adds nothing, if it is known.
    readable = (aligned | inside & known_P[before]) & (unknown[stop] == unknown[found]) & ~(several & has_gap)
    return Match(
        aligned=aligned,
        inside=inside,
        token=np.where(aligned, placed[first], 0),
        span=span,
        rest_logprob=rest,
        sample_logprob=np.where(readable, total, np.nan).astype(np.float32),
    )


def _running(values: NDArray[Any]) -> NDArray[Any]:
    return np.concatenate([[0], np.cumsum(values)])


def count_reasons(
    match: Match,
    offered_S: NDArray[np.bool_],
    hidden_S: NDArray[np.bool_],
    ends: NDArray[np.int64],
    counted: Counter[str],
) -> None:
    """Why rows have no KD. ends: the rows of ends of turn."""
    is_end_S = np.zeros(len(offered_S), dtype=bool)
    is_end_S[ends] = True
    loose_S = ~match.aligned & ~hidden_S & ~is_end_S
    counted["ce_only_normalised"] += int(hidden_S.sum())
    counted["ce_only_end_not_offered"] += int((is_end_S & ~offered_S).sum())
    counted["ce_only_no_candidates"] += int((match.aligned & ~offered_S & ~is_end_S).sum())
    counted["ce_only_inside_a_teacher_token"] += int((loose_S & match.inside).sum())
    counted["ce_only_text_differs"] += int((loose_S & ~match.inside).sum())
