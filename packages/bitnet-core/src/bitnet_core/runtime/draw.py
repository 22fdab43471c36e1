"""Drawing a token from logits. V vocabulary."""

from collections.abc import Callable

import torch
from torch import Tensor

from bitnet_core.runtime.contract import Sampling


def drawer(sampling: Sampling, device: torch.device) -> Callable[[Tensor], int]:
    """A function from logits [V] to a token id; seeded here, so that a new one draws the same again.

    Greedy takes the first of equals. The draw itself is on the CPU: one seed gives one answer on every device that
    gives the same logits.
    """
    if sampling.temperature == 0:
        return lambda logits_V: int(logits_V.argmax())
    generator = torch.Generator().manual_seed(sampling.seed)

    def draw(logits_V: Tensor) -> int:
        p_V = torch.softmax(logits_V.double().cpu() / sampling.temperature, -1)
        return int(torch.multinomial(nucleus(p_V, sampling.top_p), 1, generator=generator))

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
