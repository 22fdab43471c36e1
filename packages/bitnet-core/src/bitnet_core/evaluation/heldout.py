"""A student on held-out documents, in torch or in the runtime that it is deployed in: KL, perplexity, agreement, and
calibration: whether a model that says 70 % is right 70 % of the time.

B documents, T positions, N gathered positions, F figures, D width, V vocabulary, S bins of the confidence. Every figure
is kept per document, so that means and bootstrap intervals come from the same arrays.

The confidence is the probability of the most likely token, which is right where that token is the one that stands
there. Expected calibration error: Σ_s (n_s/n) · |accuracy_s − confidence_s| over equally wide bins (Naeini et al. 2015;
Guo et al. 2017, equation 3).
"""

from collections.abc import Iterator, Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from transformers import PreTrainedModel

from bitnet_core.benchmarks.contract import DocumentScores
from bitnet_core.distributed import Root, reshard
from bitnet_core.hardware import autocast
from bitnet_core.losses.divergences import bucket_logprobs, log_sum_exp, sampled_term, take_candidates_, topk_other_term
from bitnet_core.losses.masks_and_rows import NextTokenRows, next_token_rows
from bitnet_core.model.find_layers_and_head import decoder, head, head_input
from bitnet_core.runtime.contract import Runtime
from bitnet_core.ternary.bitlinear import quantised_once
from bitnet_core.ternary.ternary_linear import compute_dtype
from bitnet_core.traces.collate import collate_fn
from bitnet_core.traces.dataset import KDTraceDataset

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


CHUNK = 1024
"""Positions whose logits exist at the same time."""


FIGURES = len(attrs.fields(DocumentScores)) - 2
"""The sums that are one number for a document; behind them stand the two rows of `SUMS` numbers."""


@torch.no_grad()  # and not inference_mode: its tensors could not be sharded
def score_documents(
    model: nn.Module,
    documents: KDTraceDataset,
    batch_size: int,
    precision: str,
    limit: int | None = None,
    device: torch.device | None = None,
) -> DocumentScores:
    """Score each document of `documents` (the first `limit`) in the model's present activation bits.

    model: the student, or the `Root` that it trains in.
    """
    root = model if isinstance(model, Root) else Root(model)
    device = next(model.parameters()).device if device is None else device
    training = model.training
    model.eval()
    with autocast(precision, device), quantised_once(model):
        rows = [
            sums
            for batch in document_batches(documents, batch_size, limit)
            for sums in root(batch_sums, {name: tensor.to(device) for name, tensor in batch.items()})
        ]
    reshard(root)
    model.train(training)
    in_order = np.argsort(by_length(documents, limit))
    return from_rows([rows[place] for place in in_order])


def from_rows(rows: Sequence[Sequence[float]]) -> DocumentScores:
    """One row of `row_figures`' sums for each document."""
    table = np.asarray(rows, dtype=np.float64).reshape(-1, FIGURES + 2 * SUMS)
    reliability = table[:, FIGURES : FIGURES + SUMS], table[:, FIGURES + SUMS :]
    return DocumentScores(*(*table[:, :FIGURES].T, *reliability))


def of_teacher(scores: DocumentScores) -> DocumentScores:
    """The teacher in the student's place, on the same positions: KL 0 and full agreement are so by definition."""
    return attrs.evolve(
        scores,
        kl=np.zeros_like(scores.kl),
        agreement=scores.top1_positions,
        nll=scores.teacher_nll,
        reliability=scores.teacher_reliability,
    )


def mean_heldout_kl(
    model: nn.Module,
    documents: KDTraceDataset,
    limit: int,
    batch_size: int,
    precision: str,
    device: torch.device | None = None,
) -> float | None:
    """Nats per KD position over the first `limit` held-out documents; None where they have no KD position."""
    scores = score_documents(model, documents, batch_size, precision, limit, device)
    return ratio(scores.kl, scores.kd_positions)


def by_length(documents: KDTraceDataset, limit: int | None) -> NDArray[np.int64]:
    """The first `limit` documents (None: all), the shortest first."""
    return np.argsort(documents.lengths[:limit], kind="stable")


