"""The loop's switches: each changes what it says and nothing else."""

import json
import math
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file

import training_process
from bitnet_core.config.student import StudentConfig
from bitnet_core.config.train import CHECKPOINT_START, TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.choose_checkpoint import best_checkpoint, checkpoints
from bitnet_core.model.read_checkpoint import read_state
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.training import loop, save_and_resume, setup


def weights(tmp_path: Path, name: str, step: int) -> dict[str, torch.Tensor]:
    return load_file(tmp_path / name / f"checkpoints/step_{step}/model.safetensors")


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"deterministic": True}])
def test_the_same_weights_by_another_way(run: Any, settings: TrainConfig, tmp_path: Path, change: Any) -> None:
    settings = attrs.evolve(settings, steps=3)
    run("plain", settings)
    run("other", attrs.evolve(settings, **change))
    other = weights(tmp_path, "other", 3)
    for name, tensor in weights(tmp_path, "plain", 3).items():
        assert torch.equal(tensor, other[name]), name
    assert not torch.are_deterministic_algorithms_enabled()


@pytest.mark.slow
def test_compiled_layers_learn_the_same(
    run: Any, settings: TrainConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced as on a GPU, without a graph break; the backend that generates code takes a minute here."""
    compile_ = torch.nn.Module.compile
    monkeypatch.setattr(torch.nn.Module, "compile", lambda layer: compile_(layer, backend="aot_eager", fullgraph=True))
    settings = attrs.evolve(settings, steps=3, flip_fraction=0.5)
    plain, compiled = run("plain", settings), run("compiled", attrs.evolve(settings, compile=True))
    assert compiled["last"]["loss"] == pytest.approx(plain["last"]["loss"], rel=1e-4)
    assert weights(tmp_path, "compiled", 3).keys() == weights(tmp_path, "plain", 3).keys()


def test_eight_bit_moments_learn_and_go_on_bit_for_bit(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    # Moments are blocked from 4096 elements on; smaller ones stay float32.
    student = StudentConfig(
        init_from="", hidden_size=64, intermediate_size=128, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2,
    )  # fmt: skip
    settings = attrs.evolve(settings, optimizer="adamw8bit", steps=8)

    class StoppedError(Exception): ...

    def stop(done: int, total: int, note: str) -> None:
        if done == 7:
            raise StoppedError

    summary = run("whole", settings, student=student)
    assert summary["last"]["validation_kl"] < 0.9 * read_state_row(tmp_path / "whole")["validation_kl"]
    with pytest.raises(StoppedError):
        run("stopped", settings, student=student, on_progress=stop)
    assert run("stopped", settings, student=student)["resumed_from"] == "step_5"
    stopped = weights(tmp_path, "stopped", 8)
    for name, tensor in weights(tmp_path, "whole", 8).items():
        assert torch.equal(tensor, stopped[name]), name
    moments = load_file(tmp_path / "whole/checkpoints/step_8/training.safetensors")
    assert moments["model.layers.0.mlp.up_proj.weight/state1"].dtype is torch.uint8


def read_state_row(folder: Path) -> dict[str, Any]:
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return next(line for line in lines if "validation_kl" in line)


def test_weights_become_ternary_step_by_step(run: Any, settings: TrainConfig, monkeypatch: Any) -> None:
    shares: list[float] = []

    def note_share(model: Any, share: float) -> None:
        shares.append(share)
        set_share(model, share)
        expected = None if share >= 1 else pytest.approx(share)
        assert all(layer.ternary_share == expected for _, layer in ternary_layers(model))

    set_share = loop.set_ternary_share
    monkeypatch.setattr(loop, "set_ternary_share", note_share)
    run("a", attrs.evolve(settings, ternary_warmup_steps=4, steps=6))
    assert shares == [0, 0.25, 0.5, 0.75, 1, 1]


def test_a_start_by_least_squares_becomes_ternary_slowly_where_nothing_is_said(
    run: Any, settings: TrainConfig, monkeypatch: Any
) -> None:
    shares: list[float] = []
    monkeypatch.setattr(loop, "set_ternary_share", lambda model, share: shares.append(share))
    monkeypatch.setattr(setup, "kind_of_start", lambda job: CHECKPOINT_START)
    run("a", attrs.evolve(settings, steps=10))
    assert shares == [0, 0.25, 0.5, 0.75, *[1] * 6]


def test_the_best_checkpoint_stays(run: Any, settings: TrainConfig, tmp_path: Path, monkeypatch: Any) -> None:
    figures = iter([math.nan, 1.0, 2.0, 4.0, 5.0, 6.0])
    monkeypatch.setattr(loop, "mean_heldout_kl", lambda *_: next(figures))
    summary = run("a", attrs.evolve(settings, checkpoint_every=2, validate_every=2, keep_checkpoints=2))
    folder = tmp_path / "a/checkpoints"
    assert [path.name for path in checkpoints(folder)] == ["step_4", "step_10", "step_12"]
    assert best_checkpoint(folder).name == summary["best_checkpoint"] == "step_4"


@pytest.mark.slow
def test_tensorboard_and_wandb_get_the_rows(run: Any, settings: TrainConfig, tmp_path: Path, monkeypatch: Any) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    run("a", attrs.evolve(settings, steps=4, track=("tensorboard", "wandb")))
    events = EventAccumulator(str(tmp_path / "a/tensorboard"))
    events.Reload()
    lines = [json.loads(line) for line in (tmp_path / "a/metrics.jsonl").read_text().splitlines()]
    logged = events.Scalars("train/loss")
    assert [(event.step, event.value) for event in logged] == [
        (line["step"], pytest.approx(line["loss"], rel=1e-6)) for line in lines
    ]
    assert list((tmp_path / "a/wandb").rglob("*.wandb"))


@pytest.mark.slow
def test_tensorboard_shows_no_step_twice(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    """What a killed run wrote after its last checkpoint is written again."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    settings = attrs.evolve(settings, steps=6, checkpoint_every=2, track=("tensorboard",))

    class KilledError(Exception): ...

    def kill(done: int, total: int, note: str) -> None:
        if done == 5:
            raise KilledError

    with pytest.raises(KilledError):
        run("a", settings, on_progress=kill)
    assert run("a", settings)["resumed_from"] == "step_4"
    events = EventAccumulator(str(tmp_path / "a/tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [1, 2, 3, 4, 5, 6]


def test_a_missing_tracker_is_named_before_training(run: Any, settings: TrainConfig, monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    with pytest.raises(CoreError, match=r"pip install 'bitnet-core\[wandb\]'"):
        run("a", attrs.evolve(settings, track=("wandb",)))


def test_out_of_memory_names_what_to_lower(run: Any, settings: TrainConfig) -> None:
    def too_large(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(CoreError, match=r"train.batch_size = 2 and train.accumulation = 2 \(the same gradient\)"):
        run("a", settings, loss=too_large)
    with pytest.raises(CoreError, match=r"last checkpoint is intact  → set train\.gradient_checkpointing = true$"):
        run("a", attrs.evolve(settings, batch_size=1), loss=too_large)
    with pytest.raises(CoreError, match=r"train.max_seq_len = 256"):
        run("a", attrs.evolve(settings, batch_size=1, gradient_checkpointing=True), loss=too_large)


def test_devices_share_a_batch() -> None:
    with pytest.raises(ValueError, match="raise batch_size"):
        TrainConfig(batch_size=2, devices=3)
    with pytest.raises(ValueError, match="one device"):
        TrainConfig(devices=2, optimizer="adamw8bit")


@pytest.mark.slow
def test_sigkill_at_a_random_step_changes_no_bit(
    run: Any, traces: Any, student: StudentConfig, settings: TrainConfig, tmp_path: Path
) -> None:
    settings = attrs.evolve(settings, steps=30, checkpoint_every=3)
    run("whole", settings)
    spec = {
        "data": str(traces.data), "tokenizer": str(traces.tokenizer), "folder": str(tmp_path / "killed"),
        "student": attrs.asdict(student), "train": attrs.asdict(settings),
    }  # fmt: skip
    (tmp_path / "killed").mkdir()
    command = [sys.executable, str(Path(training_process.__file__)), str(tmp_path / "spec.json")]
    (tmp_path / "spec.json").write_text(json.dumps(spec | {"wait_at": 28}))
    kill_at = random.randrange(2, 28)
    metrics = tmp_path / "killed/metrics.jsonl"
    process = subprocess.Popen(command, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    while process.poll() is None and not (metrics.exists() and len(metrics.read_text().splitlines()) >= kill_at):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    (tmp_path / "spec.json").write_text(json.dumps(spec))
    subprocess.run(command, check=True, env=os.environ | {"OMP_NUM_THREADS": str(torch.get_num_threads())})
    killed = weights(tmp_path, "killed", 30)
    for name, tensor in weights(tmp_path, "whole", 30).items():
        assert torch.equal(tensor, killed[name]), f"{name}, kill_at={kill_at}"
    assert read_state(tmp_path / "killed/checkpoints/step_30") == attrs.evolve(
        read_state(tmp_path / "whole/checkpoints/step_30"),
        last=read_state(tmp_path / "killed/checkpoints/step_30").last,
    )
    assert not list((tmp_path / "killed/checkpoints").glob(".*.partial"))
    assert save_and_resume.checkpoints(tmp_path / "killed/checkpoints")[-1].name == "step_30"
