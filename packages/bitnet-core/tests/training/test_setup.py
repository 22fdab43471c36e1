"""What a training is given, and what is opened from that."""

from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import CHECKPOINT_START, RANDOM_START, TERNARY_START, TrainConfig
from bitnet_core.distributed import ProcessGroup
from bitnet_core.errors import CoreError
from bitnet_core.training.setup import check_processes, kind_of_start
from training_process import job


def test_what_a_training_starts_from(student: StudentConfig, settings: TrainConfig, tmp_path: Path) -> None:
    random = job(tmp_path, tmp_path / "data", tmp_path / "tokenizer", student, settings)
    assert kind_of_start(random) == RANDOM_START
    checkpoint = attrs.evolve(random, student=StudentConfig(init_from="teacher"), teacher_folder=tmp_path)
    assert kind_of_start(checkpoint) == CHECKPOINT_START
    assert kind_of_start(attrs.evolve(checkpoint, calibrated_start=tmp_path / "start")) == TERNARY_START
    (tmp_path / "config.json").write_text('{"model_type": "bitnet_kde"}')
    assert kind_of_start(checkpoint) == TERNARY_START
    named = attrs.evolve(checkpoint, student=StudentConfig(init_from=str(tmp_path)), teacher_folder=None)
    assert kind_of_start(named) == TERNARY_START


class Elsewhere(ProcessGroup):
    """The second of two processes, whose messages are not sent."""

    def everyones(self, item: Any) -> list[Any]:
        return [item, item]

    def wait_for_all(self) -> None:
        pass


def test_processes_that_cannot_work_together(student: StudentConfig, settings: TrainConfig, tmp_path: Path) -> None:
    plain = job(tmp_path, tmp_path / "data", tmp_path / "tokenizer", student, settings)
    with pytest.raises(CoreError, match=r"5 processes share batches of train\.batch_size = 4"):
        check_processes(plain, ProcessGroup(0, 5, torch.device("cpu")))
    with pytest.raises(CoreError, match="another folder than the first process's") as refused:
        check_processes(plain, Elsewhere(1, 2, torch.device("cpu")))
    assert refused.value.fix == "put the run folder (store.root) on a disk that all machines share, under one path"


def test_rows_are_cut_as_fsdp_cuts_them() -> None:
    for count in (1, 2, 7, 8, 33):
        for size in (1, 2, 4, 5):
            cut = [
                list(range(count))[ProcessGroup(rank, size, torch.device("cpu")).rows(count)] for rank in range(size)
            ]
            expected = [each.tolist() for each in torch.arange(count).chunk(size)]
            assert cut == expected + [[]] * (size - len(expected))
