"""docs/write-a-loss.md leads to a plugin whose tests pass, and which trains a student."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from bitnet_cli import run
from bitnet_cli.plugins.load import load_plugins
from tiny_run import tiny_settings

PAGE = Path(__file__).parents[1] / "docs" / "write-a-loss.md"
FILE = re.compile(r"^```\w+\n# (\S+\.(?:py|toml))\n(.*?)^```", re.MULTILINE | re.DOTALL)


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a reader has at the end, installed as far as entry points go."""
    folder = tmp_path_factory.mktemp("loss")
    for name, content in FILE.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    info = folder / "src/bitnet_loss_variation-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bitnet-loss-variation\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[bitnet]\nvariation = bitnet_loss_variation.plugin\n")
    return folder


@pytest.mark.slow
def test_its_tests_pass(package: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-o", "pythonpath=src", "tests"],
        cwd=package, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "4 passed" in done.stdout, done.stdout + done.stderr


@pytest.mark.slow
def test_a_student_is_trained_with_it(package: Path, tiny_place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(package / "src"))
    assert [row.status for row in load_plugins({}).all if row.name == "variation"] == ["ok"]
    settings = tiny_settings(tiny_place, tiny_place / "teacher") | {"run.name": "variation", "loss.kind": "variation"}
    stages = ("storage", "collect", "project", "calibrate", "train")
    folder = run(tiny_place / "manifests/quickstart.toml", settings, stages=stages, quiet=True)
    rows = [json.loads(line) for line in (folder / "logs/metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    assert 0 < rows[-1]["kd"] < 1
    assert rows[-1]["loss"] == pytest.approx(rows[-1]["kd"] + 0.1 * rows[-1]["ce"], rel=1e-4)
