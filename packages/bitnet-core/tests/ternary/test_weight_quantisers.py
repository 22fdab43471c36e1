"""Each recipe against its own paper's formula, written again; the gentle start between full precision and ternary."""

import math
from collections.abc import Iterator

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from bitnet_core.config.student import WEIGHT_QUANTISER_NAMES
from bitnet_core.ternary.bitlinear import BitLinear, quantised_once, set_ternary_share
from bitnet_core.ternary.ternary_linear import ternary_linear
from bitnet_core.ternary.weight_quantisers import WEIGHT_QUANTISERS


def layer_of(name: str, inputs: int = 24, outputs: int = 6) -> tuple[BitLinear, Tensor]:
    torch.manual_seed(1)
    layer = BitLinear(inputs, outputs, quantiser=name).double()
    with torch.no_grad():
        layer.weight.copy_(torch.randn(outputs, inputs, dtype=torch.float64) * torch.rand(outputs, 1).double())
        layer.fit_scale()
    return layer, torch.randn(7, inputs, dtype=torch.float64, requires_grad=True)


def test_the_manifest_names_every_recipe() -> None:
    assert set(WEIGHT_QUANTISER_NAMES) == set(WEIGHT_QUANTISERS)


@pytest.mark.parametrize("name", ["absmean_tensor", "absmean_row"])
def test_absmean_is_bitnets(name: str) -> None:
    """The published form: w + (quantised - w).detach(), the scale the mean magnitude."""
    layer, x = layer_of(name)
    assert layer.log_scale is None
    assert [parameter for parameter, _ in layer.named_parameters()] == ["weight"]
    y = layer(x)
    y.square().sum().backward()
    grad_w, grad_x = layer.weight.grad, x.grad
    assert grad_x is not None

    w, x_again = layer.weight.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
    scale = w.abs().mean() if name == "absmean_tensor" else w.abs().mean(1, keepdim=True)
    quantised = (w / scale).round().clamp(-1, 1) * scale
    expected = x_again @ (w + (quantised - w).detach()).T
    expected.square().sum().backward()
    # The scale is float32 throughout.
    torch.testing.assert_close(y, expected, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(grad_w, w.grad, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(grad_x, x_again.grad, rtol=1e-5, atol=1e-5)


def test_computed_scales_follow_the_weight() -> None:
    layer, _ = layer_of("absmean_row")
    before = layer.row_log_scale().clone()
    with torch.no_grad():
        layer.weight.mul_(2)
    torch.testing.assert_close(layer.row_log_scale(), before + math.log(2))


def test_seq_is_paretoqs_levels_and_range() -> None:
    """w / alpha is clipped to ±0.99, stretched by 1.5, rounded: levels -2/3, 0, 2/3 of alpha."""
    layer, x = layer_of("seq")
    assert layer.log_scale is not None
    with torch.no_grad():
        layer.log_scale.sub_(0.5)  # so that some weights are beyond the range
    alpha = 1.5 * layer.log_scale.detach().exp()[:, None]
    u = layer.weight.detach() / alpha
    levels = (u.clamp(-0.99, 0.99) * 1.5).round() / 1.5
    assert (u.abs() > 0.99).any()

    y = layer(x)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    grad_quantised = grad_y.T @ x.detach()
    inside = u.abs() <= 0.99
    torch.testing.assert_close(y, x @ (levels * alpha).T)
    torch.testing.assert_close(layer.weight.grad, grad_quantised * inside)
    d_alpha = (grad_quantised * torch.where(inside, levels - u, levels)).sum(1)
    torch.testing.assert_close(layer.log_scale.grad, d_alpha * alpha[:, 0])


def test_seq_starts_with_its_range_at_the_largest_weight() -> None:
    layer, _ = layer_of("seq")
    assert layer.log_scale is not None
    torch.testing.assert_close(1.5 * layer.log_scale.detach().exp(), layer.weight.detach().abs().amax(1))


@pytest.mark.parametrize("share", [0.0, 0.3, 1.0])
def test_a_ternary_share_lies_between_full_precision_and_ternary(share: float) -> None:
    layer, x = layer_of("lsq")
    ternary, full = layer(x).detach(), torch.nn.functional.linear(x, layer.weight).detach()
    set_ternary_share(layer, share)
    y = layer(x)
    torch.testing.assert_close(y.detach(), full + share * (ternary - full))
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    assert layer.log_scale is not None
    scale_gradient = layer.log_scale.grad
    torch.testing.assert_close(layer.weight.grad, grad_y.T @ x.detach())

    layer.log_scale.grad = None
    set_ternary_share(layer, 1.0)
    layer(x).backward(grad_y)
    assert layer.log_scale.grad is not None
    torch.testing.assert_close(scale_gradient, share * layer.log_scale.grad)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ["lsq_clip", "seq"])
@pytest.mark.parametrize("share", [0.0, 0.25])
def test_a_weight_beyond_the_range_learns_as_far_as_it_is_in_full_precision(
    name: str, share: float, dtype: torch.dtype
) -> None:
    """What autograd makes of w + share * (s t - w), where s t passes its gradient within the range alone."""
    layer, x = layer_of(name)
    layer, x = layer.to(dtype), x.detach().to(dtype)
    assert layer.log_scale is not None
    with torch.no_grad():
        layer.log_scale.sub_(0.3)
    set_ternary_share(layer, share)
    y = layer(x)
    grad_y = torch.randn_like(y)
    y.backward(grad_y)
    w = layer.weight.detach().clone().requires_grad_()
    scale = layer.log_scale.detach().exp()[:, None]
    limit = scale * WEIGHT_QUANTISERS[name].gradient_range
    passed = w.clamp(-limit, limit)
    ternary = passed + (layer.quantised_weight(dtype) - passed).detach()
    assert (w.abs() > limit).any()
    (x @ (w + share * (ternary - w)).T).backward(grad_y)
    torch.testing.assert_close(layer.weight.grad, w.grad)


def test_evaluation_is_wholly_ternary_whatever_the_share() -> None:
    layer, x = layer_of("lsq")
    ternary = layer(x).detach()
    set_ternary_share(layer, 0.25)
    with quantised_once(layer), torch.no_grad():
        torch.testing.assert_close(layer(x), ternary)
    assert layer.ternary_share == 0.25


@pytest.fixture
def alone() -> Iterator[None]:
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("alone")
def test_a_sharded_layer_too() -> None:
    layer, x = layer_of("lsq")
    full = torch.nn.functional.linear(x, layer.weight).detach()
    ternary = layer(x).detach()
    fully_shard(layer, mesh=init_device_mesh("cpu", (1,)))
    set_ternary_share(layer, 0.0)
    with torch.no_grad():
        with quantised_once(layer):  # before any other pass, after which this outermost layer would stay whole
            torch.testing.assert_close(layer(x), ternary)
        torch.testing.assert_close(layer(x), full)


@pytest.mark.slow
def test_every_recipe_trains_compiled_without_a_graph_break() -> None:
    for name in WEIGHT_QUANTISER_NAMES:
        layer, x = layer_of(name)
        set_ternary_share(layer, 0.5)
        layer(x).sum().backward()
        assert layer.weight.grad is not None
        eager, layer.weight.grad = layer.weight.grad, None
        compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
        compiled(x).sum().backward()
        torch.testing.assert_close(layer.weight.grad, eager)


def test_the_share_is_what_backward_saves_beside_input_weight_and_scale() -> None:
    layer, x = layer_of("lsq")
    saved: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        ternary_linear(x, layer.weight, layer.row_log_scale(), ternary_share=torch.tensor(0.5))
    assert sorted(t.numel() for t in saved) == sorted([x.numel(), layer.weight.numel(), 6, 1])
