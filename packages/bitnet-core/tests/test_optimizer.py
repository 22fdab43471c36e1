import math

import pytest
import torch
from torch import nn

from bitnet_core.bitlinear import BitLinear
from bitnet_core.config import TrainConfig
from bitnet_core.training.optimizer import learning_rate_factor, make_optimizer, set_learning_rate


def test_groups() -> None:
    model = nn.Sequential(BitLinear(8, 4, bias=True), nn.LayerNorm(4), nn.Embedding(5, 4))
    model[2].weight.requires_grad_(False)
    optimizer = make_optimizer(model, TrainConfig(learning_rate=1e-3, scale_learning_rate=1e-2, weight_decay=0.1))
    matrices, scales, rest = optimizer.param_groups
    assert [p is model[0].weight for p in matrices["params"]] == [True]
    assert [p is model[0].log_scale for p in scales["params"]] == [True]
    assert len(rest["params"]) == 3  # the layer's bias, the norm's gain and bias; the frozen embedding is nowhere
    assert (matrices["weight_decay"], scales["weight_decay"], rest["weight_decay"]) == (0.1, 0.0, 0.0)
    set_learning_rate(optimizer, 0.5)
    assert [group["lr"] for group in optimizer.param_groups] == [5e-4, 5e-3, 5e-4]


def test_schedule() -> None:
    config = TrainConfig(steps=110, warmup_steps=10, final_lr_fraction=0.1)
    factors = [learning_rate_factor(step, config) for step in range(110)]
    assert factors[0] == pytest.approx(0.1)
    assert factors[9] == 1.0
    assert factors[10] == 1.0
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5 * (1 + math.cos(math.pi / 2)))
    assert factors[10:] == sorted(set(factors[10:]), reverse=True)
    assert learning_rate_factor(110, config) == pytest.approx(0.1)


def test_no_warmup() -> None:
    assert learning_rate_factor(0, TrainConfig(warmup_steps=0)) == 1.0


def test_a_step_moves_scales_with_their_own_rate() -> None:
    layer = BitLinear(8, 4)
    optimizer = make_optimizer(layer, TrainConfig(learning_rate=1e-3, scale_learning_rate=1e-2, weight_decay=0.0))
    set_learning_rate(optimizer, 1.0)
    before = layer.log_scale.detach().clone()
    layer(torch.randn(16, 8)).square().sum().backward()
    optimizer.step()
    torch.testing.assert_close((layer.log_scale - before).abs(), torch.full((4,), 1e-2), rtol=1e-3, atol=0)
