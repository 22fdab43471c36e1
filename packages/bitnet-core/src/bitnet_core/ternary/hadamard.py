"""The online Hadamard transform: a rotation that spreads outliers, so that 4 bits do for long-tailed inputs.

As before the output projections in BitNet v2 (https://arxiv.org/abs/2504.18415) and QuaRot
(https://arxiv.org/abs/2404.00456). A width W = m * 2^k is rotated in blocks of 2^k.
"""

import torch
from torch import Tensor, nn

_LARGEST_FACTOR = 64
"""A block's matrix is a Kronecker product of matrices of at most this width: log-many passes, each a matrix product."""


def block_size(width: int) -> int:
    """The largest power of two that divides `width`."""
    return width & -width


def hadamard_matrix(size: int) -> Tensor:
    """Sylvester's matrix of a power of two, divided by its root: symmetric and its own inverse. float32."""
    matrix = torch.ones(1, 1)
    while matrix.shape[0] < size:
        matrix = torch.cat([torch.cat([matrix, matrix], 1), torch.cat([matrix, -matrix], 1)])
    return matrix / size**0.5


class HadamardTransform(nn.Module):
    """``x @ H`` over the last dimension, H block-diagonal, orthogonal, symmetric; in x's dtype."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.factors = _factors(block_size(width))
        for factor in set(self.factors):
            self.register_buffer(f"matrix_{factor}", torch.empty(factor, factor), persistent=False)
        self.fill()

    @torch.no_grad()
    def fill(self) -> None:
        """Write the matrices; to be called again where a model was made without memory (the meta device)."""
        for factor in set(self.factors):
            matrix = self.get_buffer(f"matrix_{factor}")
            if not matrix.is_meta:
                matrix.copy_(hadamard_matrix(factor))

    def forward(self, x_NW: Tensor) -> Tensor:
        shape = x_NW.shape
        for factor in self.factors:
            # Take the last `factor` of the block, rotate it, and turn the block so that the next factor comes last.
            matrix = self.get_buffer(f"matrix_{factor}").to(x_NW.dtype)
            blocks = x_NW.reshape(-1, block_size(self.width) // factor, factor) @ matrix
            x_NW = blocks.transpose(1, 2)
        return x_NW.reshape(shape)

    def extra_repr(self) -> str:
        return f"width={self.width}, block={block_size(self.width)}"


def _factors(size: int) -> tuple[int, ...]:
    """`size` as a product of powers of two up to `_LARGEST_FACTOR`; turning through all of them is the identity."""
    factors = []
    while size > 1:
        factors.append(min(size, _LARGEST_FACTOR))
        size //= factors[-1]
    return tuple(factors)
