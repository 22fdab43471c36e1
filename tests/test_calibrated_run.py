"""A whole run from a calibrated start, with a tiny teacher: made, used, reported, and not made again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from bitnet_cli import run
from bitnet_core.model.read_checkpoint import load_model, read_state
from bitnet_core.training.setup import weights_sha256
from tiny_run import make_teacher, tiny_settings

ROOT = Path(__file__).parents[1]


def report(folder: Path) -> dict[str, Any]:
    return json.loads((folder / "reports/mini_evaluation_report.json").read_text())


@pytest.mark.slow
def test_a_training_goes_on_from_the_calibrated_start(tmp_path: Path) -> None:
    settings = tiny_settings(tmp_path, make_teacher(tmp_path / "teacher"))
    settings |= {
        "student.layers": [], "student.start": "calibrated", "calibration.tokens": 300,
        "run.stages": ["storage", "collect", "project", "calibrate", "train", "evaluate", "report"],
        "train.steps": 2, "train.learning_rate": 1e-12, "train.scale_learning_rate": 0.0, "train.weight_decay": 0.0,
    }  # fmt: skip
    folder = run(ROOT / "manifests/quickstart.toml", settings)
    assert not (folder / "calibration/.work").exists()
    start = load_model(folder / "calibration/start").state_dict()
    trained = load_model(next((folder / "checkpoints").glob("step_2"))).state_dict()
    torch.testing.assert_close(start, trained, rtol=0, atol=1e-9)  # steps of nothing: what is trained began there
    began = read_state(folder / "checkpoints/step_2").start
    assert began == {"kind": "calibrated", "digest": weights_sha256(load_model(folder / "calibration/start"))}

    record = json.loads((folder / "reports/calibration.json").read_text())
    assert record["tokens"] >= 300
    assert [layer["layer"] for layer in record["layers"]] == [0, 1]
    page = (folder / "report.md").read_text()
    assert "## Calibrated start" in page
    calibrated = report(folder)

    before = (folder / "stages/calibrate/done.json").stat().st_mtime_ns
    run(ROOT / "manifests/quickstart.toml", settings | {"train.steps": 3})
    assert (folder / "stages/calibrate/done.json").stat().st_mtime_ns == before  # training anew calibrates nothing

    run(ROOT / "manifests/quickstart.toml", settings | {"student.start": "least_squares"})
    assert "## Calibrated start" not in (folder / "report.md").read_text()
    assert calibrated["untrained_kl"] < report(folder)["untrained_kl"]
