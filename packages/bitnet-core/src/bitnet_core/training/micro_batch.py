"""What the student reads in one micro-batch: a document a row, or several. B rows, T positions, D hidden width."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bitnet_core.config.train import TrainConfig
from bitnet_core.losses.masks_and_rows import with_target_places
from bitnet_core.model.modeling import BitNetKDEModel, padded_causal_mask, positions_of
from bitnet_core.traces.collate import KDBatch, collate_fn, pack_items, packed_attention_mask
from bitnet_core.traces.dataset import KDTraceDataset


def training_batch(
    traces: KDTraceDataset, documents: Sequence[int] | NDArray[np.integer], packed_length: int | None
) -> KDBatch:
    """These documents, padded; `packed_length`: several to a row of at most so many positions (see `pack_items`).

    Both hold the same positions, so losses, gradients and counts of tokens are the same; packed rows have less padding.
    """
    if packed_length is None:
        return traces.batch(documents)
    return collate_fn(pack_items([traces[int(document)] for document in documents], packed_length))


UNPADDED = "unpadded"
"""A key of batches where all positions are tokens. That it is there says so: a look at a mask that is on a GPU already
would make the host wait."""


def batch_of(traces: KDTraceDataset, documents: NDArray[np.integer], train: TrainConfig) -> dict[str, Tensor]:
    """This process's documents, with what is seen of them before they go to a GPU: the places of their targets, and
    whether they are `UNPADDED`.

    Where a batch has none left for this process, one without any target keeps it in step.
    """
    width = train.max_seq_len if train.packing else None
    batch = training_batch(traces, documents if len(documents) else np.zeros(1, dtype=np.int64), width)
    if not len(documents):
        nothing = torch.zeros_like(batch["has_kd"])
        batch = batch | {"has_kd": nothing, "is_prompt": ~nothing}
    return with_target_places(batch) | ({UNPADDED: torch.ones(1)} if batch["attention_mask"].all() else {})


def hidden_states(decoder: nn.Module, batch: Mapping[str, Tensor]) -> Tensor:
    """The decoder's output [B, T, D]. In packed rows positions and attention begin anew with each document."""
    mask_BT = batch["attention_mask"]
    if "document_ids" in batch:
        seen = {"attention_mask": packed_attention_mask(batch["document_ids"]), "position_ids": batch["position_ids"]}
    elif not isinstance(decoder, BitNetKDEModel):
        seen = {"attention_mask": mask_BT}  # transformers' models ask it whether all of it is true
    else:
        seen = {} if UNPADDED in batch else {
            "attention_mask": padded_causal_mask(decoder, mask_BT),
            "position_ids": positions_of(mask_BT, mask_BT.shape[1], 0, mask_BT.device),
        }  # fmt: skip
    output = decoder(input_ids=batch["input_ids"], use_cache=False, **seen)
    hidden_BTD: Tensor = output.last_hidden_state
    return hidden_BTD
