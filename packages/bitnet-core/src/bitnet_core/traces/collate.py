"""Items to batches: padding on either side, and packing of several documents in a row. B rows, T positions."""

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
