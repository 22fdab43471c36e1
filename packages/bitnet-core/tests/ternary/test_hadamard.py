"""The rotation against scipy-free definitions, and what it is for: outliers in 4 bits."""

import pytest
import torch

from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.hadamard import HadamardTransform, block_size


def sylvester(size: int) -> torch.Tensor:
    """H[i, j] = (-1)^popcount(i & j) / sqrt(size)."""
    signs = [[(-1.0) ** (i & j).bit_count() for j in range(size)] for i in range(size)]
    return torch.tensor(signs, dtype=torch.float64) / size**0.5


@pytest.mark.parametrize("width", [1, 6, 64, 96, 128, 576, 2048])
def test_is_sylvesters_matrix_block_by_block(width: int) -> None:
    block = block_size(width)
    x = torch.randn(2, 3, width, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    expected = (x.view(2, 3, -1, block) @ sylvester(block)).view(2, 3, width)
    transform = HadamardTransform(width).double()
    torch.testing.assert_close(transform(x), expected)
    torch.testing.assert_close(transform(transform(x)), x)  # its own inverse


def test_outliers_survive_four_bits_only_when_rotated() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 1024, generator=generator)
    x[:, ::100] *= 30
    quantise, rotate = FakeQuantActivation(4, low_bits=True), HadamardTransform(1024)

    def error(restored: torch.Tensor) -> float:
        return float((restored - x).norm() / x.norm())

    plain, rotated = error(quantise(x)), error(rotate(quantise(rotate(x))))
    assert rotated < 0.2 < plain
