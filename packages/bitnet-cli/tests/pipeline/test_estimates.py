"""How long a run will take, by the speed that its teacher was measured to have."""

import json
from pathlib import Path

import attrs
import pytest

from bitnet_cli.commands.distil import OwnCase, own_manifest
from bitnet_cli.environment import cpu_name
from bitnet_cli.manifest import Manifest
from bitnet_cli.manifest.load import load_manifest
from bitnet_cli.pipeline.estimates import (
    FIXED_SECONDS,
    Measured,
    expected_seconds,
    fit_into,
    least_minutes,
    measured_speed,
    shown_time,
    student_share,
)
from bitnet_cli.plugins.load import load_plugins
from bitnet_providers.prompts.load_prompts import Inputs, Prompt, Text

SPEED = Measured(10.0, "mine")
PROMPTS = Inputs(tuple(Prompt(str(n), ({"role": "user", "content": "x" * 400},)) for n in range(100)), ())


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    path = tmp_path / "m.toml"
    path.write_text(own_manifest(OwnCase(teacher="org/tea", prompts="p.txt"), "mine"))
    return load_manifest(path, (), load_plugins({}), {})


def baseline(root: Path, run: str, model: str, speed: float, cpu: str) -> None:
    (root / run / "reports").mkdir(parents=True)
    described = {"model": model, "model_folder": str(root)}
    report = {"tokens_per_second": speed, "teacher": described}
    (root / run / "reports/teacher_baseline.json").write_text(json.dumps(report))
    (root / run / "environment.json").write_text(json.dumps({"cpu": cpu}))


def test_the_speed_is_that_of_the_same_teacher_on_the_same_processor(manifest: Manifest, tmp_path: Path) -> None:
    baseline(tmp_path, "other-model", "coffee", 1.0, cpu_name())
    baseline(tmp_path, "other-machine", "tea", 2.0, "another")
    assert measured_speed(manifest, tmp_path / "mine") is None
    baseline(tmp_path, "beside", "tea", 3.0, cpu_name())
    assert measured_speed(manifest, tmp_path / "mine") == Measured(3.0, "beside", str(tmp_path))
    baseline(tmp_path, "mine", "tea", 4.0, cpu_name())
    assert measured_speed(manifest, tmp_path / "mine") == Measured(4.0, "mine", str(tmp_path))
    assert measured_speed(manifest, None) is None


def test_each_stage_by_what_it_does(manifest: Manifest) -> None:
    expected = expected_seconds(manifest, PROMPTS, SPEED)
    assert expected["baseline"] == 8 * 64 / 10
    assert expected["collect"] == pytest.approx(100 * 128 / 4.0 / 10)
    # 100 tokens of a prompt and 128 of its answer in each of 200 × 4 documents
    assert expected["train"] == pytest.approx(200 * 4 * 228 / 4.2 / 10)
    assert expected["evaluate"] == pytest.approx(5000 * 0.2 / 10)  # ten held-out documents
    many = attrs.evolve(PROMPTS, prompts=PROMPTS.prompts * 5)
    assert expected_seconds(manifest, many, SPEED)["evaluate"] == pytest.approx(5000 * 50 / 71 / 10)
    texts = Inputs((), (Text("a", "x" * 800), Text("b", "x" * 80_000)))
    assert expected_seconds(manifest, texts, SPEED)["collect"] == pytest.approx((200 + 512) / 40 / 10)
    assert expected_seconds(manifest, PROMPTS, attrs.evolve(SPEED, tokens_per_second=20.0))["train"] == pytest.approx(
        expected["train"] / 2
    )


def test_a_student_of_fewer_layers_is_quicker(manifest: Manifest, tmp_path: Path) -> None:
    assert manifest.student is not None
    (tmp_path / "config.json").write_text('{"num_hidden_layers": 30}')
    speed = attrs.evolve(SPEED, model_folder=str(tmp_path))
    assert student_share(manifest, speed) == 1.0
    few = attrs.evolve(manifest, student=attrs.evolve(manifest.student, layers=(0, 1, 29)))
    assert student_share(few, speed) == pytest.approx(0.1)
    assert student_share(few, SPEED) == 1.0
    assert "calibrate" in expected_seconds(manifest, PROMPTS, SPEED)
    assert "calibrate" not in expected_seconds(few, PROMPTS, SPEED), "a subset of the layers starts by least squares"


@pytest.mark.parametrize("minutes", [30.0, 120.0])
def test_what_fits_takes_about_the_time(manifest: Manifest, minutes: float) -> None:
    assert manifest.train is not None
    assert manifest.collect is not None
    fit = fit_into(minutes, manifest, PROMPTS, SPEED)
    assert fit is not None
    train = attrs.evolve(manifest.train, steps=fit.steps, budget_tokens=fit.budget_tokens)
    inputs = attrs.evolve(PROMPTS, prompts=PROMPTS.prompts[: fit.max_prompts])
    expected = expected_seconds(attrs.evolve(manifest, train=train), inputs, SPEED)
    assert sum(expected.values()) + FIXED_SECONDS == pytest.approx(minutes * 60, rel=0.02)
    assert expected["collect"] <= 0.4 * minutes * 60


def test_a_collection_that_is_too_long_is_cut_and_little_time_is_told(manifest: Manifest) -> None:
    many = attrs.evolve(PROMPTS, prompts=PROMPTS.prompts * 100)
    fit = fit_into(60.0, manifest, many, SPEED)
    assert fit is not None
    assert fit.max_prompts == int(0.4 * 3600 * 4.0 * 10 / 128)
    assert fit_into(60.0, manifest, PROMPTS, SPEED).max_prompts is None  # type: ignore[union-attr]
    assert fit_into(2.0, manifest, PROMPTS, SPEED) is None
    least = least_minutes(manifest, PROMPTS, SPEED)
    assert least is not None
    assert fit_into(least, manifest, PROMPTS, SPEED) is not None
    assert fit_into(least / 1.3, manifest, PROMPTS, SPEED) is None
    assert least_minutes(manifest, PROMPTS, Measured(1e-9, "mine")) is None


def test_times_for_people() -> None:
    assert [shown_time(each) for each in (0.2, 40.4, 600, 9000, 1e7)] == [
        "about 1 s", "about 40 s", "about 10 minutes", "about 2.5 hours", "about 116 days",
    ]  # fmt: skip
