"""What a student must beat: the best unigram and the best smoothed bigram, fitted on the same training traces.

Shapes: N positions, K candidates, V vocabulary, U distinct (previous token, token) pairs. Probabilities are float64.
KLs are those of the teacher's targets to any distribution over the vocabulary, at τ = 1, in nats per position: the
teacher's K+1 masses are renormalised (stored log-probabilities are rounded), the other side is coarsened to the same
buckets, so a perfect imitation has KL 0; of sampled targets, where the KL is estimated (`target_kl`), on the average.
"""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.traces.dataset import KDTraceDataset

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


ALPHAS: tuple[float, ...] = (*(float(a) for a in np.geomspace(0.1, 1e5, 19)), float("inf"))
"""The smoothing strengths that are tried, in positions; infinity is the unigram itself."""


_SMALLEST_REST = 1e-12
"""Where candidates hold all of the unigram, their complement's probability is not divided by less than this."""


# --- unigram ---------------------------------------------------------------------------------------------------------
def fit_unigram(
    positions: KDPositions,
    vocab_size: int,
    *,
    pseudo_positions: float = 1.0,
    tolerance: float = 1e-9,
    max_iterations: int = 200,
) -> NDArray[np.float64]:
    """The maximum-likelihood unigram for K+other data, [V], positive everywhere, sums to 1.

    It minimises the mean bucket KL (equivalently, maximises Σ_n [Σ_i p_ni log q_i + p_no log q(complement)]) by
    expectation-maximisation (Dempster, Laird & Rubin 1977): a position's "other" mass is spread over its complement in
    proportion to the unigram itself, and the mean is the next unigram. It starts from the uniform spread and ends when
    an iteration moves less than `tolerance` of the mass. At the end `pseudo_positions` uniform positions are mixed
    in, so that a token never seen is unlikely, not impossible (at 60,000 positions: at most 2e-5 nats).
    """
    count = len(positions.prev_token)
    if count == 0:
        raise CoreError(
            "no KD position to fit a unigram on: the training split is empty",
            "collect more, or lower project.holdout_fraction",
        )
    check_ids(positions, vocab_size)
    known_V = np.zeros(vocab_size)
    for part in chunks(positions):
        teacher_NB, used_NK = teacher_masses(positions, part)
        known_V += token_sums(positions.topk_ids[part], np.where(used_NK, teacher_NB[:, :-1], 0.0), vocab_size)
    unigram_V = spread_once(positions, known_V, np.full(vocab_size, 1.0 / vocab_size))
    for _ in range(max_iterations):
        updated_V = spread_once(positions, known_V, unigram_V)
        moved = np.abs(updated_V - unigram_V).sum()
        unigram_V = updated_V
        if moved < tolerance:
            break
    return (count * unigram_V + pseudo_positions / vocab_size) / (count + pseudo_positions)


def spread_once(positions: KDPositions, known_V: NDArray[np.float64], by_V: NDArray[np.float64]) -> NDArray[np.float64]:
    """The mean teacher distribution when each "other" mass is spread over its complement in proportion to `by_V`. [V]

    known_V: the candidates' masses, summed over positions.
    """
    vocab_size = len(known_V)
    total, inside_V = 0.0, np.zeros(vocab_size)
    for part in chunks(positions):
        rate_N, used_NK = other_rates(positions, part, by_V)
        total += float(rate_N.sum())
        inside_V += token_sums(positions.topk_ids[part], np.where(used_NK, rate_N[:, None], 0.0), vocab_size)
    mean_V = known_V + by_V * np.maximum(total - inside_V, 0.0)
    result: NDArray[np.float64] = mean_V / mean_V.sum()
    return result


