"""Two processes (gloo on the CPU) train as one does: gradients, tokens, the flip, checkpoints either way."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch
from safetensors.torch import load_file

from bitnet_core.bitlinear import BitLinear
from bitnet_core.config import StudentConfig, TrainConfig
from bitnet_core.training.checkpoint import latest_checkpoint, read_state


@pytest.fixture
def train_on(traces: Any, tmp_path: Path) -> Any:
    def run(processes: int, name: str, student: StudentConfig, settings: TrainConfig) -> Path:
        folder = tmp_path / name
        folder.mkdir(exist_ok=True)
        spec = {
            "data": str(traces.data), "tokenizer": str(traces.tokenizer), "folder": str(folder),
            "student": attrs.asdict(student), "train": attrs.asdict(attrs.evolve(settings, devices=processes)),
        }  # fmt: skip
        (folder / "spec.json").write_text(json.dumps(spec))
        script = Path(__file__).with_name("many_processes.py")
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
        if processes == 1:
            command = [sys.executable]
        done = subprocess.run([*command, str(script), str(folder / "spec.json")], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        return folder

    return run


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


@pytest.mark.parametrize("quantiser", ["lsq", "absmean_tensor"])
def test_two_processes_have_the_gradients_of_one(
    train_on: Any, student: StudentConfig, settings: TrainConfig, quantiser: str
) -> None:
    """AdamW's first moments after one step are a tenth of the clipped gradients; accumulation and uneven shares too."""
    student = attrs.evolve(student, weight_quantiser=quantiser)
    settings = attrs.evolve(settings, steps=1, batch_size=7, accumulation=3, flip_fraction=1.0)
    one, two = (train_on(n, f"{n}", student, settings) / "checkpoints/step_1" for n in (1, 2))
    moments = [load_file(folder / "training.safetensors") for folder in (one, two)]
    assert moments[0].keys() == moments[1].keys()
    for name, value in moments[0].items():
        if name.endswith("exp_avg"):
            assert (10 * value - 10 * moments[1][name]).abs().max() <= 1e-5, name
    assert rows(one.parent.parent)[0]["loss"] == pytest.approx(rows(two.parent.parent)[0]["loss"], rel=1e-5)


def test_the_course_is_the_same_and_checkpoints_go_both_ways(
    train_on: Any, student: StudentConfig, settings: TrainConfig
) -> None:
    whole = train_on(1, "whole", student, settings)
    begun_by_two = train_on(2, "begun_by_two", student, attrs.evolve(settings, steps=5))
    begun_by_one = train_on(1, "begun_by_one", student, attrs.evolve(settings, steps=5))
    # The learning rate's course depends on the number of steps: both stopped trainings end at the same place.
    kept = {name: load_file(latest_checkpoint(f / "checkpoints") / "model.safetensors") for name, f in
            (("two", begun_by_two), ("one", begun_by_one))}  # fmt: skip
    assert kept["one"].keys() == kept["two"].keys()
    for name, tensor in kept["one"].items():
        torch.testing.assert_close(tensor, kept["two"][name], rtol=1e-3, atol=1e-4)
    train_on(1, "begun_by_two", student, settings)
    train_on(2, "begun_by_one", student, settings)
    for folder in (begun_by_two, begun_by_one):
        state, expected = (read_state(latest_checkpoint(f / "checkpoints")) for f in (folder, whole))
        assert (state.step, state.batches, state.seen_tokens, state.bits) == (
            expected.step, expected.batches, expected.seen_tokens, expected.bits,
        )  # fmt: skip
        assert [row["step"] for row in rows(folder)] == [row["step"] for row in rows(whole)]
        assert rows(folder)[-1]["heldout_kl"] == pytest.approx(rows(whole)[-1]["heldout_kl"], rel=0.1)


def test_health_is_of_whole_layers(train_on: Any, student: StudentConfig, settings: TrainConfig) -> None:
    one, two = (train_on(n, f"{n}", student, attrs.evolve(settings, steps=2)) for n in (1, 2))
    health = [json.loads((f / "checkpoints/step_2_health.json").read_text())["layers"] for f in (one, two)]
    assert health[0].keys() == health[1].keys()
    for name, layer in health[0].items():
        assert layer == pytest.approx(health[1][name], abs=2e-3)
    weights = load_file(two / "checkpoints/step_2/model.safetensors")
    layer = BitLinear(32, 64)
    layer.load_state_dict({key: weights[f"model.layers.0.mlp.up_proj.{key}"] for key in ("weight", "log_scale")})
    assert health[1]["model.layers.0.mlp.up_proj"]["zero"] == pytest.approx((layer.codes() == 0).float().mean().item())
