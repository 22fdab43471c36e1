"""Scoring given tokens by teacher forcing: one forward pass, the head only where it is asked for.

Shape suffixes: B rows, T positions, N scored positions of all rows, D hidden width, V vocabulary, K candidates.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bitnet_providers.contract import Target
from bitnet_providers.teachers.local.batching import BatchAbandonedError
from bitnet_providers.teachers.local.candidates import candidates, draws_generator, uniform_numbers, width

FORWARD_TOKENS_CPU = 2048
"""Tokens of one forward pass on a CPU, padding counted. Measured on SmolLM2-135M in bf16, one thread, rows of 512: 869
tokens/s at 2048, 774 at 8192, 685 at 16384, where activations no longer fit the caches."""
FORWARD_TOKENS_GPU = 32768
CHUNK_BYTES_CPU = 24 * 2**20
"""Float32 logits computed at once on a CPU. The allocator (glibc) maps blocks over 32 MiB afresh each time and pays the
page faults: measured 2 to 4 times slower on softmax and top-k."""
CHUNK_BYTES_GPU = 512 * 2**20


@attrs.frozen
class ScoreRow:
    """Tokens, of which those from `start` on are scored; start >= 1, as the first token has no distribution."""

    token_ids: Sequence[int]
    start: int
    seed: int = 0
    """Of the draws, where the target has any."""


@attrs.frozen(eq=False)
class Scored:
    """The scored positions of one row: n of them."""

    token_logprobs: NDArray[np.float32]
    """[n] nats"""
    candidate_ids: NDArray[np.int32]
    """[n, K]"""
    candidate_logprobs: NDArray[np.float32]
    """[n, K]; -inf in unused slots"""
    log_z: NDArray[np.float32]
    """[n]; this and the next as in `candidates.Candidates`"""
    entropy: NDArray[np.float32]
    """[n]"""


@torch.inference_mode()
def score(
    model: Any,
    rows: Sequence[ScoreRow],
    top_k: int,
    target: Target | None = None,
    *,
    plain_head: bool,
    abandoned: Callable[[], bool],
) -> list[Scored]:
    """Score a batch. `plain_head`: see `has_plain_head`. Raises BatchAbandonedError when `abandoned()`."""
    targets_N = torch.tensor([token for row in rows for token in row.token_ids[row.start :]], dtype=torch.long)
    uniforms_NR = torch.from_numpy(
        np.concatenate(
            [uniform_numbers(target, len(row.token_ids) - row.start, draws_generator(row.seed)) for row in rows]
        )
    )
    columns: list[tuple[Tensor, ...]] = []
    done = 0
    for logits_NV in _logits_before_targets(model, rows, plain_head):
        if abandoned():
            raise BatchAbandonedError
        here = slice(done, done + len(logits_NV))
        logprobs_NV = logits_NV.float().log_softmax(-1)
        found = candidates(logprobs_NV, top_k, target, uniforms_NR[here])
        said_N = logprobs_NV.gather(-1, targets_N[here, None].to(logits_NV.device))[:, 0]
        kept = (said_N, found.ids_NK.to(torch.int32), found.logprobs_NK, found.log_z_N, found.entropy_N)
        columns.append(tuple(each.cpu() for each in kept))
        done += len(logits_NV)
    if not columns:  # nothing but texts of a single token
        nothing, no_ids = np.zeros(0, np.float32), np.zeros((0, width(top_k, target)), np.int32)
        return [Scored(nothing, no_ids, no_ids.astype(np.float32), nothing, nothing)] * len(rows)
    ends = np.cumsum([len(row.token_ids) - row.start for row in rows])[:-1]
    split = [np.split(torch.cat(parts).numpy(), ends) for parts in zip(*columns, strict=True)]
    return [Scored(*map(np.copy, parts)) for parts in zip(*split, strict=True)]


def _logits_before_targets(model: Any, rows: Sequence[ScoreRow], plain_head: bool) -> Iterator[Tensor]:
    """Chunks of [n, V] logits, row after row, each at the position before a scored token."""
    if not plain_head:
        for row in rows:
            ids_1T = torch.tensor([list(row.token_ids)], device=model.device)
            logits_TV = model(input_ids=ids_1T, use_cache=False).logits[0, row.start - 1 : -1]
            yield from logits_TV.split(chunk_rows(logits_TV.shape[-1], model.device))
        return
    head = model.get_output_embeddings()
    for group in _forward_groups(rows, FORWARD_TOKENS_CPU if model.device.type == "cpu" else FORWARD_TOKENS_GPU):
        longest = max(len(row.token_ids) for row in group)
        # Padded on the right, and causal: no real position ever looks at padding, so no mask is needed.
        ids_BT = torch.tensor(
            [[*row.token_ids, *[0] * (longest - len(row.token_ids))] for row in group], device=model.device
        )
        hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
        hidden_ND = torch.cat([hidden_BTD[b, row.start - 1 : len(row.token_ids) - 1] for b, row in enumerate(group)])
        for hidden_nD in hidden_ND.split(chunk_rows(head.weight.shape[0], model.device)):
            if len(hidden_nD):
                yield head(hidden_nD)


def chunk_rows(vocab_size: int, device: torch.device) -> int:
    """Positions whose logits are made at once."""
    budget = CHUNK_BYTES_CPU if device.type == "cpu" else CHUNK_BYTES_GPU
    return max(1, budget // (4 * vocab_size))


def _forward_groups(rows: Sequence[ScoreRow], tokens: int) -> Iterator[list[ScoreRow]]:
    """Neighbouring rows whose padded forward pass has at most `tokens` tokens; a longer row goes alone."""
    group: list[ScoreRow] = []
    longest = 0
    for row in rows:
        longest = max(longest, len(row.token_ids))
        if group and longest * (len(group) + 1) > tokens:
            yield group
            group, longest = [], len(row.token_ids)
        group.append(row)
    if group:
        yield group


@torch.inference_mode()
def has_plain_head(model: Any) -> bool:
    """Whether logits are just the output embedding of the last hidden state (Gemma 2 caps, Granite scales them)."""
    ids_BT = torch.tensor([[0, 1, 2]], device=model.device)
    head = model.get_output_embeddings()
    if head is None or model.base_model is model:
        return False
    hidden_BTD = model.base_model(input_ids=ids_BT, use_cache=False).last_hidden_state
    expected_BTV = model(input_ids=ids_BT, use_cache=False).logits.float()
    scale = expected_BTV.abs().max().clamp(min=1.0)
    return bool((head(hidden_BTD).float() - expected_BTV).abs().max() <= 1e-3 * scale)
