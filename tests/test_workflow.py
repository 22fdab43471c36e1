"""The GitHub workflow is sound, and covers what it must."""

import subprocess
import sys
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"


def test_actionlint_finds_nothing() -> None:
    result = subprocess.run(
        [str(Path(sys.executable).with_name("actionlint")), str(WORKFLOW)], capture_output=True, text=True, check=False
    )
    assert (result.returncode, result.stdout) == (0, "")


def test_every_package_is_tested_on_the_oldest_and_newest_python() -> None:
    matrix = yaml.safe_load(WORKFLOW.read_text())["jobs"]["package"]["strategy"]["matrix"]
    packages = {path.name.removeprefix("bitnet-") for path in (ROOT / "packages").iterdir()}
    assert set(matrix["package"]) == packages
    assert matrix["python"][0] == "3.11"
    assert len(matrix["python"]) == 2


def test_wheels_are_installed_on_both_and_tried_on_other_systems() -> None:
    jobs = yaml.safe_load(WORKFLOW.read_text())["jobs"]
    assert jobs["wheels"]["strategy"]["matrix"]["python"] == jobs["package"]["strategy"]["matrix"]["python"]
    assert {os.split("-")[0] for os in jobs["other-systems"]["strategy"]["matrix"]["os"]} == {"windows", "macos"}
    commands = [step.get("run", "") for job in jobs.values() for step in job["steps"]]
    named = {word for command in commands for word in command.split() if word.startswith((".ci/", "packages/bitnet-"))}
    assert ".ci/wheels.py" in named
    assert [path for path in named if "${{" not in path and not (ROOT / path).exists()] == []


def test_no_job_is_given_a_secret() -> None:
    assert "secrets." not in WORKFLOW.read_text()
