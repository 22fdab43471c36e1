"""Several documents in one row, each seen as if it stood alone. B rows, T positions."""

from collections.abc import Sequence

import torch
from torch import Tensor

from bitnet_core.errors import CoreError
from bitnet_core.traces.collate import KDBatch


def pack_items(items: Sequence[KDBatch], length: int) -> list[KDBatch]:
    """Put several documents into rows of at most `length` positions: the longest first, each into the first with room.

    A row has ``position_ids`` (from 0 in each document) and ``document_ids`` (0, 1, ... in the row; -1 is padding).
    Give the model ``attention_mask=packed_attention_mask(document_ids)`` and ``position_ids``: each document is then
    seen as if it stood alone. No loss crosses a border, since a document's first position is prompt and has no KD.
    Raises CoreError for an item longer than `length`.
    """
    rows: list[list[KDBatch]] = []
    room: list[int] = []
    for item in sorted(items, key=lambda item: -len(item["input_ids"])):
        size = len(item["input_ids"])
        if size > length:
            raise CoreError(
                f"a document of {size} positions doesn't fit into rows of {length}",
                f"set max_seq_len to at most {length}",
            )
        row = next((number for number, left in enumerate(room) if left >= size), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(length)
        rows[row].append(item)
        room[row] -= size
    return [_packed(row) for row in rows]


def _packed(items: Sequence[KDBatch]) -> KDBatch:
    sizes = [len(item["input_ids"]) for item in items]
    row = {name: torch.cat([item[name] for item in items]) for name in items[0]}
    row["position_ids"] = torch.cat([torch.arange(size) for size in sizes])
    row["document_ids"] = torch.repeat_interleave(torch.arange(len(items)), torch.tensor(sizes))
    return row


def packed_attention_mask(document_ids_BT: Tensor) -> Tensor:
    """bool [B, 1, T, T], True where a position (second to last axis) sees another: causal, within its own document.

    Padding sees the padding before it, so that no row of attention is empty.
    """
    length = document_ids_BT.shape[1]
    causal_TT = torch.ones(length, length, dtype=torch.bool, device=document_ids_BT.device).tril()
    return ((document_ids_BT[:, :, None] == document_ids_BT[:, None, :]) & causal_TT)[:, None]
