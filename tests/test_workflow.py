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


def test_no_job_is_given_a_secret() -> None:
    assert "secrets." not in WORKFLOW.read_text()