def document_batches(documents: KDTraceDataset, batch_size: int, limit: int | None) -> Iterator[dict[str, Tensor]]:
    """In the order of `by_length`, so that little is padded."""
    order = by_length(documents, limit)
    for start in range(0, len(order), batch_size):
        yield collate_fn([documents[int(i)] for i in order[start : start + batch_size]], pad_token_id=0)


def batch_sums(model: PreTrainedModel, batch: dict[str, Tensor]) -> list[list[float]]:
    """One row for each document of the batch, in the order of DocumentScores' fields."""
    size = len(batch["input_ids"])
    sums_BF = torch.zeros(size, FIGURES + 2 * SUMS, dtype=torch.float64, device=batch["input_ids"].device)
    read = decoder(model)(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    hidden_BTD = head_input(model, read.last_hidden_state)
    sampled = "entropy" in batch
    head_DV = head(model).weight.T.to(compute_dtype(hidden_BTD))
    for rows in next_token_rows(hidden_BTD, batch).split(CHUNK):
        logits_NV = rows.hidden_ND.to(head_DV.dtype) @ head_DV
        sums_BF.index_add_(0, rows.document, row_figures(logits_NV, rows, sampled))
    result: list[list[float]] = sums_BF.tolist()
    return result


def row_figures(logits_NV: Tensor, rows: NextTokenRows, sampled: bool) -> Tensor:
    """What each row adds to the sums of its document, float64 [N, FIGURES + 2·SUMS], in the order of the fields.

    logits_NV: those that predict the rows' targets, of any constant offset; they are overwritten. sampled: the targets
    are draws.
    """
    kd = rows.has_kd.double()
    # Where the teacher's log-probability is unknown neither side is scored: both perplexities, one text.
    known = torch.isfinite(rows.sample_logprob).double()
    top_logit_N, top_N = logits_NV.max(-1)
    candidates = take_candidates_(logits_NV, rows)
    logprobs_NB, lse_N1 = bucket_logprobs(candidates.z_RK, log_sum_exp(logits_NV))
    term = sampled_term() if sampled else topk_other_term(tau=1.0)
    kl, _ = term.value(rows, term.teacher(rows, logprobs_NB.dtype), logprobs_NB)
    with_top1 = torch.zeros_like(kd) if sampled else kd  # the token drawn most often need not be the likeliest
    teacher_top_N = rows.topk_ids[:, 0]
    figures_NF = torch.stack(
        [
            torch.where(rows.has_kd, kl, 0.0).double(),
            (top_N == teacher_top_N).double() * with_top1,
            with_top1,
            kd,
            (lse_N1 - candidates.z_target_R1).squeeze(-1).double() * known,
            -rows.sample_logprob.nan_to_num(0.0).double() * known,
            known,
        ],
        dim=-1,
    )
    teacher_confidence_N = rows.topk_logprobs[:, 0].float().exp()
    reliability_NS = (
        bin_sums((top_logit_N - lse_N1.squeeze(-1)).exp(), top_N == rows.target, known),
        bin_sums(teacher_confidence_N, teacher_top_N == rows.target, known * with_top1),
    )
    return torch.cat([figures_NF, *reliability_NS], dim=-1)


def ratio(numerator: NDArray[np.float64], denominator: NDArray[np.float64]) -> float | None:
    """Σ numerator / Σ denominator; None where there is nothing to divide by."""
    below = float(denominator.sum())
    return float(numerator.sum()) / below if below else None


def perplexity(nll: NDArray[np.float64], positions: NDArray[np.float64]) -> float | None:
    mean = ratio(nll, positions)
    return None if mean is None else float(np.exp(mean))


def summary(scores: DocumentScores) -> dict[str, Any]:
    """The means over all documents; None where no position has what the mean is of."""
    return {
        "kl": ratio(scores.kl, scores.kd_positions),
        "top1_agreement": ratio(scores.agreement, scores.top1_positions),
        "perplexity": perplexity(scores.nll, scores.scored_positions),
        "teacher_perplexity": perplexity(scores.teacher_nll, scores.scored_positions),
        "documents": len(scores.kl),
        "kd_positions": int(scores.kd_positions.sum()),
        "scored_positions": int(scores.scored_positions.sum()),
        "calibration": calibration(scores.reliability.sum(axis=0)),
        "teacher_calibration": calibration(scores.teacher_reliability.sum(axis=0)),
    }


FEW_POSITIONS = 64
"""Where every position takes a request of its own."""
A_DOCUMENT = 4
"""Positions of a document, where only a few are scored: an interval over documents wants many of them."""


@runtime_checkable
class WithLogits(Protocol):
    """A runtime that gives what it says after every token of a text at once."""

    def logits(self, ids: Sequence[int], last: int | None = None) -> Tensor:
        """float32 [T, V] on the CPU: row t is of the token after ids[:t+1]; `last`: only the last so many rows."""
        ...


@runtime_checkable
class WithDistributions(Protocol):
    """A runtime that is asked for one position at a time."""

    def distributions_after(self, ids: Sequence[int], lengths: Sequence[int]) -> NDArray[np.float64]:
        """log p [len(lengths), V] after each of these prefixes, nats."""
        ...


def score_in_runtime(runtime: Runtime, documents: KDTraceDataset, positions: int | None) -> DocumentScores | None:
    """The sums over `positions` held-out positions, spread evenly over documents and within them.

    None for `positions`: all that can be had at once, else `FEW_POSITIONS`. Returns None where the runtime tells no
    distributions, or none are wanted.
    """
    whole = isinstance(runtime, WithLogits)
    if positions == 0 or not (whole or isinstance(runtime, WithDistributions)):
        return None
    wanted = positions if positions is not None or whole else FEW_POSITIONS
    rows = []
    for number, share in _shares(len(documents), wanted):
        document = documents[number]
        found, prefix_N = _rows(document, share)
        if not len(prefix_N):
            continue
        logits_NV = _logits_after(runtime, document["input_ids"].tolist(), prefix_N)
        rows.append(row_figures(logits_NV, found, "entropy" in document).sum(0).tolist())
    return from_rows(rows) if rows else None


def _shares(documents: int, positions: int | None) -> list[tuple[int, int | None]]:
    """(document, how many of its positions), evenly spread; None: all."""
    if positions is None:
        return [(number, None) for number in range(documents)]
    count = min(documents, max(1, positions // A_DOCUMENT))
    chosen = sorted({int(place) for place in np.linspace(0, documents - 1, count)})
    each, more = divmod(positions, len(chosen))
    shares = [(number, each + (index < more)) for index, number in enumerate(chosen)]
    return [(number, share) for number, share in shares if share]


def _rows(document: dict[str, Tensor], share: int | None) -> tuple[NextTokenRows, list[int]]:
    """The rows of a document that count, `share` of them evenly spread, and the length of the prefix before each."""
    batch: Any = collate_fn([document], pad_token_id=0)
    # Places take the hidden states' part, so that each row brings the place that it is predicted from.
    places_BT1 = torch.arange(len(document["input_ids"]), dtype=torch.float64)[None, :, None]
    rows = next_token_rows(places_BT1, batch)
    counted = (rows.has_kd | torch.isfinite(rows.sample_logprob)).nonzero()[:, 0]
    if share is not None and share < len(counted):
        # The middle of each of `share` equal parts.
        counted = counted[((torch.arange(share) + 0.5) * len(counted) / share).long()]
    rows = NextTokenRows(*(column[counted] for column in attrs.astuple(rows, recurse=False)))
    return rows, [int(place) + 1 for place in rows.hidden_ND[:, 0].tolist()]


def _logits_after(runtime: Runtime, ids: list[int], prefix_N: list[int]) -> Tensor:
    """float [N, V] that predict the token after each prefix, up to a constant."""
    if isinstance(runtime, WithLogits):
        return runtime.logits(ids[: max(prefix_N)])[[length - 1 for length in prefix_N]].float()
    assert isinstance(runtime, WithDistributions)
    return torch.from_numpy(runtime.distributions_after(ids, prefix_N)).float()
