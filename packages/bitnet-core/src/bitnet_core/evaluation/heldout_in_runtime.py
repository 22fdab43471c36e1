"""The held-out positions in the runtime that the student is deployed in. T tokens, N positions, V vocabulary."""

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet_core.benchmarks.contract import DocumentScores
from bitnet_core.evaluation.heldout import from_rows, row_figures
from bitnet_core.losses.masks_and_rows import NextTokenRows, next_token_rows
from bitnet_core.runtime.contract import Runtime
from bitnet_core.traces.collate import collate_fn
from bitnet_core.traces.dataset import KDTraceDataset

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
