"""Items to batches: padding on either side, or packing: several documents in one row, each seen as if it stood alone.
B rows, T positions.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor

from bitnet_core.errors import CoreError

KDBatch = dict[str, Tensor]
"""is_prompt: what cross-entropy leaves out, that is prompts and tokens that are not `in_ce` (docs/kd-shard.md).
input_ids, teacher_sample_id int64 [B, T]; attention_mask, is_struct_token, has_kd, is_prompt bool [B, T];
topk_ids int64 and topk_logprobs float32 [B, T, K]; other_logprob, sample_logprob float32 [B, T]. An item has no B.
Traces of another target than the top K have log_z, and sampled ones entropy, float32 [B, T] (docs/targets.md).
Packed rows have position_ids and document_ids int64 [B, T] besides (`pack_items`)."""


Side = Literal["right", "left"]

PADDING: dict[str, float] = {
    "topk_logprobs": -torch.inf,
    "is_prompt": True,
    "sample_logprob": torch.nan,
    "document_ids": -1,
}
"""What stands in padding; 0 where a name is not here (so P(other) = 1), and the pad token's id in the two of tokens."""


def check_side(side: str) -> None:
    """Raise CoreError for what is no padding side."""
    if side not in ("right", "left"):
        raise CoreError(f'padding side "{side}" is neither "right" nor "left"', "choose one of them")


def collate_fn(items: Sequence[KDBatch], pad_token_id: int = 0, side: Side = "right") -> KDBatch:
    """Pad items to the longest and stack them to a KDBatch; K is fixed.

    Padding: attention_mask and has_kd False, is_prompt True, ids `pad_token_id`, no candidates, P(other) = 1
    (other_logprob 0), sample_logprob NaN. side: on which side it goes. Raises CoreError for no items or unequal K.
    """
    if not items:
        raise CoreError("collate_fn got no items", "give it at least one document")
    check_side(side)
    widths = {item["topk_ids"].shape[1] for item in items}
    if len(widths) != 1:
        raise CoreError(
            f"items with {' and '.join(map(str, sorted(widths)))} candidates in one batch",
            "load them with one max_topk",
        )
    padding = PADDING | {"input_ids": pad_token_id, "teacher_sample_id": pad_token_id}
    longest = max(len(item["input_ids"]) for item in items)
    batch: KDBatch = {}
    for name, first in items[0].items():
        shape = (len(items), longest, *first.shape[1:])
        stacked = torch.full(shape, padding.get(name, 0), dtype=first.dtype)
        for row, item in zip(stacked, items, strict=True):
            length = len(item[name])
            (row[:length] if side == "right" else row[longest - length :]).copy_(item[name])
        batch[name] = stacked
    return batch


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
