"""The gradient of the head, summed over chunks of tokens in float32. C positions, V vocabulary, D hidden width.

The sum of a 16-bit head's gradient would be twice as large as the gradient itself, and stand beside it at the end. On
the CPU it is kept in two halves instead (`HalvedSum`), one of which lies in the gradient's own memory: bit for bit the
same sum, for half of the extra memory and a few passes over a tile in the cache. (On a GPU such passes go through the
device's memory, so there the float32 sum is kept whole.)
"""

from typing import Protocol

import attrs
import torch
from torch import Tensor

_TILE_ROWS = 4096
"""Rows of the head whose product is computed at a time where it can't be summed by the product itself, on the CPU."""


class HeadSum(Protocol):
    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        """Add grad_CVᵀ · hidden_CD."""

    def finish(self, scale: Tensor) -> Tensor:
        """The sum times `scale`, in the head's dtype. Nothing can be added any more."""


def head_sum_like(head_VD: Tensor, product_dtype: torch.dtype) -> HeadSum:
    """Zero, for products in `product_dtype`."""
    wide = torch.promote_types(product_dtype, torch.float32)
    rows, width = head_VD.shape
    on_cpu = head_VD.device.type == "cpu"
    buffer_rows = min(_TILE_ROWS, rows) if on_cpu else rows
    buffer = head_VD.new_empty(0 if product_dtype == wide else buffer_rows, width, dtype=product_dtype)
    if on_cpu and head_VD.dtype.itemsize == 2 and product_dtype == head_VD.dtype:
        lower = torch.zeros_like(head_VD, dtype=torch.int16)
        return HalvedSum(torch.zeros_like(head_VD), lower, buffer.to(wide), buffer)
    return WholeSum(torch.zeros_like(head_VD, dtype=wide), head_VD.dtype, buffer)


@attrs.frozen(eq=False)
class WholeSum:
    """One tensor in float32, or float64 where products are."""

    total_VD: Tensor
    dtype: torch.dtype
    buffer: Tensor

    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        if self.total_VD.dtype == grad_CV.dtype:
            self.total_VD.addmm_(grad_CV.T, hidden_CD)
            return
        for first in range(0, len(self.total_VD), len(self.buffer)):
            last = min(first + len(self.buffer), len(self.total_VD))
            self.total_VD[first:last] += torch.mm(grad_CV[:, first:last].T, hidden_CD, out=self.buffer[: last - first])

    def finish(self, scale: Tensor) -> Tensor:
        return self.total_VD.mul_(scale).to(self.dtype)


@attrs.frozen(eq=False)
class HalvedSum:
    """A float32 sum as an upper and a lower half of 16 bits each.

    With s the sum's 32 bits as an integer: lower = s mod 2¹⁶, taken from −2¹⁵ to 2¹⁵ − 1, and upper = (s − lower)/2¹⁶,
    which are the bits of a bfloat16 number. So the sum comes back exactly, by a conversion and an integer addition.
    """

    gradient_VD: Tensor
    """In the head's dtype; holds the upper halves until `finish`."""
    lower_VD: Tensor
    tile: Tensor
    """float32"""
    buffer: Tensor

    def add_product(self, grad_CV: Tensor, hidden_CD: Tensor) -> None:
        for first in range(0, len(self.gradient_VD), len(self.buffer)):
            rows = slice(first, min(first + len(self.buffer), len(self.gradient_VD)))
            product = torch.mm(grad_CV[:, rows].T, hidden_CD, out=self.buffer[: rows.stop - first])
            total, bits = self._joined(rows)
            total.add_(product)
            self.lower_VD[rows].copy_(bits)  # an integer's conversion keeps the low bits
            bits.sub_(self.lower_VD[rows])
            self._upper(rows).copy_(total)

    def finish(self, scale: Tensor) -> Tensor:
        for first in range(0, len(self.gradient_VD), len(self.buffer)):
            rows = slice(first, min(first + len(self.buffer), len(self.gradient_VD)))
            total, _ = self._joined(rows)
            self.gradient_VD[rows].copy_(total.mul_(scale))
        return self.gradient_VD

    def _upper(self, rows: slice) -> Tensor:
        return self.gradient_VD[rows].view(torch.bfloat16)

    def _joined(self, rows: slice) -> tuple[Tensor, Tensor]:
        """The sum of these rows, in the tile, and its bits."""
        total = self.tile[: rows.stop - rows.start].copy_(self._upper(rows))
        bits = total.view(torch.int32)
        bits.add_(self.lower_VD[rows])
        return total, bits
