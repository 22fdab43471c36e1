"""BitLinear as a layer: start, autocast, held weights, statistics."""

import copy

import pytest
import torch
from torch import nn

from bitnet_core.ternary.bitlinear import BitLinear, code_shares, quantised_once, ternary_layers
from bitnet_core.ternary.ternary_linear import least_squares_log_scale


def make_layer(seed: int = 0, bias: bool = False) -> BitLinear:
    torch.manual_seed(seed)
    return BitLinear(24, 10, bias)


def test_starts_at_the_least_squares_scale() -> None:
    layer = make_layer()
    torch.testing.assert_close(layer.log_scale.detach(), least_squares_log_scale(layer.weight))
    with torch.no_grad():
        layer.weight.mul_(3)
    before = layer.log_scale.detach().clone()
    layer.fit_scale()
    torch.testing.assert_close(layer.log_scale.detach().exp(), before.exp() * 3)


@pytest.mark.parametrize("bias", [False, True])
def test_computes_codes_times_scale(bias: bool) -> None:
    layer = make_layer(bias=bias)
    x = torch.randn(2, 3, 24)
    expected = (x @ layer.codes().float().T) * layer.log_scale.exp()
    if layer.bias is not None:
        expected = expected + layer.bias
    torch.testing.assert_close(layer(x), expected)
    assert layer.codes().dtype == torch.int8
    assert set(layer.codes().unique().tolist()) == {-1, 0, 1}


def test_autocast_runs_low_and_keeps_masters_high() -> None:
    layer = make_layer(bias=True)
    x = torch.randn(5, 24, requires_grad=True)
    full = layer(x).detach()
    with torch.autocast("cpu", torch.bfloat16):
        y = layer(x)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), full, rtol=0.02, atol=0.02)
    y.float().square().sum().backward()
    for parameter in layer.parameters():
        assert parameter.dtype == torch.float32
        assert parameter.grad is not None
        assert parameter.grad.dtype == torch.float32
        assert parameter.grad.abs().sum() > 0
    assert x.grad is not None
    assert x.grad.dtype == torch.float32


def test_learned_scales_find_those_of_the_target() -> None:
    """Adam on the scales alone must find the scales of a ternary target, coming from below.

    From above, LSQ's gradient (t - u) vanishes as u nears 1: an overshoot stays for long, hence the tolerance.
    """
    layer, target = make_layer(), make_layer()
    target.weight.requires_grad_(False)
    layer.weight.requires_grad_(False)
    with torch.no_grad():  # masters on the target's own levels, far from the thresholds: the codes stay
        layer.weight.copy_(target.codes() * target.log_scale.exp()[:, None])
        layer.log_scale.copy_(target.log_scale - torch.linspace(0.2, 0.5, 10))
    x = torch.randn(64, 24)
    optimizer = torch.optim.Adam([layer.log_scale], lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        (layer(x) - target(x).detach()).square().mean().backward()
        optimizer.step()
    torch.testing.assert_close(layer.log_scale, target.log_scale, rtol=0, atol=0.1)


def test_held_weights_compute_the_same_and_are_given_back() -> None:
    model = nn.Sequential(make_layer(0), nn.ReLU(), BitLinear(10, 4))
    x = torch.randn(3, 24)
    with torch.no_grad():
        expected = model(x)
        with quantised_once(model), quantised_once(model):  # nested: the outer one holds
            torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
            first = next(layer for _, layer in ternary_layers(model))
            first.weight.add_(1)
            torch.testing.assert_close(model(x), expected, rtol=0, atol=0)
        assert not torch.allclose(model(x), expected)
    with quantised_once(model):
        model(x).sum().backward()
    assert first.weight.grad is not None


def test_shares_count_the_codes() -> None:
    model = nn.ModuleDict({"a": make_layer(), "b": nn.Linear(3, 3)})
    layer = model["a"]
    with torch.no_grad():
        layer.weight.zero_()
        layer.weight[0, :6] = 1
        layer.weight[0, 6:9] = -1
        layer.log_scale.zero_()
    shares = code_shares(model)
    assert list(shares) == ["a"]
    assert shares["a"].plus == pytest.approx(6 / 240)
    assert shares["a"].minus == pytest.approx(3 / 240)
    assert shares["a"].zero == pytest.approx(231 / 240)


def test_state_moves_and_copies() -> None:
    layer = make_layer()
    twin = BitLinear(24, 10)
    twin.load_state_dict(layer.state_dict())
    x = torch.randn(2, 24)
    torch.testing.assert_close(twin(x), layer(x))
    torch.testing.assert_close(copy.deepcopy(layer)(x), layer(x))
    assert sorted(layer.state_dict()) == ["log_scale", "weight"]
