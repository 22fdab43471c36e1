"""Benchmarks at the front door: listed, planned, refused in time; the teacher reached as the run allows; reported."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import attrs
import pytest
from click.testing import CliRunner, Result

from bitnet_cli.errors import UserError
from bitnet_cli.main import cli
from bitnet_cli.manifest import load_manifest
from bitnet_cli.plugins import load as loader
from bitnet_cli.report.markdown import to_markdown
from bitnet_cli.report.sections.benchmarks import benchmark_blocks
from bitnet_cli.stages import evaluate
from bitnet_cli.stages.evaluate import consent_wanted, teacher_access
from bitnet_cli.stages.open_teacher import TeacherHandle
from bitnet_core.benchmarks.contract import NotMeasured, TeacherAccess
from bitnet_providers.config import PricesConfig
from bitnet_providers.contract import Capabilities, ProviderError, TeacherPlugin

MANIFEST = """
manifest_version = 1
[run]
name = "tiny"
stages = ["storage", "baseline", "collect", "project", "train", "evaluate", "report"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
[baseline]
prompts = "prompts.txt"
[collect]
prompts = "prompts.txt"
[project]
tokenizer = "teacher"
[student]
[loss]
kind = "topk_other"
[train]
steps = 1
[evaluate]
benchmarks = ["heldout", "json_validity", "lm_eval"]
[evaluate.json_validity]
prompts = "json.jsonl"
max_new_tokens = 10
"""


@pytest.fixture
def manifest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("one\n")
    (tmp_path / "json.jsonl").write_text('{"prompt": "x", "schema": {}}\n{"prompt": "y", "schema": {}}\n')
    (tmp_path / "tiny.toml").write_text(MANIFEST)
    return tmp_path / "tiny.toml"


def bitnet(*arguments: str) -> Result:
    return CliRunner().invoke(cli, list(arguments))


def without(monkeypatch: pytest.MonkeyPatch, *missing: str) -> None:
    there = loader._is_there
    monkeypatch.setattr(loader, "_is_there", lambda module: module not in missing and there(module))


def test_they_are_listed() -> None:
    rows = {
        row["name"]: row
        for row in json.loads(bitnet("plugins", "--json").output)["plugins"]
        if row["kind"] == "benchmark"
    }
    assert set(rows) >= {"heldout", "agreement", "json_validity", "lm_eval"}
    assert "json_validity" in bitnet("plugins").output


def test_a_plan_says_what_they_ask_the_teacher_for(manifest: Path) -> None:
    planned = bitnet("plan", str(manifest))
    assert "benchmark json_validity: 2 answers of the teacher, at most 20 tokens" in planned.output


def test_a_missing_package_stops_the_plan_and_a_run_before_the_teacher_is_asked(
    manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    without(monkeypatch, "lm_eval")
    planned = bitnet("plan", str(manifest))
    assert planned.exit_code == 2
    assert "evaluate.benchmarks: the benchmark plugin 'lm_eval' can't be used: missing extra" in planned.output
    assert "pip install 'bitnet-core[lm-eval]'" in planned.output
    asked: list[str] = []
    monkeypatch.setattr(TeacherHandle, "ask", lambda self, question: asked.append("paid"))
    ran = bitnet("run", str(manifest))
    assert ran.exit_code == 2
    assert "nothing was asked of the teacher" in ran.output
    assert "pip install 'bitnet-core[lm-eval]'" in ran.output
    assert asked == []


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ('evaluate.json_validity.prompts="gone.jsonl"', "gone.jsonl: can't be read"),
        ('evaluate.lm_eval.include_path="nowhere"', "evaluate.lm_eval: include_path: there is no folder"),
    ],
)
def test_a_missing_file_stops_the_plan(manifest: Path, change: str, said: str) -> None:
    planned = bitnet("plan", str(manifest), "--set", change)
    assert planned.exit_code == 2
    assert said in planned.output


def test_a_runtime_whose_package_is_missing_stops_the_plan(manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    there = evaluate.importlib.util.find_spec
    monkeypatch.setattr(evaluate.importlib.util, "find_spec", lambda name: None if name == "xllamacpp" else there(name))
    planned = bitnet("plan", str(manifest), "--set", 'evaluate.runtime="llamacpp"')
    assert planned.exit_code == 2
    assert "evaluate.runtime = \"llamacpp\" needs xllamacpp  → pip install 'bitnet-core[llamacpp]'" in planned.output


# The teacher


@attrs.frozen
class Options:
    model: str = "far-1"


def access(
    tmp_path: Path, *, external: bool, skip: bool = False, folder: Any = None, error: Exception | None = None
) -> TeacherAccess:
    capabilities = Capabilities(
        max_top_logprobs=0, token_ids=False, token_bytes=False, scoring=False, external=external
    )
    plugin = TeacherPlugin(
        name="far", options=Options, capabilities=capabilities, open=lambda options: None, model_folder=folder
    )  # type: ignore[arg-type]
    handle = TeacherHandle(plugin, Options(), skip_external=skip)

    def ask(question: Any) -> Any:
        if error is not None:
            raise error
        return ["said"]

    handle.ask = ask  # type: ignore[method-assign]
    tagged = SimpleNamespace(kind="far", options=Options())
    context: Any = SimpleNamespace(
        manifest=SimpleNamespace(teacher=tagged, baseline=None), teacher=handle, folder=tmp_path
    )
    found = teacher_access(context)
    assert found is not None
    return found


def test_a_hosted_teacher_answers_and_has_no_weights(tmp_path: Path) -> None:
    found = access(tmp_path, external=True)
    assert found.name == "far-1"
    assert found.answers([[{"role": "user", "content": "Hi"}]], 3) == ["said"]
    with pytest.raises(NotMeasured, match="no weights on this machine"):
        found.model_folder()


def test_a_teacher_that_may_not_or_can_not_be_asked_is_absent(tmp_path: Path) -> None:
    with pytest.raises(NotMeasured, match="SKIP_EXTERNAL=1"):
        access(tmp_path, external=True, skip=True).answers([], 3)
    with pytest.raises(NotMeasured, match="could not be asked: no credit"):
        access(tmp_path, external=True, error=ProviderError("no credit")).answers([], 3)
    assert access(tmp_path, external=False, skip=True).answers([], 3) == ["said"]


def test_a_local_teachers_weights_are_found(tmp_path: Path) -> None:
    assert access(tmp_path, external=False, folder=lambda options: tmp_path).model_folder() == tmp_path
    nothing: Any = SimpleNamespace(manifest=SimpleNamespace(teacher=None), teacher=SimpleNamespace(plugin=None))
    assert teacher_access(nothing) is None


@pytest.mark.parametrize(
    ("collect", "asked"),
    [
        ({}, False),
        ({"confirm_above_tokens": 19}, True),
        ({"confirm_above_tokens": 19, "prices": PricesConfig(input_per_million=1.0, output_per_million=1e6)}, True),
        ({"confirm_above_tokens": 19, "prices": PricesConfig(input_per_million=1.0, output_per_million=1.0)}, False),
        (None, False),
    ],
)
def test_many_answers_of_a_paid_teacher_are_asked_about_before(
    manifest: Path, collect: dict[str, Any] | None, asked: bool
) -> None:
    plugins = loader.load_plugins({})
    loaded = load_manifest(manifest, [], plugins, {})
    loaded = attrs.evolve(loaded, collect=None if collect is None else attrs.evolve(loaded.collect, **collect))
    questions: list[str] = []

    def confirm(question: str) -> None:
        questions.append(question)
        raise UserError("nothing was done")

    def context(**handle: Any) -> Any:
        teacher = SimpleNamespace(**({"external": True, "skip_external": False, "options": Options()} | handle))
        return SimpleNamespace(manifest=loaded, plugins=plugins, teacher=teacher, confirm=confirm)

    assert (consent_wanted(context()) is not None) is asked
    assert consent_wanted(context(external=False)) is None
    assert consent_wanted(context(skip_external=True)) is None
    if asked:
        with pytest.raises(UserError, match="nothing was done"):
            evaluate.run(context())
        assert "2 answers of the teacher, at most 20 tokens" in questions[0]


# The report


def test_a_report_has_both_sides_their_intervals_and_what_they_ran_in() -> None:
    report = {
        "benchmarks": {
            "json_validity": {
                "scores": {
                    "valid": {
                        "unit": "share of answers",
                        "student": {"value": 0.5, "interval_95": [0.25, 0.75], "items": 8},
                    }
                },
                "absent": {"teacher": "SKIP_EXTERNAL=1"},
                "ran_in": {"student": "llama.cpp"},
                "details": {},
            },
            "odd": 3,
        },
    }
    text = to_markdown([*benchmark_blocks(report)]).replace("\\", "")
    assert "| json_validity | valid | 0.5 (0.25 to 0.75) | – | – | 8 | share of answers |" in text
    assert "json_validity: student in llama.cpp." in text
    assert "json_validity: no figure of the teacher: SKIP_EXTERNAL=1" in text
    scores = report["benchmarks"]["json_validity"]["scores"]  # type: ignore[index]
    scores["valid"]["teacher"] = {"value": 1.0, "interval_95": [1.0, 1.0], "items": 10}
    assert "| 8 / 10 |" in to_markdown([*benchmark_blocks(report)]), "the student's, then the teacher's"
    assert list(benchmark_blocks({})) == []