def other_rates(
    positions: KDPositions, part: slice, by_V: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """p_other / by_V(complement) of each position [N], and which candidate slots are used [N, K]."""
    teacher_NB, used_NK = teacher_masses(positions, part)
    inside_N = np.where(used_NK, by_V[np.asarray(positions.topk_ids[part])], 0.0).sum(axis=1)
    return teacher_NB[:, -1] / np.maximum(1.0 - inside_N, _SMALLEST_REST), used_NK


def token_sums(ids_NK: object, values_NK: NDArray[np.float64], vocab_size: int) -> NDArray[np.float64]:
    """Σ of the values by token id, [V]."""
    sums: NDArray[np.float64] = np.bincount(
        np.asarray(ids_NK).ravel(), weights=values_NK.ravel(), minlength=vocab_size
    ).astype(np.float64)
    return sums


def check_ids(positions: KDPositions, vocab_size: int) -> None:
    """Raise CoreError where a token id lies outside the vocabulary."""
    for name in ("prev_token", "topk_ids"):
        ids = np.asarray(getattr(positions, name))
        if ids.size and (ids.min() < 0 or ids.max() >= vocab_size):
            raise CoreError(
                f"{name} holds ids from {ids.min()} to {ids.max()}, but the vocabulary has {vocab_size} tokens: "
                "the traces were made for another tokenizer",
                "run the project stage again",
            )


# --- bigram ----------------------------------------------------------------------------------------------------------
@attrs.frozen(eq=False)
class Bigram:
    """q(v|u) = (Σ_{t: prev=u} p_t(v) + α·q_uni(v)) / (n_u + α), sparse in (u, v).

    p_t(v) of a token outside position t's candidates is its share of the "other" mass, spread in proportion to the
    unigram. Summed over t that is (spread_u)·q_uni(v) for every v, plus a correction that only candidates need.
    """

    unigram: NDArray[np.float64]
    alpha: float
    """In positions: how many positions of evidence the unigram counts for; infinity gives the unigram."""
    pairs: NDArray[np.int64]
    """[U]: sorted u·V + v of the pairs that occur among candidates."""
    corrections: NDArray[np.float64]
    """[U]: Σ_t (p_t(v) − rate_t·q_uni(v)) over the positions after u that have v among their candidates."""
    counts: NDArray[np.float64]
    """[V]: n_u, positions after u."""
    spread: NDArray[np.float64]
    """[V]: Σ rate_t over positions after u, rate_t = p_other / q_uni(complement)."""

    def probabilities(self, prev_N: NDArray[np.integer], ids_NK: NDArray[np.integer]) -> NDArray[np.float64]:
        """q(id | prev), [N, K]."""
        share_N1 = self.evidence_share(prev_N)[:, None]
        unigram_NK = self.unigram[ids_NK]
        return share_N1 * self.mean_teacher(prev_N, ids_NK) + (1.0 - share_N1) * unigram_NK

    def evidence_share(self, prev_N: NDArray[np.integer]) -> NDArray[np.float64]:
        """n_u / (n_u + α), [N]; 0 for a token that nothing follows in the training traces."""
        count_N = self.counts[prev_N]
        share_N: NDArray[np.float64] = np.where(count_N > 0, count_N / np.maximum(count_N + self.alpha, 1e-300), 0.0)
        return share_N

    def mean_teacher(self, prev_N: NDArray[np.integer], ids_NK: NDArray[np.integer]) -> NDArray[np.float64]:
        """The unsmoothed mean teacher distribution after `prev`, at `ids`, [N, K]; 0 after a token never seen."""
        wanted_NK = prev_N[:, None].astype(np.int64) * len(self.unigram) + ids_NK
        correction_NK = np.zeros(wanted_NK.shape)
        if len(self.pairs):
            found_NK = np.minimum(np.searchsorted(self.pairs, wanted_NK), len(self.pairs) - 1)
            correction_NK = np.where(self.pairs[found_NK] == wanted_NK, self.corrections[found_NK], 0.0)
        total_NK = correction_NK + self.spread[prev_N][:, None] * self.unigram[ids_NK]
        # The correction cancels the spread exactly where a token was a candidate with probability 0: not below 0.
        mean_NK: NDArray[np.float64] = np.maximum(total_NK, 0.0) / np.maximum(self.counts[prev_N], 1.0)[:, None]
        return mean_NK

    def row(self, prev: int) -> NDArray[np.float64]:
        """The whole distribution after `prev`, [V]."""
        return self.probabilities(np.array([prev]), np.arange(len(self.unigram))[None])[0]


def fit_bigram(
    positions: KDPositions,
    unigram_V: NDArray[np.float64],
    *,
    alpha: float | None = None,
    alphas: Sequence[float] = ALPHAS,
    validation_fraction: float = 0.2,
    seed: int = 0,
) -> Bigram:
    """The smoothed bigram on `positions`; without an `alpha` it is chosen on documents set aside from them.

    For the choice, `validation_fraction` of the documents (at least one) are set aside, unigram and counts are fitted
    on the others, and the α with the least KL on those set aside is kept; then all is fitted on all. The held-out
    documents of the evaluation take no part. Raises CoreError where there are fewer than two documents.
    """
    check_ids(positions, len(unigram_V))
    if alpha is None:
        alpha = choose_alpha(positions, len(unigram_V), alphas, validation_fraction, seed)
    return count_bigram(positions, unigram_V, alpha)


def choose_alpha(
    positions: KDPositions, vocab_size: int, alphas: Iterable[float], validation_fraction: float, seed: int
) -> float:
    """The α whose bigram, fitted on some of the documents, has the least bucket KL on the others."""
    document_N = np.asarray(positions.document)
    documents = np.unique(document_N)
    if len(documents) < 2:
        raise CoreError(
            f"the bigram's smoothing is chosen on documents set aside, but the training traces hold {len(documents)}",
            "collect at least 2, or give alpha",
        )
    aside = min(max(1, round(validation_fraction * len(documents))), len(documents) - 1)
    chosen = np.random.default_rng(seed).permutation(documents)[:aside]
    is_aside_N = np.isin(document_N, chosen)
    fitted, validation = select(positions, ~is_aside_N), select(positions, is_aside_N)
    bigram = count_bigram(fitted, fit_unigram(fitted, vocab_size), alpha=0.0)
    candidates = list(alphas)
    totals = np.zeros(len(candidates))
    for part in chunks(validation):
        teacher_NB, used_NK = teacher_masses(validation, part)
        prev_N, ids_NK = validation.prev_token[part], validation.topk_ids[part]
        mean_NK, unigram_NK = bigram.mean_teacher(prev_N, ids_NK), bigram.unigram[ids_NK]
        for index, alpha in enumerate(candidates):
            share_N1 = attrs.evolve(bigram, alpha=alpha).evidence_share(prev_N)[:, None]
            model_NK = np.where(used_NK, share_N1 * mean_NK + (1.0 - share_N1) * unigram_NK, 0.0)
            totals[index] += target_kl(validation, part, teacher_NB, model_NK).sum()
    return candidates[int(totals.argmin())]


def count_bigram(positions: KDPositions, unigram_V: NDArray[np.float64], alpha: float) -> Bigram:
    """The sufficient statistics of the bigram. Works through the positions by previous token, so memory stays small."""
    vocab_size = len(unigram_V)
    prev_N = np.asarray(positions.prev_token)
    count_V = np.bincount(prev_N, minlength=vocab_size).astype(np.float64)
    ordered = select(positions, np.argsort(prev_N, kind="stable"))
    spread_V = np.zeros(vocab_size)
    pairs, corrections = [], []
    for part in chunks_by_token(ordered.prev_token):
        teacher_NB, _ = teacher_masses(ordered, part)
        rate_N, used_NK = other_rates(ordered, part, unigram_V)
        prev_part_N = ordered.prev_token[part]
        spread_V += np.bincount(prev_part_N, weights=rate_N, minlength=vocab_size)
        ids_NK = ordered.topk_ids[part].astype(np.int64)
        keys_NK = prev_part_N[:, None].astype(np.int64) * vocab_size + ids_NK
        pair_U, where_P = np.unique(keys_NK[used_NK], return_inverse=True)
        values_P = (teacher_NB[:, :-1] - rate_N[:, None] * unigram_V[ids_NK])[used_NK]
        pairs.append(pair_U)
        corrections.append(np.bincount(where_P, weights=values_P, minlength=len(pair_U)))
    return Bigram(unigram_V, alpha, np.concatenate(pairs), np.concatenate(corrections), count_V, spread_V)


def chunks_by_token(sorted_N: NDArray[np.integer]) -> list[slice]:
    """Parts of about CHUNK positions that never cut a run of equal tokens."""
    starts = np.flatnonzero(np.diff(sorted_N, prepend=-1))
    cuts, last = [0], 0
    for start in starts.tolist():
        if start - last >= CHUNK:
            cuts.append(start)
            last = start
    return [slice(a, b) for a, b in zip(cuts, [*cuts[1:], len(sorted_N)], strict=True)]


@attrs.frozen(eq=False)
class PositionArrays:
    """`KDPositions` as numpy arrays."""

    prev_token: NDArray[np.integer]
    topk_ids: NDArray[np.integer]
    topk_logprobs: NDArray[np.floating]
    other_logprob: NDArray[np.floating]
    document: NDArray[np.integer]
    log_z: NDArray[np.floating] | None = None
    entropy: NDArray[np.floating] | None = None


def select(positions: KDPositions, which_N: NDArray[np.integer] | NDArray[np.bool_]) -> PositionArrays:
    """The positions at an index array or mask."""
    columns = {field.name: getattr(positions, field.name, None) for field in attrs.fields(PositionArrays)}
    return PositionArrays(
        **{name: np.asarray(column)[which_N] for name, column in columns.items() if column is not None}
    )


def unigram_bucket_kl(unigram_V: NDArray[np.float64], positions: KDPositions) -> NDArray[np.float64]:
    """KL(teacher ‖ unigram) of each position, nats, float64 [N]."""
    parts = []
    for part in chunks(positions):
        teacher_NB, used_NK = teacher_masses(positions, part)
        model_NK = np.where(used_NK, unigram_V[np.asarray(positions.topk_ids[part])], 0.0)
        parts.append(target_kl(positions, part, teacher_NB, model_NK))
    return np.concatenate(parts) if parts else np.zeros(0)


def bigram_bucket_kl(bigram: "Bigram", positions: KDPositions) -> NDArray[np.float64]:
    """KL(teacher ‖ bigram given the token before) of each position, nats, float64 [N]."""
    parts = []
    for part in chunks(positions):
        teacher_NB, used_NK = teacher_masses(positions, part)
        probabilities_NK = bigram.probabilities(
            np.asarray(positions.prev_token[part]), np.asarray(positions.topk_ids[part])
        )
        parts.append(target_kl(positions, part, teacher_NB, np.where(used_NK, probabilities_NK, 0.0)))
    return np.concatenate(parts) if parts else np.zeros(0)


@attrs.frozen(kw_only=True)
class NgramBaselines:
    figures: dict[str, float | None]
    kl_missing: str | None = None
    """Why their KL is missing, if it is."""
    document_kl: Mapping[str, NDArray[np.float64]] = attrs.field(factory=dict)
    """"unigram" and "bigram" → Σ KL over each measured document's KD positions, nats, float64 [documents]."""


def ngram_baselines(
    data_folder: Path, tokenizer_folder: Path, max_seq_len: int, measured: str = "heldout"
) -> NgramBaselines:
    """The best unigram and the best smoothed bigram on the training traces, measured on the split `measured`."""

    def dataset(split: str) -> KDTraceDataset:
        return KDTraceDataset(data_folder, split=split, max_seq_len=max_seq_len, tokenizer_folder=tokenizer_folder)

    documents = dataset(measured)
    train, heldout, vocab_size = dataset("train").positions(), documents.positions(), documents.vocab_size
    figures: dict[str, float | None] = {
        "unigram_kl": None,
        "bigram_kl": None,
        "bigram_alpha": None,
        "train_positions": len(train.prev_token),
        "heldout_positions": len(heldout.prev_token),
    }
    words = "test" if measured == "test" else "held-out"
    for split, found in ((words, heldout), ("training", train)):
        if not len(found.prev_token):
            reason = "collected with top_k = 0, or cut off by evaluate.max_seq_len"
            why = f"the {split} traces hold no teacher distribution within their positions ({reason})"
            return NgramBaselines(figures=figures, kl_missing=why)
    unigram = fit_unigram(train, vocab_size)
    bigram = fit_bigram(train, unigram)
    kl_N = {"unigram": unigram_bucket_kl(unigram, heldout), "bigram": bigram_bucket_kl(bigram, heldout)}
    figures |= {f"{name}_kl": float(np.mean(kl)) for name, kl in kl_N.items()} | {"bigram_alpha": bigram.alpha}
    sums_D = {name: np.zeros(len(documents)) for name in kl_N}
    for name, kl in kl_N.items():
        np.add.at(sums_D[name], heldout.document, kl)
    return NgramBaselines(figures=figures, document_kl=sums_D)
