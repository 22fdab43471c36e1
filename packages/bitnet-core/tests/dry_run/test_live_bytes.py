"""Counting live tensors."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bitnet_core.dry_run.live_bytes import LiveBytes


def run(meter: LiveBytes) -> None:
    a = torch.ones(1000)  # 4000 bytes
    b = a.view(10, 100)  # the same storage
    c = (b * 2).to(torch.float16)  # 4000 for a moment, 2000 stay
    a += 1  # in place
    del a, b
    assert meter.live == 2000
    meter.reset()
    assert meter.peak() == 2000
    d = torch.empty(500, dtype=torch.float64)
    assert meter.peak() == 6000
    del c, d
    assert meter.live == 0


def test_real_tensors() -> None:
    with LiveBytes() as meter:
        run(meter)


def test_fake_tensors() -> None:
    with FakeTensorMode(), LiveBytes(fake=True) as meter:
        run(meter)


def test_temporaries_are_in_the_peak() -> None:
    with LiveBytes() as meter:
        x = torch.zeros(1000)
        _ = x + x * 2 + 1
        assert meter.peak() == 12000  # x, x * 2 and the first sum; then the two sums and x


def test_what_autograd_keeps_is_alive() -> None:
    with LiveBytes() as meter:
        x = torch.zeros(1000, requires_grad=True)
        y = x.exp().sum()  # exp keeps its result
        assert meter.live == 8004
        y.backward()
        assert meter.live == 8004  # the gradient in its place


@pytest.mark.parametrize("shape", [(6,), (2, 3)])
def test_every_fake_mask_is_true(shape: tuple[int, ...]) -> None:
    real = torch.ones(shape, dtype=torch.bool).nonzero(as_tuple=True)
    with FakeTensorMode(), LiveBytes(fake=True):
        fake = torch.zeros(shape, dtype=torch.bool).nonzero(as_tuple=True)
        assert [index.shape for index in fake] == [index.shape for index in real]
        assert torch.equal(torch.zeros(3), torch.ones(3))
