"""docs/benchmarks.md leads to a plugin that works: its blocks are written to a folder, listed, tested and planned."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[1] / "docs" / "benchmarks.md"
FILE = re.compile(r"^```\w+\n# (\S+\.(?:py|toml))\n(.*?)^```", re.MULTILINE | re.DOTALL)
BITNET = "from bitnet_cli.main import cli; cli()"
SMALL = """
manifest_version = 1
[run]
name = "small"
stages = ["storage", "baseline", "collect", "project", "train", "evaluate"]
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
"""


@pytest.fixture(scope="module")
def package(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder that a reader has at the end, installed as far as entry points go."""
    folder = tmp_path_factory.mktemp("benchmark")
    for name, content in FILE.findall(PAGE.read_text(encoding="utf-8")):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content, encoding="utf-8")
    (folder / "src/bitnet_benchmark_brevity/__init__.py").touch()
    (folder / "small.toml").write_text(SMALL)
    (folder / "prompts.txt").write_text("Tell me a story.\n")
    info = folder / "src" / "bitnet_benchmark_brevity-0.1.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bitnet-benchmark-brevity\nVersion: 0.1.0\n")
    (info / "entry_points.txt").write_text("[bitnet]\nbrevity = bitnet_benchmark_brevity.plugin\n")
    return folder


def run(package: Path, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, *command], cwd=package, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(package / "src")},
    )  # fmt: skip
    return done.stdout + done.stderr


def test_the_page_has_every_file_of_the_package(package: Path) -> None:
    files = {path.relative_to(package).as_posix() for path in package.rglob("*") if path.suffix in (".py", ".toml")}
    plugin = {f"src/bitnet_benchmark_brevity/{name}.py" for name in ("__init__", "plugin", "brevity")}
    assert files == {"pyproject.toml", "brevity.toml", "small.toml", "tests/test_brevity.py", *plugin}


@pytest.mark.slow
def test_its_own_test_passes(package: Path) -> None:
    assert "1 passed" in run(package, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests")


def test_it_is_listed_beside_the_built_ins(package: Path) -> None:
    rows = json.loads(run(package, "-c", BITNET, "plugins", "--json"))["plugins"]
    (row,) = (row for row in rows if row["name"] == "brevity")
    assert (row["kind"], row["status"], row["distribution"]) == ("benchmark", "ok", "bitnet-benchmark-brevity")


@pytest.mark.slow
def test_a_manifest_that_names_it_is_planned_and_checked(package: Path) -> None:
    planned = run(package, "-c", BITNET, "plan", "brevity.toml")
    assert "benchmark brevity: 3 answers of the teacher, at most 192 tokens" in planned
    wrong = run(package, "-c", BITNET, "plan", "brevity.toml", "--set", "evaluate.brevity.words=0")
    assert "evaluate.brevity.words: must be > 0" in wrong
    unknown = run(package, "-c", BITNET, "plan", "brevity.toml", "--set", 'evaluate.qei_quality="brevity.kep"')
    assert 'brevity has no score "kep"  → did you mean "kept"?' in unknown
