"""What is kept of each position's distribution: the top K, and what a target adds to it or puts in its place.

Shape suffixes: N positions, V vocabulary, K candidates, R draws, G blocks of b tokens. Log-probabilities: float32 nats,
before temperature.
"""

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from bitnet_providers.contract import SampledTarget, Target, TemperedTarget


@attrs.frozen(eq=False)
class Candidates:
    """Of N positions, on the model's device."""

    ids_NK: Tensor
    """int64; 0 in unused slots"""
    logprobs_NK: Tensor
    """Descending; -inf in unused slots"""
    log_z_N: Tensor
    """NaN where no target was asked for; see `Completion.log_z`"""
    entropy_N: Tensor
    """NaN but for a sampled target"""


def width(top_k: int, target: Target | None) -> int:
    """K: slots that each position gets."""
    return target.draws if isinstance(target, SampledTarget) else top_k


def uniform_numbers(target: Target | None, positions: int, random: np.random.Generator) -> NDArray[np.float64]:
    """[positions, R] numbers in [0, 1) that decide the draws; R is 0 where nothing is drawn.

    Drawn position after position, so that a row's numbers are the same however its positions are cut into calls.
    """
    return random.random((positions, target.draws if isinstance(target, SampledTarget) else 0))


def draws_generator(seed: int) -> np.random.Generator:
    """Of the draws of one request: another stream than that of its sampled tokens, so that neither moves the other."""
    return np.random.default_rng([seed, 1])


def candidates(logprobs_NV: Tensor, top_k: int, target: Target | None, uniforms_NR: Tensor) -> Candidates:
    """The candidates of each position, and what belongs to the target."""
    unknown_N = logprobs_NV.new_full(logprobs_NV.shape[:1], torch.nan)
    if isinstance(target, SampledTarget):
        ids_NR, log_weights_NR = stratified_draws(logprobs_NV, target.draw_temperature, uniforms_NR)
        log_z_N1 = log_weights_NR.logsumexp(-1, keepdim=True)
        entropy_N = torch.special.entr(logprobs_NV.exp()).sum(-1)
        return Candidates(ids_NR, log_weights_NR - log_z_N1, log_z_N1[:, 0], entropy_N)
    logprobs_NK, ids_NK = logprobs_NV.topk(min(top_k, logprobs_NV.shape[-1]), dim=-1)
    log_z_N = (logprobs_NV / target.tau).logsumexp(-1) if isinstance(target, TemperedTarget) else unknown_N
    return Candidates(ids_NK, logprobs_NK, log_z_N, unknown_N)


def stratified_draws(logprobs_NV: Tensor, temperature: float, uniforms_NR: Tensor) -> tuple[Tensor, Tensor]:
    """(ids_NR, log_weights_NR): R draws a row from q = p^t / Σ p^t, and ŵ = n/R · p/q of each distinct token drawn.

    E[ŵ_v] = p_v for every token (importance sampling without self-normalisation, which would be biased at t ≠ 1);
    "Sparse Logit Sampling", arXiv:2503.16870. There the draws are independent. Here draw r inverts the distribution
    function at (r + u_r)/R: each is uniform within its own R-th of the mass, which leaves every expectation as it is,
    and the variance of whatever is linear in ŵ (the gradient) at most that of independent draws.
    Descending by weight; unused slots hold id 0 and -inf.
    """
    draws = uniforms_NR.shape[-1]
    scaled_NV = temperature * logprobs_NV
    log_total_N1 = scaled_NV.logsumexp(-1, keepdim=True)
    strata_R = torch.arange(draws, dtype=uniforms_NR.dtype, device=uniforms_NR.device)
    drawn_NR = invert((scaled_NV - log_total_N1).exp(), (strata_R + uniforms_NR) / draws)  # ascending: equals meet
    starts_NR = torch.ones_like(drawn_NR, dtype=torch.bool)
    starts_NR[:, 1:] = drawn_NR[:, 1:] != drawn_NR[:, :-1]
    slot_NR = starts_NR.cumsum(-1) - 1
    ids_NR = torch.zeros_like(drawn_NR).scatter_(-1, slot_NR, drawn_NR)
    counts_NR = torch.zeros_like(logprobs_NV[:, :1]).repeat(1, draws)
    counts_NR.scatter_add_(-1, slot_NR, torch.ones_like(counts_NR))
    logprobs_NR = logprobs_NV.gather(-1, ids_NR)
    # A float32 softmax over a large vocabulary sums to 1 within 1e-5 only; so p is normalised as q is.
    log_mass_N1 = logprobs_NV.logsumexp(-1, keepdim=True)
    log_ratio_NR = (1.0 - temperature) * logprobs_NR + (log_total_N1 - log_mass_N1)
    used_NR = counts_NR > 0
    log_weights_NR = torch.where(used_NR, (counts_NR / draws).log() + log_ratio_NR, -torch.inf)
    log_weights_NR, order_NR = log_weights_NR.sort(dim=-1, descending=True, stable=True)
    return torch.where(used_NR, ids_NR, 0).gather(-1, order_NR), log_weights_NR


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
