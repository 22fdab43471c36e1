"""A stranger's plugin: wheels of the workspace and of the example, in a fresh environment, run from a manifest."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def uv(*arguments: str, cwd: Path = ROOT) -> str:
    result = subprocess.run(["uv", *arguments], cwd=cwd, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A fresh virtual environment with the wheels of all four packages and of the echo example."""
    folder = tmp_path_factory.mktemp("stranger")
    wheels = folder / "wheels"
    uv("build", "--all-packages", "--wheel", "--out-dir", str(wheels))
    uv("build", "--wheel", "--out-dir", str(wheels), str(ROOT / "examples/bitnet-provider-echo"))
    # The lock's versions, so that nothing is downloaded that the workspace doesn't have already.
    locked = uv("export", "--quiet", "--no-hashes", "--no-emit-workspace", "--no-dev", "--no-group", "teacher")
    (folder / "constraints.txt").write_text(locked)
    uv("venv", "--quiet", "--python", sys.executable, str(folder / "venv"))
    uv(
        "pip", "install", "--quiet", "--python", str(folder / "venv"), "--constraint", str(folder / "constraints.txt"),
        *map(str, wheels.glob("*.whl")),
    )  # fmt: skip
    return folder


def bitnet(environment: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    scripts = environment / "venv" / ("Scripts" if os.name == "nt" else "bin")
    return subprocess.run(
        [str(scripts / "bitnet"), *arguments], cwd=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.slow
def test_plugins_lists_it_beside_the_built_ins(environment: Path) -> None:
    listing = json.loads(bitnet(environment, "plugins", "--json").stdout)["plugins"]
    rows = {row["name"]: row for row in listing if row["kind"] == "teacher"}
    assert rows["echo"]["distribution"] == "bitnet-provider-echo"
    assert rows["echo"]["status"] == "ok"
    # The fresh environment lacks the local teacher's extra: said, with the line that brings it.
    assert rows["local"]["status"] == "missing extra"
    assert "bitnet-providers[local]" in rows["local"]["fix"]


@pytest.mark.slow
def test_it_runs_from_a_manifest(environment: Path) -> None:
    (environment / "prompts.txt").write_text("Say hello.\nCount to three.\n")
    (environment / "echo.toml").write_text(
        """
        manifest_version = 1
        [run]
        name = "echo"
        stages = ["storage", "baseline", "collect"]
        [store]
        kind = "local"
        root = "runs"
        [teacher]
        kind = "echo"
        [baseline]
        prompts = "prompts.txt"
        [collect]
        prompts = "prompts.txt"
        top_k = 9
        """
    )
    result = bitnet(environment, "run", "echo.toml")
    assert result.returncode == 0, result.stdout + result.stderr
    baseline = json.loads((environment / "runs/echo/reports/teacher_baseline.json").read_text())
    assert "hello" in baseline["answers"][0]["text"]
    assert list((environment / "runs/echo/raw").glob("shard_*.parquet"))


def test_the_wheel_brings_the_manifests(environment: Path) -> None:
    result = bitnet(environment, "init", "mine")
    assert result.returncode == 0, result.stdout + result.stderr
    for name in (".env.example", "manifests/quickstart.toml", "manifests/data/corpus.jsonl"):
        assert (environment / "mine" / name).read_bytes() == (ROOT / name).read_bytes()
    listed = json.loads(bitnet(environment, "manifests", "ls", "--json").stdout)["manifests"]
    assert {row["name"] for row in listed} == {path.stem for path in (ROOT / "manifests").glob("*.toml")}
