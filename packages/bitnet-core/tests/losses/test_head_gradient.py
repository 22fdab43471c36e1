"""The gradient of a 16-bit head is a float32 sum, bit for bit, however it is kept."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.losses import head_gradient
from bitnet_core.losses.head_gradient import HalvedSum, WholeSum, head_sum_like

torch.set_num_threads(1)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**31), chunks=st.integers(0, 6), spread=st.sampled_from([1e-30, 1.0, 1e30]))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_halves_are_the_float32_sum(dtype: torch.dtype, seed: int, chunks: int, spread: float) -> None:
    generator = torch.Generator().manual_seed(seed)
    head = torch.zeros(11, 3, dtype=dtype)
    scale = torch.tensor(0.37)
    halved = head_sum_like(head, dtype)
    assert isinstance(halved, HalvedSum)
    total = torch.zeros(11, 3)
    for _ in range(chunks):
        size = spread * 10.0 ** torch.randint(-3, 3, (5, 11), generator=generator)
        grad = (size * torch.randn(5, 11, generator=generator)).to(dtype)
        hidden = torch.randn(5, 3, generator=generator).to(dtype)
        halved.add_product(grad, hidden)
        total += torch.mm(grad.T, hidden)
    expected = (total * scale).to(dtype)
    assert torch.equal(halved.finish(scale).view(torch.int16), expected.view(torch.int16)) or (
        torch.equal(expected.isnan(), halved.finish(torch.tensor(1.0)).isnan()) and expected.isnan().any()
    )


def test_tiles_cover_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(head_gradient, "_TILE_ROWS", 4)
    grad, hidden = torch.randn(5, 11).bfloat16(), torch.randn(5, 3).bfloat16()
    summed = head_sum_like(torch.zeros(11, 3).bfloat16(), torch.bfloat16)
    summed.add_product(grad, hidden)
    summed.add_product(grad, hidden)
    assert torch.equal(summed.finish(torch.tensor(0.5)), torch.mm(grad.T, hidden))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_wide_heads_need_no_halves(dtype: torch.dtype) -> None:
    grad, hidden = torch.randn(5, 11, dtype=dtype), torch.randn(5, 3, dtype=dtype)
    summed = head_sum_like(torch.zeros(11, 3, dtype=dtype), dtype)
    assert isinstance(summed, WholeSum)
    summed.add_product(grad, hidden)
    torch.testing.assert_close(summed.finish(torch.tensor(2.0, dtype=dtype)), 2 * grad.T @ hidden)


def test_a_bf16_sum_would_lose_what_the_halves_keep() -> None:
    one, small = torch.ones(1, 1).bfloat16(), torch.full((1, 1), 2.0**-10).bfloat16()
    summed = head_sum_like(torch.zeros(1, 1).bfloat16(), torch.bfloat16)
    summed.add_product(one, one)
    for _ in range(16):
        summed.add_product(small, one)
    assert float(one + small) == 1.0
    assert float(summed.finish(torch.tensor(1.0))) == 1 + 2.0**-6
