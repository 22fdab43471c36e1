"""How many logits are made at once, and a token out of log-probabilities.

Shape suffixes: N positions, V vocabulary, K candidates.
"""

import torch
from torch import Tensor
from torch.nn import functional

CHUNK_BYTES_CPU = 24 * 2**20
"""Float32 logits computed at once on a CPU. The allocator (glibc) maps blocks over 32 MiB afresh each time and pays the
page faults: measured 2 to 4 times slower on softmax and top-k."""
CHUNK_BYTES_GPU = 512 * 2**20


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are made at once."""
    budget = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return max(1, budget // (4 * vocab_size))


def draw(logprobs_NV: Tensor, temperature: float, top_p: float, uniforms_N: Tensor) -> Tensor:
    """[N] token ids by inverting each row's distribution function at its own uniform number in [0, 1).

    So a row's token depends on its own numbers only, never on who shares its batch; and it costs a fraction of
    `torch.multinomial`, which draws V numbers a row.
    """
    if temperature == 0.0:
        return logprobs_NV.argmax(-1)
    probs_NV = (logprobs_NV / temperature).softmax(-1)
    order_NV = None
    if top_p < 1.0:  # nucleus sampling (Holtzman et al. 2020): the fewest tokens whose mass reaches top_p
        probs_NV, order_NV = probs_NV.sort(dim=-1, descending=True)
        mass_before_NV = probs_NV.cumsum(-1) - probs_NV
        probs_NV = probs_NV.masked_fill(mass_before_NV >= top_p, 0.0)
    drawn_N1 = invert(probs_NV, uniforms_N[:, None])
    return (drawn_N1 if order_NV is None else order_NV.gather(-1, drawn_N1))[:, 0]


BLOCK = 256
"""Tokens whose probabilities are added up before the distribution function is looked at."""


def invert(probs_NV: Tensor, uniforms_NR: Tensor) -> Tensor:
    """[N, R] where each row's distribution function reaches its numbers in [0, 1); never a token of probability 0.

    First the block in which it does, then the token in the block: a cumulative sum over the whole vocabulary takes
    several times as long.
    """
    wide = torch.float32 if probs_NV.device.type == "mps" else torch.float64  # MPS has no float64
    blocks_NGb = functional.pad(probs_NV, (0, -probs_NV.shape[-1] % BLOCK)).unflatten(-1, (-1, BLOCK))
    ends_NG = blocks_NGb.sum(-1, dtype=wide).cumsum(-1)
    target_NR = uniforms_NR.to(probs_NV.device, wide) * ends_NG[:, -1:]
    block_NR = _reaches(ends_NG, target_NR)
    before_NR = functional.pad(ends_NG, (1, 0)).gather(-1, block_NR)
    chosen_NRb = blocks_NGb.gather(1, block_NR[..., None].expand(-1, -1, BLOCK)).to(wide)
    inside_NR1 = _reaches(chosen_NRb.cumsum(-1), (target_NR - before_NR)[..., None])
    return block_NR * BLOCK + inside_NR1[..., 0]


def _reaches(ends: Tensor, target: Tensor) -> Tensor:
    """The first index along the last axis whose cumulative sum is above the target."""
    # right=True steps over what has no mass; a sum that rounds up to the total must not leave the support.
    last = torch.searchsorted(ends, ends[..., -1:].contiguous())
    return torch.minimum(torch.searchsorted(ends, target, right=True), last)
