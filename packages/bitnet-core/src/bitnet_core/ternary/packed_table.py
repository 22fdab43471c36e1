"""Embedding and head as they are deployed: 8 bits a weight and a float16 scale for each 32 along the width.

That is llama.cpp's Q8_0, so one student lies in every export. Shapes: V vocabulary, D width, B blocks, N tokens.
"""

import torch
from torch import Tensor, nn

BLOCK = 32


def pack_table(weight_VD: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [V, D], int8 within ±127, and the scales [V, B], float32 values of float16: max |block| / 127.

    A scale beyond float16 becomes infinite: the caller's to refuse.
    """
    rows, width = weight_VD.shape
    padded_VB32 = nn.functional.pad(weight_VD.detach().float(), (0, -width % BLOCK)).view(rows, -1, BLOCK)
    exact_VB = padded_VB32.abs().amax(-1) / 127
    scale_VB = exact_VB.half()
    # Float16 has few places below its smallest normal number. Rounded down, the largest code is 127 there too, and so
    # whoever packs the unpacked table again gets the same codes.
    above = (scale_VB.float() > exact_VB) & (scale_VB < torch.finfo(torch.float16).smallest_normal)
    scale_VB = torch.where(above, (scale_VB.view(torch.int16) - 1).view(torch.float16), scale_VB).float()
    codes_VB32 = (padded_VB32 / scale_VB.clamp(min=1e-30)[..., None]).round().clamp(-127, 127)
    codes_VB32 = codes_VB32 * (scale_VB > 0)[..., None]  # so small that float16 calls it zero
    return codes_VB32.nan_to_num().to(torch.int8).view(rows, -1)[:, :width].contiguous(), scale_VB


def unpack_table(codes_ND: Tensor, scale_NB: Tensor) -> Tensor:
    """Some rows of the table, float32 [N, D]."""
    return codes_ND * scale_NB.float().repeat_interleave(BLOCK, dim=-1)[..., : codes_ND.shape[-1]]


class PackedTable(nn.Module):
    """A table in 8 bits: ``codes`` [V, D] int8, ``block_scale`` [V, B] float32 that float16 holds exactly."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.codes: Tensor
        self.block_scale: Tensor
        self.register_buffer("codes", torch.zeros(vocabulary, width, dtype=torch.int8))
        self.register_buffer("block_scale", torch.ones(vocabulary, -(-width // BLOCK)))

    @property
    def weight(self) -> Tensor:
        """[V, D] float32, made anew at each call."""
        return unpack_table(self.codes, self.block_scale)


class PackedEmbedding(PackedTable):
    """Computes what `nn.Embedding` does."""

    def forward(self, ids: Tensor) -> Tensor:
        return unpack_table(self.codes[ids], self.block_scale[ids])


class PackedHead(PackedTable):
    """Computes what a language model's `nn.Linear` does."""

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return nn.functional.linear(hidden_ND, self.weight.to(hidden_ND.dtype))


class TiedHead(nn.Module):
    """A head that holds nothing: its table is the embedding's."""

    def __init__(self, embedding: PackedEmbedding) -> None:
        super().__init__()
        self._embedding = (embedding,)  # in a tuple, so that it is no part of this module

    @property
    def weight(self) -> Tensor:
        """[V, D] float32, made anew at each call."""
        return self._embedding[0].weight

    def forward(self, hidden_ND: Tensor) -> Tensor:
        return nn.functional.linear(hidden_ND, self.weight.to(hidden_ND.dtype))
