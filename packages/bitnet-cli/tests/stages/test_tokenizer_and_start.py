"""What the plan says of the folders that a student comes from, before any teacher is asked."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitnet_cli.stages.tokenizer_and_start import TEACHER, student_problems
from bitnet_core.config.student import StudentConfig


@pytest.mark.parametrize("start", ["its folder", TEACHER])
def test_quantised_weights_are_refused_at_plan(tmp_path: Path, start: str) -> None:
    plugins: Any = SimpleNamespace(teachers={"local": SimpleNamespace(model_folder=Path)})
    config: dict[str, Any] = {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    manifest: Any = SimpleNamespace(
        project=None,
        student=StudentConfig(init_from=TEACHER if start == TEACHER else str(tmp_path)),
        teacher=SimpleNamespace(kind="local", options=SimpleNamespace(model=str(tmp_path))),
    )
    assert list(student_problems(manifest, plugins)) == []
    (tmp_path / "config.json").write_text(json.dumps(config | {"quantization_config": {"quant_method": "awq"}}))
    (problem,) = student_problems(manifest, plugins)
    assert problem.why.startswith(
        f"student.init_from: {tmp_path} can't start a student: its config.json has a quantization"
    )
    assert problem.fix.startswith("name the unquantised checkpoint")
