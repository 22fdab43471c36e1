"""A job on its way to another process."""

import json
from pathlib import Path

import attrs

from bitnet_core.config.loss import IntermediateConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import CHECKPOINT_START, RANDOM_START, TERNARY_START, TrainConfig
from bitnet_core.training.job import Job
from bitnet_core.training.setup import kind_of_start
from training_process import job


def test_a_job_comes_back_from_json(student: StudentConfig, settings: TrainConfig, tmp_path: Path) -> None:
    plain = job(tmp_path, tmp_path / "data", tmp_path / "tokenizer", student, settings)
    for each in (plain, attrs.evolve(plain, teacher_folder=tmp_path, intermediate=IntermediateConfig(hidden_weight=1))):
        stored = json.loads(json.dumps(each.to_json()))
        assert "student" not in stored
        back = Job.from_json(
            stored, student=each.student, loss=each.loss, train=each.train, intermediate=each.intermediate
        )
        assert back == each
        assert isinstance(back.data_folder, Path)


def test_what_a_training_starts_from(student: StudentConfig, settings: TrainConfig, tmp_path: Path) -> None:
    random = job(tmp_path, tmp_path / "data", tmp_path / "tokenizer", student, settings)
    assert kind_of_start(random) == RANDOM_START
    checkpoint = attrs.evolve(random, student=attrs.evolve(student, init_from="teacher"), teacher_folder=tmp_path)
    assert kind_of_start(checkpoint) == CHECKPOINT_START
    assert kind_of_start(attrs.evolve(checkpoint, calibrated_start=tmp_path / "start")) == TERNARY_START
    (tmp_path / "config.json").write_text('{"model_type": "bitnet_kde"}')
    assert kind_of_start(checkpoint) == TERNARY_START
