"""Terms on the inner layers, across the packages: the teacher that the manifest names, beside any loss."""

import json
from pathlib import Path
from typing import Any

import pytest

TERMS = (
    "--set", 'loss.kind="jsd"', "--set", "loss.beta=0.3",
    "--set", "loss.intermediate.hidden_weight=0.1", "--set", "loss.intermediate.relation_weight=1.0",
    "--set", "loss.intermediate.student_layers=[0, 1]", "--set", "loss.intermediate.teacher_layers=[0, 29]",
)  # fmt: skip


@pytest.mark.slow
def test_a_training_beside_its_teacher(bitnet: Any, tmp_path: Path) -> None:
    stages = ("--stages", "storage,collect,project,train")
    result = bitnet("run", "manifests/ci.toml", *stages, *TERMS, DRIVE_ROOT=str(tmp_path))
    assert result.returncode == 0, result.stdout + result.stderr
    rows = [json.loads(line) for line in (tmp_path / "ci/logs/metrics.jsonl").read_text().splitlines()]
    for row in rows:
        parts = row["kd"] + 0.1 * row["ce"] + 0.1 * row["format"] + 0.1 * row["hidden"] + row["relation"]
        assert row["loss"] == pytest.approx(parts, rel=1e-4)
        assert row["hidden"] > 0
        assert row["relation"] > 0
    resolved = (tmp_path / "ci/manifest.resolved.toml").read_text()
    assert "[loss.intermediate]" in resolved
    again = bitnet("plan", str(tmp_path / "ci/manifest.resolved.toml"), *stages)
    assert "train     skip" in again.stdout, again.stdout


def test_a_teacher_behind_an_api_has_no_layers_to_look_into(bitnet: Any, tmp_path: Path) -> None:
    setting = ("--set", "loss.intermediate.relation_weight=1.0")
    for command in ("plan", "run"):
        told = bitnet(command, "manifests/openai.toml", *setting, DRIVE_ROOT=str(tmp_path))
        assert told.returncode == 2, told.stdout
        assert 'teacher "openai" has none on this machine  → set teacher.kind = "local"' in told.stderr
    assert list(tmp_path.iterdir()) == []
