"""What a training does where the manifest leaves a setting out."""

import pytest

from bitnet_core.config.train import CHECKPOINT_START, RANDOM_START, TERNARY_START, TrainConfig


@pytest.mark.parametrize(
    ("start", "rate", "scale_rate", "warmup"),
    [(TERNARY_START, 4e-4, 4e-4, 0), (CHECKPOINT_START, 1e-3, 4e-3, 40), (RANDOM_START, 1e-3, 1e-3, 0)],
)
def test_what_is_left_out_follows_the_start(start: str, rate: float, scale_rate: float, warmup: int) -> None:
    begun = TrainConfig(steps=100).begun_from(start)
    assert (begun.learning_rate, begun.scale_learning_rate, begun.ternary_warmup_steps) == (rate, scale_rate, warmup)


@pytest.mark.parametrize("start", [TERNARY_START, CHECKPOINT_START, RANDOM_START])
def test_what_is_said_stays(start: str) -> None:
    said = TrainConfig(learning_rate=3e-3, scale_learning_rate=0.0, ternary_warmup_steps=0)
    assert said.begun_from(start) == said


def test_a_decay_that_the_schedule_has_not_got_is_told() -> None:
    assert TrainConfig().without_effect() == TrainConfig(schedule="wsd", decay_fraction=0.4).without_effect() == []
    (said,) = TrainConfig(decay_fraction=0.4).without_effect()
    assert said.startswith('train.decay_fraction = 0.4: without effect, since train.schedule = "cosine" decays')
