"""Bootstrap intervals over documents or items, of one model or of the difference of two on the same ones."""

import math
from collections.abc import Iterable

import numpy as np
from numpy.typing import ArrayLike, NDArray


def bootstrap_interval(
    numerator_D: ArrayLike,
    denominator_D: ArrayLike,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Percentile bootstrap interval of Σ numerator / Σ denominator, resampling documents (Efron 1979).

    Both arrays hold one sum for each of the D documents (for example nats, and tokens). Documents and not positions are
    drawn, because positions of one document are not independent. Apply a monotone function (exp for perplexity) to the
    two ends.
    """
    return percentiles(resampled_ratios(numerator_D, denominator_D, samples=samples, seed=seed), level)


def resampled_ratios(
    numerator_D: ArrayLike, denominator_D: ArrayLike, *, samples: int = 1000, seed: int = 0
) -> NDArray[np.float64]:
    """Σ numerator / Σ denominator of each of the resamples, float64 [samples]; NaN where there is nothing to divide by.

    The same seed draws the same documents: the difference of two models' arrays is the paired bootstrap's.
    """
    numerator, denominator = np.asarray(numerator_D, dtype=np.float64), np.asarray(denominator_D, dtype=np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 1 or numerator.size == 0:
        raise ValueError(
            "numerator and denominator need one number per document, "
            f"not shapes {numerator.shape} and {denominator.shape}"
        )
    generator = np.random.default_rng(seed)
    count = numerator.size
    ratios = np.full(samples, np.nan)
    for sample in range(samples):
        drawn: NDArray[np.int64] = generator.integers(0, count, count)
        below = denominator[drawn].sum()
        if below > 0:
            ratios[sample] = numerator[drawn].sum() / below
    return ratios


def percentiles(resampled: Iterable[float], level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of what resamples gave. One that gave no finite value says nothing about the others."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    finite = [value for value in resampled if math.isfinite(value)]
    if not finite:
        return math.nan, math.nan
    tail = 50.0 * (1.0 - level)
    low, high = np.percentile(finite, [tail, 100.0 - tail])
    return float(low), float(high)
