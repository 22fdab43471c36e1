import torch
from torch import nn

from bitnet_core.config.train import TrainConfig
from bitnet_core.ternary.bitlinear import BitLinear
from bitnet_core.training.optimizer import apply_schedule, make_optimizer, optimizer_groups


def test_groups() -> None:
    model = nn.Sequential(BitLinear(8, 4, bias=True), nn.LayerNorm(4), nn.Embedding(5, 4))
    model[2].weight.requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-3, scale_learning_rate=1e-2, weight_decay=0.1))
    matrices, scales, rest = optimizer.param_groups
    assert [p is model[0].weight for p in matrices["params"]] == [True]
    assert [p is model[0].log_scale for p in scales["params"]] == [True]
    assert len(rest["params"]) == 3  # the layer's bias, the norm's gain and bias; the frozen embedding is nowhere
    assert apply_schedule(optimizer, 4, TrainConfig(warmup_steps=10)) == 0.5
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-3, 5e-4]
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.1, 0.0, 0.0]


def test_a_step_moves_scales_with_their_own_rate() -> None:
    layer = BitLinear(8, 4)
    optimizer = make_optimizer(layer, TrainConfig(learning_rate=1e-3, scale_learning_rate=1e-2, weight_decay=0.0))
    apply_schedule(optimizer, 0, TrainConfig(warmup_steps=0))
    before = layer.log_scale.detach().clone()
    layer(torch.randn(16, 8)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((layer.log_scale - before).abs(), torch.full((4,), 1e-2), rtol=1e-3, atol=0)


def test_groups_suit_any_optimizer() -> None:
    layer = BitLinear(8, 4)
    optimizer = torch.optim.SGD(optimizer_groups(layer, learning_rate=0.5, scale_learning_rate=0.25, weight_decay=0.1))
    assert [(group["lr"], group["weight_decay"]) for group in optimizer.param_groups] == [(0.5, 0.1), (0.25, 0.0)]
    assert [group["lr"] for group in optimizer_groups(layer, learning_rate=0.5)] == [0.5, 0.5]
    layer.weight.requires_grad_(False)
    assert [group["params"] for group in optimizer_groups(layer, learning_rate=0.5)] == [[layer.log_scale]]
