"""The GitHub workflows are sound, and cover what they must."""

import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]
WORKFLOW = ROOT / ".github/workflows/ci.yml"
PUBLISH = ROOT / ".github/workflows/publish.yml"


def test_actionlint_finds_nothing() -> None:
    linter = str(Path(sys.executable).with_name("actionlint"))
    result = subprocess.run([linter, str(WORKFLOW), str(PUBLISH)], capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout) == (0, "")


def test_published_wheels_say_where_the_project_lives(tmp_path: Path) -> None:
    commands = [step.get("run", "") for step in yaml.safe_load(PUBLISH.read_text())["jobs"]["build"]["steps"]]
    written = next(at for at, command in enumerate(commands) if ".ci/urls.py" in command)
    assert written < next(at for at, command in enumerate(commands) if command.startswith("uv build"))
    for file in (".ci/urls.py", *(f"packages/{path.name}/pyproject.toml" for path in (ROOT / "packages").iterdir())):
        (tmp_path / file).parent.mkdir(parents=True)
        shutil.copy(ROOT / file, tmp_path / file)
    subprocess.run([sys.executable, ".ci/urls.py", "https://example.org/a/b"], cwd=tmp_path, check=True)
    for file in (tmp_path / "packages").glob("*/pyproject.toml"):
        urls = tomllib.loads(file.read_text(encoding="utf-8"))["project"]["urls"]
        assert urls["Homepage"] == "https://example.org/a/b"
        for name, path in (("Documentation", "docs/index.md"), ("Changelog", "CHANGELOG.md")):
            assert urls[name] == f"https://example.org/a/b/blob/main/{path}"
            assert (ROOT / path).is_file()


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
