"""Which documents a start is calibrated on, in batches of about the same length.

Shapes: N tokens of all documents, one after the other, without padding; B documents, T positions, I any width.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import attrs
import numpy as np
import torch
from torch import Tensor
from transformers.masking_utils import create_causal_mask
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.kv_cache import named
from bitnet_core.model.modeling import positions_of
from bitnet_core.traces.dataset import KDTraceDataset

BATCH_POSITIONS = 4096
"""Positions of a batch, padding included, at most; a longer document is a batch of its own."""
_OWN_STREAM = (1,)
"""Keeps this choice apart from the training loop's, which draws from the same seed."""


@attrs.frozen(eq=False)
class Batch:
    """Some documents of about the same length."""

    rows: slice
    """Where their tokens lie among the N."""
    ids: tuple[Tensor, ...]
    """Token ids, int64, one tensor a document."""

    def is_token(self, device: torch.device) -> Tensor:
        """[B, T], bool"""
        lengths_B = torch.tensor([len(ids) for ids in self.ids], device=device)
        return torch.arange(int(lengths_B.max()), device=device) < lengths_B[:, None]

    def padded_ids(self, device: torch.device) -> Tensor:
        """[B, T], int64, zeros at padding."""
        return torch.nn.utils.rnn.pad_sequence(list(self.ids), batch_first=True).to(device)

    def padded(self, x_NI: Tensor) -> Tensor:
        """The batch's rows as [B, T, I], zeros at padding."""
        is_token_BT = self.is_token(x_NI.device)
        x_BTI = x_NI.new_zeros(*is_token_BT.shape, x_NI.shape[-1])
        x_BTI[is_token_BT] = x_NI
        return x_BTI

    def unpadded(self, x_BTI: Tensor) -> Tensor:
        """The way back."""
        return x_BTI[self.is_token(x_BTI.device)]

    def attention(self, config: BitNetKDEConfig, device: torch.device) -> dict[str, Any]:
        """Mask and rotation of `padded` tokens, as `BitNetKDEAttention` takes them."""
        is_token_BT = self.is_token(device)
        positions_BT = positions_of(is_token_BT, is_token_BT.shape[1], 0, device)
        like_BTD = torch.zeros((), device=device).expand(*is_token_BT.shape, config.hidden_size)
        mask = create_causal_mask(
            config=config,
            inputs_embeds=like_BTD,
            attention_mask=is_token_BT,
            position_ids=positions_BT,
            **named(None),
        )
        rotary = LlamaRotaryEmbedding(config).to(device)
        return {"attention_mask": mask, "position_embeddings": rotary(like_BTD, positions_BT)}


def choose_batches(traces: KDTraceDataset, tokens: int, seed: int) -> list[Batch]:
    """Documents with at least so many tokens in all (all documents, where there are fewer), the longest first."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=_OWN_STREAM))
    order = rng.permutation(len(traces))
    count = int(np.searchsorted(np.cumsum(traces.lengths[order]), tokens)) + 1
    # Read in the order of the files, so that each part of them is decoded once.
    documents = [traces[index]["input_ids"] for index in np.sort(order[:count]).tolist()]
    return list(batches_of(sorted(documents, key=len, reverse=True)))


def batches_of(documents: Sequence[Tensor]) -> Iterator[Batch]:
    """Documents' token ids, the longest first, in batches."""
    row = first = 0
    while first < len(documents):
        chosen = tuple(documents[first : first + max(1, BATCH_POSITIONS // len(documents[first]))])
        last_row = row + sum(map(len, chosen))
        yield Batch(slice(row, last_row), chosen)
        first, row = first + len(chosen), last_row
