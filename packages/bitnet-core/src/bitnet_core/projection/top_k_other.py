"""From ragged candidates to K + other for each position: missing values out, duplicates merged, mass kept.

N positions, C candidates over all of them, W candidates of the widest position, K kept. Nats; float64 inside.
"""

from collections.abc import Callable, Iterator
from typing import Any

import attrs
import numpy as np
from numpy.typing import NDArray

OTHER_FLOOR = 1e-8
"""Least mass of "other": what float32 log-probabilities near 0 can be off by. Beneath it the sum is rounding noise."""
MISSING_BELOW = -9000.0
"""-9999 is the hosted providers' word for "unknown"; no real log-probability is near it."""
ROUNDING_ABOVE_ZERO = 1e-3
"""A log-probability this far above 0 is rounding of p = 1; beyond it is no log-probability."""
_BLOCK_CELLS = 100_000
"""Candidates worked on together: few enough to stay in a core's own cache."""


@attrs.frozen(eq=False)
class TopK:
    """K candidates + other for each position, and what was counted on the way."""

    ids: NDArray[np.int32]
    """[N, K] descending by log-probability (equals: by id); 0 in unused slots."""
    logprobs: NDArray[np.float64]
    """[N, K] -inf in unused slots."""
    other: NDArray[np.float64]
    """[N] log(1 - Σp) of the kept candidates; 0.0 where there is none (P(other) = 1)."""
    missing: int
    """Candidates without a usable log-probability."""
    merged: int
    """Candidates that another one of the same position with the same id took in."""
    merged_mass: float
    """Their probability, over all positions."""
    clipped: int
    """Positions with more than K candidates: the rest went to other."""
    clamped: int
    """Positions whose mass came to 1 (within OTHER_FLOOR) or more: other got the floor."""
    mass: NDArray[np.float64]
    """[N] Σp of the kept candidates before clamping; well above 1 means that the teacher's values can't be trusted."""


def known_logprobs(logprobs: NDArray[np.floating]) -> NDArray[np.bool_]:
    """Which values are log-probabilities, not NaN, -inf, a sentinel or above 0 beyond rounding."""
    with np.errstate(invalid="ignore"):
        return (logprobs > MISSING_BELOW) & (logprobs <= ROUNDING_ABOVE_ZERO)


def top_k_with_other(
    counts_N: NDArray[np.int64], ids_C: NDArray[np.int32], logprobs_C: NDArray[np.floating], k: int
) -> TopK:
    """Sort, merge and cut each position's candidates to `k` and give the rest of the mass to other.

    counts_N: candidates of each position, in order. ids_C: those below 0 are none of the student's, their mass goes to
    other. Candidates of one id merge by log-sum-exp; the order in which they
    come makes no difference. Every position's Σ exp(kept) + exp(other) is 1: where the candidates alone exceed
    1 - OTHER_FLOOR they are scaled down to make room for it.
    """
    positions = len(counts_N)
    ids_NK = np.zeros((positions, k), dtype=np.int32)
    logprobs_NK = np.full((positions, k), -np.inf)
    mass_N = np.zeros(positions)
    known_C = known_logprobs(logprobs_C)
    merged = clipped = 0
    merged_mass = 0.0
    for part, cells in _blocks(counts_N):
        ids_NW, logprobs_NW = _dense(counts_N[part], ids_C[cells], logprobs_C[cells], known_C[cells])
        _sort_descending(ids_NW, logprobs_NW)
        vanished, vanished_mass = _merge_duplicates(ids_NW, logprobs_NW)
        merged += vanished
        merged_mass += vanished_mass
        width = min(k, ids_NW.shape[1])
        clipped += int(np.isfinite(logprobs_NW[:, k:]).any(axis=1).sum())
        kept = logprobs_NW[:, :width]
        logprobs_NK[part, :width] = kept
        ids_NK[part, :width] = np.maximum(ids_NW[:, :width], 0)
        mass_N[part] = np.exp(kept).sum(axis=1)
    full_N = mass_N >= 1.0 - OTHER_FLOOR
    total_N = np.where(full_N, mass_N + OTHER_FLOOR, 1.0)
    logprobs_NK[full_N] -= np.log(total_N[full_N])[:, None]
    return TopK(
        ids=ids_NK,
        logprobs=logprobs_NK,
        other=np.where(full_N, np.log(OTHER_FLOOR / total_N), np.log1p(-np.where(full_N, 0.0, mass_N))),
        missing=int((~known_C).sum()),
        merged=merged,
        merged_mass=merged_mass,
        clipped=clipped,
        clamped=int(full_N.sum()),
        mass=mass_N,
    )


