import json
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file

from bitnet_core.chunked_loss import load_topk_other
from bitnet_core.config import StudentConfig, TopKOtherConfig, TrainConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.training import loop
from bitnet_core.training.checkpoint import checkpoints, latest_checkpoint, read_state


@pytest.fixture
def run(traces: Any, student: StudentConfig, tmp_path: Path) -> Any:
    def train(folder: str, settings: TrainConfig, **changes: Any) -> dict[str, Any]:
        arguments: dict[str, Any] = {
            "data_folder": traces.data,
            "tokenizer_folder": traces.tokenizer,
            "teacher_folder": None,
            "student": student,
            "loss": load_topk_other(TopKOtherConfig()),
            "train": settings,
            "seed": 3,
            "checkpoint_folder": tmp_path / folder / "checkpoints",
            "metrics_file": tmp_path / folder / "metrics.jsonl",
            "fingerprint": "these settings",
            "on_progress": lambda done, total, note: None,
        }
        return loop.train(**(arguments | changes))

    return train


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def test_the_student_learns_and_flips(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    summary = run("a", attrs.evolve(settings, steps=60, flip_fraction=0.75))
    metrics = rows(tmp_path / "a/metrics.jsonl")
    assert metrics[-1]["heldout_kl"] < 0.5 * metrics[3]["heldout_kl"]
    bits = [row["bits"] for row in metrics]
    assert set(bits) == {8, 4}
    flip = metrics[bits.index(4)]
    before = metrics[bits.index(4) - 1]
    assert before["seen_tokens"] < 0.75 * summary["budget_tokens"] <= flip["seen_tokens"]
    assert summary["seen_tokens"] == summary["budget_tokens"]
    checkpoint = latest_checkpoint(tmp_path / "a/checkpoints")
    assert BitNetKDEForCausalLM.from_pretrained(checkpoint).config.activation_bits == 4
    health = json.loads((tmp_path / "a/checkpoints/step_60_health.json").read_text())
    assert health["seen_tokens"] == summary["seen_tokens"]
    for layer in health["layers"].values():
        assert layer["minus"] + layer["zero"] + layer["plus"] == pytest.approx(1)
    assert max(layer["flipped"] for layer in health["layers"].values()) > 0


class KilledError(Exception):
    """Stands for a kill at any place: nothing after it runs."""


@pytest.mark.parametrize("killed_at", [5, 7, 11])
def test_going_on_gives_the_same_weights_bit_for_bit(
    run: Any, settings: TrainConfig, tmp_path: Path, killed_at: int
) -> None:
    def kill(done: int, total: int, note: str) -> None:
        if done == killed_at:
            raise KilledError

    run("whole", settings)
    with pytest.raises(KilledError):
        run("killed", settings, on_progress=kill)
    summary = run("killed", settings)
    assert (summary["resumed_from"] is None) == (killed_at == 5)  # step 5 is saved after its line of progress
    whole, resumed = (
        load_file(tmp_path / name / "checkpoints/step_12/model.safetensors") for name in ("whole", "killed")
    )
    assert whole.keys() == resumed.keys()
    for name, tensor in whole.items():
        assert torch.equal(tensor, resumed[name]), name

    def comparable(name: str) -> list[dict[str, Any]]:
        return [row | {"tokens_per_second": 0} for row in rows(tmp_path / name / "metrics.jsonl")]

    assert comparable("whole") == comparable("killed")


def test_a_finished_training_is_not_repeated(run: Any, settings: TrainConfig) -> None:
    first = run("a", settings)
    steps = []
    second = run("a", settings, on_progress=lambda done, total, note: steps.append(done))
    assert steps == []
    assert second["last"] == first["last"]


def test_other_settings_start_over(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", settings)
    summary = run("a", attrs.evolve(settings, steps=4), fingerprint="other settings")
    assert summary["resumed_from"] is None
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_4"]
    assert not (tmp_path / "a/checkpoints/step_12_health.json").exists()
    assert len(rows(tmp_path / "a/metrics.jsonl")) == 4


def test_accumulation_is_the_big_batch(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    """Two batches of 3 that accumulate are one batch of 6: the same documents, one gradient, one normaliser."""
    one_epoch = attrs.evolve(settings, steps=1, batch_size=18, flip_fraction=1.0)
    run("big", one_epoch)
    run("small", attrs.evolve(one_epoch, batch_size=3, accumulation=6))
    big, small = (load_file(tmp_path / name / "checkpoints/step_1/training.safetensors") for name in ("big", "small"))
    for name in big:
        if name.endswith("exp_avg"):
            torch.testing.assert_close(big[name], small[name], rtol=1e-3, atol=1e-7)
    assert rows(tmp_path / "big/metrics.jsonl")[0]["kd"] == pytest.approx(
        rows(tmp_path / "small/metrics.jsonl")[0]["kd"], rel=1e-5
    )


def test_only_the_newest_checkpoints_are_kept(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", attrs.evolve(settings, checkpoint_every=2, keep_checkpoints=3))
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_8", "step_10", "step_12"]


def test_a_budget_ends_the_training(run: Any, settings: TrainConfig) -> None:
    summary = run("a", attrs.evolve(settings, budget_tokens=150))
    assert 150 <= summary["seen_tokens"] < 300
    assert summary["steps"] < 12


def test_non_finite_loss_stops_and_keeps_the_batch(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    plain = load_topk_other(TopKOtherConfig())

    def poisoned(hidden: Any, head: Any, batch: Any, normaliser: Any) -> Any:
        value, metrics = plain(hidden, head, batch, normaliser)
        steps = rows(tmp_path / "a/metrics.jsonl") if (tmp_path / "a/metrics.jsonl").exists() else []
        return (value * float("nan") if len(steps) == 6 else value), metrics

    with pytest.raises(CoreError, match=r"became nan at step 6.*learning_rate.*last checkpoint is intact"):
        run("a", settings, loss=poisoned)
    assert [path.name for path in checkpoints(tmp_path / "a/checkpoints")] == ["step_5"]
    batch = load_file(tmp_path / "a/nonfinite_batch_step_6.safetensors")
    assert batch["topk_ids"].shape[-1] == 4


def test_a_damaged_checkpoint_is_named(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", settings)
    state = tmp_path / "a/checkpoints/step_12/training.json"
    state.write_text(state.read_text()[:20])
    with pytest.raises(CoreError, match=r"step_12: not .*complete"):
        run("a", settings)


def test_a_checkpoint_of_another_version_is_refused(run: Any, settings: TrainConfig, tmp_path: Path) -> None:
    run("a", settings)
    state = tmp_path / "a/checkpoints/step_12/training.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"version": 99}))
    with pytest.raises(CoreError, match="checkpoint format 99, this version reads 1"):
        read_state(state.parent)


def test_bf16_autocast(run: Any, settings: TrainConfig) -> None:
    exact, rounded = run("a", settings), run("b", attrs.evolve(settings, precision="bf16"))
    assert rounded["autocast"] == "bfloat16"
    assert rounded["last"]["loss"] == pytest.approx(exact["last"]["loss"], rel=0.2)
    assert rounded["last"]["loss"] != exact["last"]["loss"]


def test_frozen_embeddings_stay(run: Any, settings: TrainConfig, student: StudentConfig, tmp_path: Path) -> None:
    frozen = attrs.evolve(student, freeze_embeddings=True)
    run("a", attrs.evolve(settings, steps=1), student=frozen)
    start = load_file(tmp_path / "a/checkpoints/step_1/model.safetensors")["model.embed_tokens.weight"]
    run("b", settings, student=frozen)
    end = load_file(tmp_path / "b/checkpoints/step_12/model.safetensors")["model.embed_tokens.weight"]
    assert torch.equal(start, end)
