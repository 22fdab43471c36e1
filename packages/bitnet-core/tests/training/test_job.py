"""What a training is given."""

from pathlib import Path

import attrs

from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import CHECKPOINT_START, RANDOM_START, TERNARY_START, TrainConfig
from bitnet_core.training.setup import kind_of_start
from training_process import job


def test_what_a_training_starts_from(student: StudentConfig, settings: TrainConfig, tmp_path: Path) -> None:
    random = job(tmp_path, tmp_path / "data", tmp_path / "tokenizer", student, settings)
    assert kind_of_start(random) == RANDOM_START
    checkpoint = attrs.evolve(random, student=attrs.evolve(student, init_from="teacher"), teacher_folder=tmp_path)
    assert kind_of_start(checkpoint) == CHECKPOINT_START
    assert kind_of_start(attrs.evolve(checkpoint, calibrated_start=tmp_path / "start")) == TERNARY_START
    (tmp_path / "config.json").write_text('{"model_type": "bitnet_kde"}')
    assert kind_of_start(checkpoint) == TERNARY_START
