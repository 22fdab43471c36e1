"""A training, described by plain values: in this process, or as a script for processes that are killed or many."""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import attrs

from bitnet_core.config.loss import IntermediateConfig, TopKOtherConfig
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import TrainConfig
from bitnet_core.losses.chunked import load_loss
from bitnet_core.training import loop
from bitnet_core.training.setup import Job


def job(folder: Path, data: Path, tokenizer: Path, student: StudentConfig, settings: TrainConfig) -> Job:
    """`folder` gets what is written."""
    return Job(
        data_folder=data,
        tokenizer_folder=tokenizer,
        teacher_folder=None,
        student=student,
        loss=load_loss(TopKOtherConfig()),
        train=settings,
        seed=3,
        checkpoint_folder=folder / "checkpoints",
        metrics_file=folder / "metrics.jsonl",
        fingerprint="these settings",
    )


def quiet(done: int, total: int, note: str) -> None:
    """Progress that nobody looks at."""


def until_killed(step: int) -> Callable[[int, int, str], None]:
    """Progress that comes to `step` and no further."""

    def wait(done: int, total: int, note: str) -> None:
        while done >= step:
            time.sleep(1)

    return wait


def train_as(spec: Mapping[str, Any]) -> None:
    """``"wait_at"``: the step at which it waits to be killed. ``"leave_parts"``: as if it were, after its last step."""
    folder, data, tokenizer = (Path(spec[name]) for name in ("folder", "data", "tokenizer"))
    plain = job(folder, data, tokenizer, StudentConfig(**spec["student"]), TrainConfig(**spec["train"]))
    with_terms = attrs.evolve(
        plain,
        intermediate=IntermediateConfig(**spec["intermediate"]) if "intermediate" in spec else None,
        intermediate_teacher=spec.get("teacher"),
    )
    with mock.patch.object(loop, "make_plain") if spec.get("leave_parts") else contextlib.nullcontext():
        loop.train(with_terms, until_killed(spec["wait_at"]) if "wait_at" in spec else quiet)


def train_in_turn() -> None:
    """What stdin names, one after the other: the port of a store where the processes meet, and a file. Says "done"."""
    for line in sys.stdin:
        os.environ["MASTER_PORT"], file = line.rstrip("\n").split(" ", 1)
        train_as(json.loads(Path(file).read_text()))
        print("done", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        train_as(json.loads(Path(sys.argv[1]).read_text()))
    else:
        train_in_turn()
    os._exit(0)  # gloo's threads have been seen to abort the interpreter's own way out
