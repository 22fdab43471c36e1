"""Calibration: whether a model that says 70 % is right 70 % of the time. N positions, S bins of the confidence.

The confidence is the probability of the most likely token, which is right where that token is the one that stands
there. Expected calibration error: Σ_s (n_s/n) · |accuracy_s − confidence_s| over equally wide bins (Naeini et al. 2015;
Guo et al. 2017, equation 3).
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

BINS = 15


SUMS = 3 * BINS
"""Of each bin: positions, confidence, right answers."""


def bin_sums(confidence_N: Tensor, right_N: Tensor, weight_N: Tensor) -> Tensor:
    """What each position adds to the bins, float64 [N, SUMS]. Confidences are in 0..1; a weight is 0 or 1."""
    bin_N = (confidence_N * BINS).long().clamp(0, BINS - 1)
    weight_NS = torch.nn.functional.one_hot(bin_N, BINS).double() * weight_N.double()[:, None]
    return torch.cat(
        [weight_NS, weight_NS * confidence_N.double()[:, None], weight_NS * right_N.double()[:, None]], dim=-1
    )


def calibration(sums: NDArray[np.float64]) -> dict[str, Any] | None:
    """``ece``, ``bin_count``, and the ``bins`` that hold positions, from float64 [SUMS]; None where none holds one."""
    positions_S, confidence_S, right_S = sums.reshape(3, BINS)
    total = float(positions_S.sum())
    if not total:
        return None
    return {
        "ece": float(np.abs(confidence_S - right_S).sum() / total),
        "bin_count": BINS,
        "bins": [
            {
                "from": number / BINS,
                "positions": int(positions),
                "confidence": float(confidence_S[number] / positions),
                "accuracy": float(right_S[number] / positions),
            }
            for number, positions in enumerate(positions_S)
            if positions
        ],
    }
