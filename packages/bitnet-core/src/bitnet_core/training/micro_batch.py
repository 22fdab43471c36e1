"""What the student reads in one micro-batch: a document a row, or several. B rows, T positions, D hidden width."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet_core.config.train import TrainConfig
from bitnet_core.losses.rows import with_target_places
from bitnet_core.traces.collate import KDBatch, collate_fn
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.packing import pack_items, packed_attention_mask


def training_batch(
    traces: KDTraceDataset, documents: Sequence[int] | NDArray[np.integer], packed_length: int | None
) -> KDBatch:
    """These documents, padded; `packed_length`: several to a row of at most so many positions (see `pack_items`).

    Both hold the same positions, so losses, gradients and counts of tokens are the same; packed rows have less padding.
    """
    if packed_length is None:
        return traces.batch(documents)
    return collate_fn(pack_items([traces[int(document)] for document in documents], packed_length))


def batch_of(traces: KDTraceDataset, documents: NDArray[np.integer], train: TrainConfig) -> dict[str, Tensor]:
    """This process's documents, with the places of their targets.

    Where a batch has none left for this process, one without any target keeps it in step.
    """
    width = train.max_seq_len if train.packing else None
    if len(documents):
        return with_target_places(training_batch(traces, documents, width))
    idle = training_batch(traces, np.zeros(1, dtype=np.int64), width)
    nothing = torch.zeros_like(idle["has_kd"])
    return with_target_places(idle | {"has_kd": nothing, "is_prompt": ~nothing})


def hidden_states(decoder: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The decoder's output [B, T, D]. In packed rows positions and attention begin anew with each document."""
    if "document_ids" not in batch:
        output = decoder(input_ids=batch["input_ids"], attention_mask=batch["attention_mask"], use_cache=False)
    else:
        mask_B1TT = packed_attention_mask(batch["document_ids"])
        output = decoder(
            input_ids=batch["input_ids"], attention_mask=mask_B1TT, position_ids=batch["position_ids"], use_cache=False
        )
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD
