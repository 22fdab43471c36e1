"""Drawing a token from logits. V vocabulary."""

import math
from collections.abc import Callable, Sequence

import attrs
import torch
from torch import Tensor

from bitnet_core.runtime.contract import Sampling


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
        cumulative_V = nucleus(torch.softmax(wide_V / sampling.temperature, -1), sampling.top_p).cumsum(-1)
        mark = torch.rand(1, generator=generator, dtype=torch.float64).to(cumulative_V.device) * cumulative_V[-1]
        return min(int(torch.searchsorted(cumulative_V, mark, right=True)), len(cumulative_V) - 1)

    return draw


def nucleus(p_V: Tensor, top_p: float) -> Tensor:
    """`p_V` with zeros outside the smallest set of likeliest tokens that holds `top_p` (not normalised again).

    The likeliest token always stays (Holtzman et al. 2020, section 3.1).
    """
    if top_p >= 1:
        return p_V
    sorted_V, order_V = p_V.sort(descending=True, stable=True)
    before_V = sorted_V.cumsum(-1) - sorted_V
    keep_V = before_V < top_p
    keep_V[0] = True
    return torch.zeros_like(p_V).scatter(-1, order_V[keep_V], sorted_V[keep_V])


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
