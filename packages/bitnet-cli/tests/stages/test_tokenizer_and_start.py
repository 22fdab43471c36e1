"""What the plan says of the folders that a student comes from, before any teacher is asked."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from bitnet_cli.stages.tokenizer_and_start import TEACHER, student_problems
from bitnet_core.config.project import ProjectConfig
from bitnet_core.config.student import StudentConfig


def whole_weights(file: Path) -> None:
    head = json.dumps({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    file.write_bytes(len(head).to_bytes(8, "little") + head + bytes(4))


@pytest.mark.parametrize("start", ["its folder", TEACHER])
def test_quantised_weights_are_refused_at_plan(tmp_path: Path, start: str) -> None:
    plugins: Any = SimpleNamespace(teachers={"local": SimpleNamespace(model_folder=Path)})
    config: dict[str, Any] = {"model_type": "llama"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    whole_weights(tmp_path / "model.safetensors")
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


def test_a_start_and_a_tokenizer_that_are_not_whole_are_told_at_plan(tmp_path: Path) -> None:
    plugins: Any = SimpleNamespace(teachers={})
    manifest: Any = SimpleNamespace(
        project=ProjectConfig(tokenizer=str(tmp_path)),
        student=StudentConfig(init_from=str(tmp_path)),
        teacher=None,
        collect=None,
    )
    (tmp_path / "chat_template.jinja").touch()  # a template is no tokenizer
    (tmp_path / "config.json").write_text("[]")  # no object: who loads it tells it
    index = {"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    whole_weights(tmp_path / "model-1.safetensors")
    assert [each.why for each in student_problems(manifest, plugins)] == [
        f"project.tokenizer: {tmp_path} has no tokenizer (tokenizer.json)",
        f"student.init_from: {tmp_path}/model-2.safetensors is missing, one of several with the weights",
    ]
    for name in ("tokenizer.json", "model-2.safetensors"):
        whole_weights(tmp_path / name)
    assert list(student_problems(manifest, plugins)) == []
    (tmp_path / "config.json").write_text('{"model_type": "llama", "num_hidden_layers": 2}')
    manifest.student = StudentConfig(init_from=str(tmp_path), layers=(0, 2))
    assert [str(each) for each in student_problems(manifest, plugins)] == [
        f"student.layers: {tmp_path} has 2 layers, counted from 0: there is no layer 2  → choose among 0 to 1"
    ]
    address = "https://huggingface.co/ORG/NAME/tree/v2"
    manifest.student = StudentConfig(init_from=str(tmp_path / address))
    assert [each.fix for each in student_problems(manifest, plugins)] == ['write "ORG/NAME@v2"']
