"""Bootstrap intervals over documents or items."""

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
    drawn, because positions of one document are not independent. The same seed draws the same documents, so intervals
    of paired figures belong together. Apply a monotone function (exp for perplexity) to the two ends.
    """
    numerator, denominator = np.asarray(numerator_D, dtype=np.float64), np.asarray(denominator_D, dtype=np.float64)
    if numerator.shape != denominator.shape or numerator.ndim != 1 or numerator.size == 0:
        raise ValueError(
            "numerator and denominator need one number per document, "
            f"not shapes {numerator.shape} and {denominator.shape}"
        )
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie between 0 and 1, not {level}")
    generator = np.random.default_rng(seed)
    count = numerator.size
    ratios = np.empty(samples)
    for sample in range(samples):
        drawn: NDArray[np.int64] = generator.integers(0, count, count)
        below = denominator[drawn].sum()
        ratios[sample] = numerator[drawn].sum() / below if below > 0 else np.nan
    tail = 50.0 * (1.0 - level)
    # A draw of documents without any counted position has no ratio; it says nothing about the others.
    low, high = np.nanpercentile(ratios, [tail, 100.0 - tail]) if np.isfinite(ratios).any() else (np.nan, np.nan)
    return float(low), float(high)
