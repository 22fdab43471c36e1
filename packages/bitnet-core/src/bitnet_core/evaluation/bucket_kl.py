"""KL between a teacher's targets and any distribution over the vocabulary, at τ = 1, in nats per position.

Shapes: N positions, K candidates, V vocabulary, D hidden width. The teacher's K+1 masses are renormalised (stored
log-probabilities are rounded), the other side is coarsened to the same buckets, so a perfect imitation has KL 0. Of
sampled targets the KL is estimated (`target_kl`), and a perfect imitation has KL 0 on the average.
"""

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 16
"""Positions whose [positions, K] temporaries exist at the same time."""


_SMALLEST_OTHER = 1e-15
"""1 − Σq in float64 says nothing below this; a baseline's "other" bucket is never called impossible."""


class KDPositions(Protocol):
    """Positions with a teacher distribution; numpy arrays or CPU tensors. Unused slots have log-probability −inf."""

    @property
    def prev_token(self) -> Any:
        """int [N]: the token before."""

    @property
    def topk_ids(self) -> Any:
        """int [N, K], distinct where used."""

    @property
    def topk_logprobs(self) -> Any:
        """float [N, K], nats."""

    @property
    def other_logprob(self) -> Any:
        """float [N], nats."""

    @property
    def log_z(self) -> Any:
        """float [N] or None: of sampled targets, the log of the draws' total weight."""

    @property
    def entropy(self) -> Any:
        """float [N] of sampled targets, else None: the teacher's, nats."""

    @property
    def document(self) -> Any:
        """int [N]: which document (any numbering) the position belongs to."""


def teacher_masses(positions: KDPositions, part: slice = slice(None)) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Renormalised masses float64 [N, K+1] of some positions, "other" last, and which slots are used, bool [N, K]."""
    logprobs_NK = np.asarray(positions.topk_logprobs[part], dtype=np.float64)
    other_N = np.asarray(positions.other_logprob[part], dtype=np.float64)
    masses = np.exp(np.concatenate([logprobs_NK, other_N[:, None]], axis=1))
    return masses / masses.sum(axis=1, keepdims=True), np.isfinite(logprobs_NK)


def bucket_kl(teacher_NB: NDArray[np.float64], model_NK: NDArray[np.float64]) -> NDArray[np.float64]:
    """KL in nats of each position, float64 [N].

    teacher_NB: masses [N, K+1] that sum to 1, "other" last. model_NK: the model's probabilities of the K candidates,
    0 in unused slots; the rest of its mass is its "other".
    """
    other_N1 = np.maximum(1.0 - model_NK.sum(axis=1, keepdims=True), _SMALLEST_OTHER)
    model_NB = np.concatenate([model_NK, other_N1], axis=1)
    held = teacher_NB > 0
    with np.errstate(divide="ignore"):  # a model that calls a seen candidate impossible: KL = inf, as it should be
        ratio_NB = np.log(np.where(held, teacher_NB, 1.0)) - np.log(np.where(held, model_NB, 1.0))
    result: NDArray[np.float64] = np.where(held, teacher_NB * ratio_NB, 0.0).sum(axis=1)
    return result


def target_kl(
    positions: KDPositions, part: slice, teacher_NB: NDArray[np.float64], model_NK: NDArray[np.float64]
) -> NDArray[np.float64]:
    """KL(teacher ‖ model) in nats of each position of `part`, float64 [N]; arguments as in `bucket_kl`.

    Of sampled targets it is the unbiased estimate −Σ ŵ·log q − H(p) of the KL over the whole vocabulary, as in
    `losses.reference.sampled_by_position`; else the KL over the buckets.
    """
    kl_N = bucket_kl(teacher_NB, model_NK)
    if positions.entropy is None:
        return kl_N
    weight_N = np.exp(np.asarray(positions.log_z[part], dtype=np.float64))
    shares_entropy_N = -np.sum(teacher_NB * np.log(np.where(teacher_NB > 0, teacher_NB, 1.0)), axis=1)
    result: NDArray[np.float64] = weight_N * (kl_N + shares_entropy_N) - np.asarray(positions.entropy[part])
    return result


def chunks(positions: KDPositions) -> list[slice]:
    """Consecutive parts of the positions."""
    return [slice(start, start + CHUNK) for start in range(0, len(positions.prev_token), CHUNK)]
