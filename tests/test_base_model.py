"""A base model, without a chat template, from the plan to a student that is asked like it: in plain text."""

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_cli import run
from bitnet_cli.commands.distil import OwnCase, own_manifest
from bitnet_cli.main import cli
from bitnet_providers.teachers.local.chat_template import PLAIN
from tiny_run import make_teacher

SETTINGS = {
    "teacher.dtype": "fp32", "baseline.max_new_tokens": 4, "collect.max_new_tokens": 4, "collect.top_k": 5,
    "project.holdout_fraction": 0.4, "student.start": "least_squares", "train.steps": 2, "train.precision": "fp32",
    "train.max_seq_len": 64, "evaluate.max_new_tokens": 4, "evaluate.bootstrap_samples": 20, "export.kinds": ["hf"],
}  # fmt: skip


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    base = make_teacher(tmp_path / "base")
    (base / "chat_template.jinja").unlink()
    (tmp_path / "prompts.txt").write_text("".join(f"The capital of {land} is\n" for land in ("A", "B", "C", "D", "E")))
    (tmp_path / "texts.jsonl").write_text('{"prompt": "Q", "completion": "A"}\n{"text": "plain"}\n')
    path = tmp_path / "base.toml"
    path.write_text(own_manifest(OwnCase(teacher="./base", prompts="prompts.txt"), "base"))
    return path


def test_the_plan_says_so_before_anything_is_loaded(manifest: Path) -> None:
    result = CliRunner().invoke(cli, ["plan", str(manifest)])
    assert result.exit_code == 0, result.output
    assert (
        "the teacher has no chat template: prompts are asked as plain text, and it goes on with them" in result.output
    )
    result = CliRunner().invoke(cli, ["plan", str(manifest), "--set", 'collect.texts="texts.jsonl"'])
    assert result.exit_code == 2
    assert '1 texts answer a conversation (the first: "1"), and the teacher has no chat template' in result.output
    (manifest.parent / "own.jinja").write_text("{% for m in messages %}{{ m['content'] }}{% endfor %}")
    sets = ["--set", 'collect.texts="texts.jsonl"', "--set", 'teacher.chat_template="own.jinja"']
    result = CliRunner().invoke(cli, ["plan", str(manifest), *sets])
    assert result.exit_code == 0, result.output
    assert "plain text" not in result.output


@pytest.mark.slow
@pytest.mark.parametrize("alignment", ["auto", "bytes"])
def test_the_student_is_asked_as_the_teacher_was(manifest: Path, alignment: str) -> None:
    folder = run(manifest, SETTINGS | {"project.alignment": alignment}, quiet=True)
    report = json.loads((folder / "reports/mini_evaluation_report.json").read_text())
    assert report["generation"]["answers"]
    checkpoint = max((folder / "checkpoints").glob("step_*/config.json")).parent
    assert (checkpoint / "chat_template.jinja").read_text() == PLAIN.read_text()
