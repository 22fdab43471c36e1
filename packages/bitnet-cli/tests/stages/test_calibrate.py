"""When the stage calibrate has something to do, what is said where it has not, and how long it is said to take."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from bitnet_cli.environment import cpu_name
from bitnet_cli.main import cli
from bitnet_cli.pipeline.run_or_skip import pipeline_for
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.read_run import read_run
from bitnet_cli.report.sections.training import calibrated_start_blocks
from bitnet_cli.stages import PIPELINE, calibrate

MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage", "collect", "project", "calibrate", "train", "report"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
[collect]
prompts = "prompts.txt"
[project]
tokenizer = "teacher"
[student]
[loss]
kind = "topk_other"
[train]
steps = 1
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\n")
    (tmp_path / "tiny.toml").write_text(MANIFEST)
    return tmp_path / "tiny.toml"


def planned(manifest: Path, *settings: str) -> Result:
    sets = [word for setting in settings for word in ("--set", setting)]
    return CliRunner().invoke(cli, ["plan", str(manifest), *sets])


def line(result: Result, stage: str) -> str:
    return next(text for text in result.output.splitlines() if text.startswith(f"  {stage} "))


def test_it_is_the_default_for_a_full_precision_checkpoint(manifest: Path) -> None:
    result = planned(manifest)
    assert result.exit_code == 0, result.output
    assert "not done yet" in line(result, "calibrate")
    assert "calibration: 20,000 tokens; how long that takes is known once it has run here" in result.output
    assert "[calibration]\ntokens = 20000" in CliRunner().invoke(cli, ["plan", str(manifest), "--manifest"]).output


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ('student.start="least_squares"', 'student.start = "least_squares"'),
        ("student.layers=[0, 1]", "layers keeps some of init_from's layers"),
        ("student.quantise_weights=false", "has no codes to choose"),
        ('student.weight_quantiser="absmean_row"', "computes its scales"),
        ('student.weight_quantiser="seq"', "starts by least squares unless student.start says else"),
        ('student.init_from=""', "starts from random weights"),
        ('run.stages=["storage", "collect", "project", "train"]', ""),
    ],
)
def test_where_it_has_nothing_to_do_the_training_does_not_wait_for_it(manifest: Path, setting: str, told: str) -> None:
    result = planned(manifest, setting)
    assert result.exit_code == 0, result.output
    if told:
        assert "skip" in line(result, "calibrate")
        assert told in line(result, "calibrate")
    assert "run" in line(result, "train")
    assert "calibration: " not in result.output


@pytest.mark.parametrize(
    "config",
    [
        {"model_type": "bitnet_kde", "quantise_weights": True},
        {"model_type": "llama", "quantization_config": {"quant_method": "bitnet"}},
    ],
)
def test_a_ternary_checkpoint_keeps_its_codes(manifest: Path, tmp_path: Path, config: dict[str, Any]) -> None:
    (tmp_path / "student").mkdir()
    (tmp_path / "student/config.json").write_text(json.dumps(config))
    result = planned(manifest, 'student.init_from="student"')
    assert "is ternary already: it keeps its codes and scales" in line(result, "calibrate")
    asked = planned(manifest, 'student.init_from="student"', 'student.start="calibrated"')
    assert asked.exit_code == 2
    assert 'student.start = "calibrated": ' in asked.output
    assert '→ set student.start = "least_squares"' in asked.output
    teacher = planned(manifest, 'teacher.model="student"')
    assert "is ternary already" in line(teacher, "calibrate")


@pytest.mark.parametrize("setting", ["student.layers=[0, 1]", 'student.weight_quantiser="absmean_row"'])
def test_asked_for_where_it_cannot_be_it_is_refused(manifest: Path, setting: str) -> None:
    result = planned(manifest, setting, 'student.start="calibrated"')
    assert result.exit_code == 2
    assert 'student: start = "calibrated" is not for this student' in result.output
    assert 'set "least_squares"' in result.output


def test_a_training_without_it_waits_where_it_was_asked_for(manifest: Path) -> None:
    result = planned(manifest, 'student.start="calibrated"', 'run.stages=["storage", "collect", "project", "train"]')
    assert result.exit_code == 2
    assert "it reads calibration/start/*, which stage calibrate makes" in result.output


def test_the_time_is_that_of_a_run_of_the_same_start_on_this_machine(manifest: Path, tmp_path: Path) -> None:
    measured = {"machine": cpu_name(), "start": "local smollm2-135m-instruct", "tokens": 10_000, "seconds": 120.0}

    def write(run: str, **changes: object) -> None:
        file = tmp_path / "runs" / run / "reports" / "calibration.json"
        file.parent.mkdir(parents=True)
        file.write_text(json.dumps(measured | changes))

    write("other_machine", machine="another")
    write("other_start", start="local another")
    assert "known once it has run here" in planned(manifest).output
    write("same")
    assert "20,000 tokens, about 4.0 min (10,000 took 120 s in run same)" in planned(manifest).output


def test_only_what_shapes_the_start_is_in_its_fingerprint() -> None:
    assert set(calibrate.STAGE.sections) >= {"calibration", "train.max_seq_len", "run.seed"}
    assert "train" not in calibrate.STAGE.all_sections()
    assert "student.freeze_embeddings" in calibrate.STAGE.ignores


def test_nobody_reads_what_an_idle_stage_would_write() -> None:
    stages = [attrs.evolve(stage, idle=lambda _: "no") if stage.name == "calibrate" else stage for stage in PIPELINE]
    for stage in pipeline_for(stages, object()):
        assert not {"calibration/start/*", "reports/calibration.json"} & {
            *stage.reads, *stage.reads_if_there, *stage.writes
        }  # fmt: skip


def test_the_report_has_the_error_by_layer(tmp_path: Path) -> None:
    reports = tmp_path / "reports"
    reports.mkdir()
    layers = [{"layer": 0, "stream_error": 0.25}, {"layer": 1, "stream_error": 0.125}]
    (reports / "calibration.json").write_text(json.dumps({"layers": layers, "tokens": 1234}))
    (reports / "mini_evaluation_report.json").write_text(json.dumps({"untrained_kl": 2.5}))
    run = read_run(tmp_path)
    page = to_markdown(list(calibrated_start_blocks(run)))
    assert "on 1,234 tokens" in page
    assert "| relative error after the last layer | 0.125 |" in page
    assert list(calibrated_start_blocks(attrs.evolve(run, calibration={"layers": "damaged"}))) == []
