import math

import attrs
import numpy as np
import pytest

from bitnet_core.config.train import TrainConfig
from bitnet_core.training.schedule import (
    TokenSchedule,
    how_it_goes_on,
    learning_rate_factor,
    left_unfinished,
    ternary_share,
    weight_decay_factor,
)


def test_cosine() -> None:
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


def test_wsd_is_constant_then_linear() -> None:
    config = TrainConfig(schedule="wsd", steps=110, warmup_steps=10, decay_fraction=0.2, final_lr_fraction=0.0)
    factors = [learning_rate_factor(step, config) for step in range(110)]
    assert factors[9:90] == [1.0] * 81
    assert factors[100] == pytest.approx(0.5)
    assert factors[109] == pytest.approx(0.05)


def test_two_stages_fall_at_half_time_and_stop_decaying_weights() -> None:
    config = TrainConfig(schedule="two_stage", steps=100, warmup_steps=0, final_lr_fraction=0.0)
    assert learning_rate_factor(49, config) == pytest.approx(0.51)
    assert learning_rate_factor(50, config) == pytest.approx(0.5 * 2 / 3)
    assert [weight_decay_factor(step, config) for step in (0, 49, 50, 99)] == [1, 1, 0, 0]
    assert weight_decay_factor(99, TrainConfig(steps=100)) == 1


def test_weights_become_ternary_by_and_by() -> None:
    config = TrainConfig(ternary_warmup_steps=4)
    assert [ternary_share(step, config) for step in range(6)] == [0, 0.25, 0.5, 0.75, 1, 1]
    assert ternary_share(0, TrainConfig()) == 1


def test_what_the_last_step_comes_too_early_for() -> None:
    config = TrainConfig(steps=100, warmup_steps=10, ternary_warmup_steps=40)

    def told(steps: int, config: TrainConfig = config) -> list[str]:
        return left_unfinished(TokenSchedule(steps * 50, np.arange(1, steps + 1) * 50, math.inf), config)

    assert told(100) == []
    assert told(98) == []
    (budget,) = told(50)
    assert budget.startswith("train.budget_tokens ends the training with step 50 of 100, at 0.6")
    assert [each.split(":")[0] for each in told(9)[1:]] == [
        "train.warmup_steps = 10",
        "train.ternary_warmup_steps = 40",
    ]
    assert "at the last step, 40, weights are 98% ternary" in told(40)[1]
    assert len(told(41)) == 1
    assert told(100, attrs.evolve(config, ternary_warmup_steps=100)) != []


def test_as_if_more_steps_had_been_planned_only_where_all_is_alike() -> None:
    config = TrainConfig(steps=200, schedule="wsd", ternary_warmup_steps=80)
    alike = "goes on at step 50 as if train.steps had been 200 from the first"
    assert how_it_goes_on(50, 100, config, 80, flipped=False) == alike
    assert how_it_goes_on(50, 100, attrs.evolve(config, ternary_warmup_steps=40), 80, flipped=True) == (
        "goes on at step 50 of a training of 100 steps: its ternary warm-up stays 40 steps, not 80; its activations "
        "stay at 4 bits"
    )