def _blocks(counts_N: NDArray[np.int64]) -> Iterator[tuple[slice, slice]]:
    """Slices of positions and of their candidates, such that a dense block stays small."""
    if not len(counts_N):
        return
    offsets = np.concatenate([[0], np.cumsum(counts_N)])
    size = max(1, _BLOCK_CELLS // max(1, int(counts_N.max())))
    for start in range(0, len(counts_N), size):
        stop = min(start + size, len(counts_N))
        yield slice(start, stop), slice(int(offsets[start]), int(offsets[stop]))


def _dense(
    counts_N: NDArray[np.int64], ids_C: NDArray[np.int32], logprobs_C: NDArray[np.floating], known_C: NDArray[np.bool_]
) -> tuple[NDArray[np.int64], NDArray[np.float64]]:
    """Candidates as [N, W] with id -1 and -inf where there is none. Rounding above 0 is put back to 0."""
    shape = (len(counts_N), max(1, int(counts_N.max())))
    usable_C = known_C & (ids_C >= 0)
    ids = np.where(usable_C, ids_C, -1).astype(np.int64)
    logprobs = np.where(usable_C, np.minimum(logprobs_C.astype(np.float64, copy=False), 0.0), -np.inf)
    if len(ids_C) == shape[0] * shape[1]:  # the usual case: everywhere the same number
        return ids.reshape(shape), logprobs.reshape(shape)
    ids_NW = np.full(shape, -1, dtype=np.int64)
    logprobs_NW = np.full(shape, -np.inf)
    used_NW = np.arange(shape[1]) < counts_N[:, None]
    ids_NW[used_NW], logprobs_NW[used_NW] = ids, logprobs
    return ids_NW, logprobs_NW


def _merge_duplicates(ids_NW: NDArray[np.int64], logprobs_NW: NDArray[np.float64]) -> tuple[int, float]:
    """In place: candidates of one id in one position become one, by log-sum-exp. How many vanished, and their mass.

    Rows come and stay descending by log-probability, so the sum does not depend on the order in which they came.
    """
    same = _within_rows(lambda later, earlier: (later == earlier) & (later >= 0), np.sort(ids_NW, axis=1))
    which = _rows_with(same, ids_NW.shape)
    if not len(which):
        return 0, 0.0
    ids_MW, logprobs_MW = ids_NW[which], logprobs_NW[which]
    # Sorted by id, and within one by column: in one number, since numbers sort ten times faster than pairs.
    width = ids_NW.shape[1]
    bits = width.bit_length()
    keys_MW = np.sort((ids_MW << bits) | np.arange(width), axis=1)
    sorted_MW = keys_MW >> bits
    gone_MW = np.zeros(ids_MW.shape, dtype=bool)
    gone_MW[:, 1:] = (sorted_MW[:, 1:] == sorted_MW[:, :-1]) & (sorted_MW[:, 1:] >= 0)
    takes_MW = np.zeros(ids_MW.shape, dtype=bool)  # the first of several, and the likeliest
    takes_MW[:, :-1] = gone_MW[:, 1:] & ~gone_MW[:, :-1]
    row, place = np.nonzero(gone_MW | takes_MW)
    column = keys_MW[row, place] & ((1 << bits) - 1)
    values, takes = logprobs_MW[row, column], takes_MW[row, place]
    logprobs_MW[row[takes], column[takes]] = np.logaddexp.reduceat(values, np.flatnonzero(takes))
    ids_MW[row[~takes], column[~takes]] = -1
    logprobs_MW[row[~takes], column[~takes]] = -np.inf
    _sort_descending(ids_MW, logprobs_MW)
    ids_NW[which], logprobs_NW[which] = ids_MW, logprobs_MW
    return int((~takes).sum()), float(np.exp(values[~takes]).sum())


def _sort_descending(ids_NW: NDArray[np.int64], logprobs_NW: NDArray[np.float64]) -> None:
    """In place: each row descending by log-probability, equals by id. Rows that are so already are not touched."""
    which = _out_of_order(ids_NW, logprobs_NW)
    if not len(which):
        return
    ids_MW, logprobs_MW = ids_NW[which], logprobs_NW[which]
    order = np.argsort(-logprobs_MW, axis=1)
    ids_MW = np.take_along_axis(ids_MW, order, axis=1)
    logprobs_MW = np.take_along_axis(logprobs_MW, order, axis=1)
    tied = _out_of_order(ids_MW, logprobs_MW)
    if len(tied):
        order = np.lexsort((ids_MW[tied], -logprobs_MW[tied]), axis=1)
        ids_MW[tied] = np.take_along_axis(ids_MW[tied], order, axis=1)  # their log-probabilities are in order
    ids_NW[which], logprobs_NW[which] = ids_MW, logprobs_MW


def _out_of_order(ids_NW: NDArray[np.int64], logprobs_NW: NDArray[np.float64]) -> NDArray[np.int64]:
    """Rows in which a candidate stands behind a less likely one, or behind an equal one of larger id."""
    suspect = _within_rows(lambda later, earlier: ~(later < earlier), logprobs_NW)
    values, ids = logprobs_NW.reshape(-1), ids_NW.reshape(-1)
    later, earlier = values[suspect], values[suspect - 1]
    tied = (later == earlier) & np.isfinite(later) & (ids[suspect] < ids[suspect - 1])
    return _rows_with(suspect[(later > earlier) | tied], ids_NW.shape)


def _within_rows(
    holds: Callable[[NDArray[Any], NDArray[Any]], NDArray[np.bool_]], values_NW: NDArray[Any]
) -> NDArray[np.int64]:
    """Flat places at which `holds(value, the one before it in its row)`; flat, since short rows are slow to walk."""
    values = values_NW.reshape(-1)
    places = np.flatnonzero(holds(values[1:], values[:-1])) + 1
    return places[places % values_NW.shape[1] != 0]


def _rows_with(places: NDArray[np.int64], shape: tuple[int, ...]) -> NDArray[np.int64]:
    """The rows of an array of this shape in which flat places lie, each once."""
    is_named = np.zeros(shape[0], dtype=bool)
    is_named[places // shape[1]] = True
    return np.flatnonzero(is_named)
