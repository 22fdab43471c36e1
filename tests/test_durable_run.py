"""A real teacher's run with its durable place in a bucket: killed in training, continued on another machine."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from bitnet_storage.config import S3StoreConfig
from bitnet_storage.plugin import _open_s3
from bitnet_storage.testing.seaweedfs import Server, seaweedfs

ROOT = Path(__file__).parents[1]
SETTINGS = (
    "--set", "train.steps=8", "--set", "train.checkpoint_every=2", "--set", "train.keep_checkpoints=2",
    "--set", 'run.stages=["storage", "collect", "project", "train"]',
)  # fmt: skip


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("s3")) as running:
        yield running


def manifest(server: Server, folder: Path, work: Path) -> Path:
    path = folder / f"{work.name}.toml"
    path.write_text(
        f"""
        manifest_version = 1
        extends = "{ROOT / "manifests/ci.toml"}"
        [store]
        kind = "s3"
        bucket = "{server.bucket}"
        prefix = "durable runs"
        endpoint = "{server.endpoint}"
        access_key_env = "TEST_S3_KEY"
        secret_key_env = "TEST_S3_SECRET"
        work = "{work}"
        push_every = 0.001
        lease_seconds = 4
        """
    )
    return path


@pytest.mark.slow
def test_a_run_that_was_killed_goes_on_elsewhere_with_the_same_results(
    bitnet: Any, server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEST_S3_KEY", server.access_key)
    monkeypatch.setenv("TEST_S3_SECRET", server.secret_key)
    store = _open_s3(
        S3StoreConfig(
            bucket=server.bucket, prefix="durable runs", endpoint=server.endpoint, work=tmp_path / "looking",
            access_key_env="TEST_S3_KEY", secret_key_env="TEST_S3_SECRET",
        )
    )  # fmt: skip
    first = manifest(server, tmp_path, tmp_path / "first machine")
    command = [str(Path(sys.executable).with_name("bitnet")), "run", str(first), *SETTINGS]
    with (tmp_path / "output.txt").open("wb") as output:
        process = subprocess.Popen(command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT)
        until = time.monotonic() + 300
        while not durable_in_training(store):
            assert process.poll() is None, (tmp_path / "output.txt").read_text()
            assert time.monotonic() < until
            time.sleep(0.05)
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    output_text = (tmp_path / "output.txt").read_text()
    assert f"to s3://{server.bucket}/durable runs" in output_text

    second = manifest(server, tmp_path, tmp_path / "second machine")
    result = bitnet("run", str(second), *SETTINGS)
    assert result.returncode == 0, result.stdout + result.stderr
    lines = result.stdout.splitlines()
    assert any(line.startswith("pulled ") for line in lines), result.stdout
    for stage in ("collect", "project"):
        assert any(line.startswith(stage) and "skipped: done" in line for line in lines), result.stdout
    assert any(line.startswith("train") and "resuming" in line for line in lines), result.stdout

    unbroken = bitnet("run", "manifests/ci.toml", *SETTINGS, DRIVE_ROOT=str(tmp_path / "unbroken"))
    assert unbroken.returncode == 0, unbroken.stdout + unbroken.stderr
    here, there = tmp_path / "second machine/ci", tmp_path / "unbroken/ci"
    for pattern in ("data/*.parquet", "checkpoints/step_8/*.safetensors"):
        names = sorted(path.relative_to(there).as_posix() for path in there.glob(pattern))
        assert names
        for name in names:
            assert (here / name).read_bytes() == (there / name).read_bytes(), name
    assert outputs(here, "project", "data/kd_shard_*.parquet") == outputs(there, "project", "data/kd_shard_*.parquet")
    said, said_unbroken = (pq.read_table(folder / "raw/shard_000.parquet") for folder in (here, there))
    assert said["token_ids"].equals(said_unbroken["token_ids"])
    assert said["candidate_logprobs"].equals(said_unbroken["candidate_logprobs"])

    # All of it is in the bucket now, and a third machine has nothing to do.
    third = manifest(server, tmp_path, tmp_path / "second machine")
    again = bitnet("run", str(third), *SETTINGS)
    (trained,) = (line for line in again.stdout.splitlines() if line.startswith("train"))
    assert "skipped" in trained
    snapshot = store.snapshot("ci")  # type: ignore[attr-defined]
    assert snapshot.files["checkpoints/step_8/model.safetensors"].sha256 == digest(there)
    assert {path.split("/")[1] for path in snapshot.files if path.startswith("checkpoints/step_8/")} == {"step_8"}


def durable_in_training(store: Any) -> bool:
    """Whether the bucket shows a training that has saved something and isn't done."""
    snapshot = store.snapshot("ci")
    return (
        snapshot is not None
        and any(path.endswith("training.json") for path in snapshot.files)
        and "stages/train/done.json" not in snapshot.files
    )


def outputs(folder: Path, stage: str, name: str) -> str:
    digest_of: str = json.loads((folder / f"stages/{stage}/done.json").read_text())["outputs"][name]["digest"]
    return digest_of


def digest(folder: Path) -> str:
    import hashlib

    return hashlib.sha256((folder / "checkpoints/step_8/model.safetensors").read_bytes()).hexdigest()
