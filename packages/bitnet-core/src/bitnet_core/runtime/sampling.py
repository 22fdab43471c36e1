"""Drawing a token from logits. V vocabulary."""

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from bitnet_core.runtime.contract import Sampling

_LIKELY = 256
"""Tokens that mostly hold a nucleus."""


def drawer(sampling: Sampling, device: torch.device) -> Callable[[Tensor], int]:
    """A function from logits [V] to a token id; seeded here, so that a new one draws the same again.

    Greedy takes the first of equals. Only the seeded number is drawn on the CPU, the rest is done where the logits are:
    one seed gives one answer on every device that gives the same logits.
    """
    if sampling.temperature == 0:
        return lambda logits_V: int(logits_V.argmax())
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits_V: Tensor) -> int:
        wide_V = (logits_V if logits_V.is_cuda else logits_V.cpu()).double()  # MPS has no float64
        # From the largest on: divided by a tiny temperature the others overflow to nothing, and it stays.
        p_V = torch.softmax((wide_V - wide_V.max()) / sampling.temperature, -1)
        cumulative_V = nucleus(p_V, sampling.top_p).cumsum(-1)
        mark = torch.rand(1, generator=generator, dtype=torch.float64).to(cumulative_V.device) * cumulative_V[-1]
        return min(int(torch.searchsorted(cumulative_V, mark, right=True)), len(cumulative_V) - 1)

    return draw


def nucleus(p_V: Tensor, top_p: float) -> Tensor:
    """`p_V` with zeros outside the smallest set of likeliest tokens that holds `top_p` (not normalised again).

    The likeliest token always stays (Holtzman et al. 2020, section 3.1).
    """
    if top_p >= 1:
        return p_V
    likely_N = _likely(p_V, top_p)
    sorted_N, order_N = p_V[likely_N].sort(descending=True, stable=True)
    before_N = sorted_N.cumsum(-1) - sorted_N
    keep_N = before_N < top_p
    keep_N[0] = True
    return torch.zeros_like(p_V).scatter(-1, likely_N[order_N[keep_N]], sorted_N[keep_N])


def _likely(p_V: Tensor, top_p: float) -> Tensor:
    """Tokens [N], in order, among which the nucleus is: to sort a whole vocabulary takes as long as a small model."""
    if len(p_V) > _LIKELY:
        tokens_N = (p_V >= p_V.topk(_LIKELY).values[-1]).nonzero()[:, 0]
        if p_V[tokens_N].sum() >= top_p + 1e-9:
            return tokens_N
    return torch.arange(len(p_V), device=p_V.device)


@attrs.frozen
class Drawn:
    """A token that was drawn, with what `Sampling.top_logprobs` asks for. Nats, before temperature and top-p."""

    id: int
    logprob: float = math.nan
    top_ids: Sequence[int] = ()
    top_logprobs: Sequence[float] = ()


def observed(draw: Callable[[Tensor], int], sampling: Sampling) -> Callable[[Tensor], Drawn]:
    """`draw` with the log-probabilities of the logits [V] that it drew from, if they are asked for."""
    if sampling.top_logprobs is None:
        return lambda logits_V: Drawn(draw(logits_V))
    count = sampling.top_logprobs

    def observe(logits_V: Tensor) -> Drawn:
        id_ = draw(logits_V)
        logprobs_V = torch.log_softmax(logits_V.float(), -1)
        top_logprobs, top_ids = logprobs_V.topk(min(count, len(logprobs_V)))
        return Drawn(id_, float(logprobs_V[id_]), top_ids.tolist(), top_logprobs.tolist())

    return observe
