"""A training on two machines, which are two torchruns on the loopback here: one dies in the middle, and it goes on."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from click.testing import CliRunner

from bitnet_cli import run
from bitnet_cli.main import cli
from bitnet_cli.train_worker import worked
from bitnet_core.errors import CoreError
from bitnet_core.model.read_checkpoint import load_model, read_record
from tiny_run import tiny_settings

QUICKSTART = Path(__file__).parents[1] / "manifests/quickstart.toml"
STEPS, STOPPED = 6, 4
HELD = f"""
import os, time

if os.environ.get("RANK") == "1":  # of the second machine's worker: it comes to a step and no further
    from bitnet_cli.stages import train as stage

    from_context = stage.job_of

    def job_of(context):
        from bitnet_core.training import loop

        saved = loop.save

        def save(session, state, layers):
            layers = saved(session, state, layers)
            while state.step >= {STOPPED}:
                time.sleep(1)
            return layers

        loop.save = save
        return from_context(context)

    stage.job_of = job_of
"""
"""What Python runs before the worker, which is started by the same command with and without it."""


@pytest.fixture
def copies(tiny_place: Path, tmp_path: Path) -> Callable[[str], tuple[Path, Path]]:
    """``copies(name)``: a manifest, and its run folder where everything is done up to the training."""

    def copy(name: str) -> tuple[Path, Path]:
        root = tmp_path / name
        folder = root / "runs/quickstart"
        left_out = shutil.ignore_patterns("checkpoints", "metrics.jsonl")
        shutil.copytree(tiny_place / "runs/quickstart", folder, ignore=left_out)
        for stage in ("train", "evaluate", "export", "report"):
            shutil.rmtree(folder / "stages" / stage, ignore_errors=True)
        tables: dict[str, Any] = {"extends": str(QUICKSTART)}
        for key, value in (
            tiny_settings(root, tiny_place / "teacher") | {"train.steps": STEPS, "train.keep_checkpoints": 9}
        ).items():
            table, _, name = key.partition(".")
            tables.setdefault(table, {})[name] = str(value) if isinstance(value, Path) else value
        (root / "manifest.toml").write_text(tomli_w.dumps(tables))
        return root / "manifest.toml", folder

    return copy


class Machines:
    """Two torchruns that meet on a port of the loopback."""

    def __init__(self) -> None:
        self.started: list[subprocess.Popen[str]] = []

    def start(self, manifest: Path, **environment: str) -> "list[subprocess.Popen[str]]":
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        command = [
            *(sys.executable, "-m", "torch.distributed.run", "--nnodes", "2", "--nproc-per-node", "1"),
            *("--rdzv-backend", "c10d", "--rdzv-endpoint", f"127.0.0.1:{port}", "--rdzv-id", "tests"),
            *("--local-addr", "127.0.0.1", "-m", "bitnet_cli.train_worker", str(manifest)),
        ]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"} | environment
        pair = [
            subprocess.Popen(
                command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
                start_new_session=True,
            )
            for _ in range(2)
        ]  # fmt: skip
        self.started += pair
        return pair

    def kill(self, process: "subprocess.Popen[str]") -> None:
        """The power goes: torchrun and its worker, which has a session of its own, at once."""
        for pid in (*_children(process.pid), process.pid):
            os.kill(pid, signal.SIGKILL)

    def stop(self) -> None:
        for process in self.started:
            if process.poll() is None:
                self.kill(process)
                process.communicate()


def _children(pid: int) -> list[int]:
    try:
        return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


@pytest.fixture
def machines() -> Iterator[Machines]:
    started = Machines()
    yield started
    started.stop()


def wait_for(what: Callable[[], object], processes: "list[subprocess.Popen[str]]") -> None:
    until = time.monotonic() + 240
    while not what():
        for process in processes:
            assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < until
        time.sleep(0.05)


def last_row(folder: Path) -> Mapping[str, Any]:
    row: Mapping[str, Any] = json.loads((folder / "logs/metrics.jsonl").read_text().splitlines()[-1])
    return row


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="/proc names a process's children")
def test_a_machine_dies_and_the_training_goes_on(
    copies: Callable[[str], tuple[Path, Path]], machines: Machines, tmp_path: Path
) -> None:
    manifest, folder = copies("two")
    (tmp_path / "held").mkdir()
    (tmp_path / "held/sitecustomize.py").write_text(HELD)

    pair = machines.start(manifest, PYTHONPATH=str(tmp_path / "held"))
    stopped = folder / f"checkpoints/step_{STOPPED}"
    wait_for(stopped.exists, pair)
    for process in pair:  # which of the two has the second worker is not said beforehand
        if "RANK=1" in Path(f"/proc/{_children(process.pid)[0]}/environ").read_text().split("\0"):
            machines.kill(process)
    said = [process.communicate()[0] for process in pair]
    assert all(process.returncode for process in pair)
    told = "".join(said)
    assert "another process of this training is gone" in told
    assert "start the same command again on every machine: it goes on from the last checkpoint" in told
    assert "bitnet_core/" not in told  # torchrun shows a traceback of its own, and the worker none

    check_parts(folder, tmp_path / "copied")

    pair = machines.start(manifest)
    said = [process.communicate()[0] for process in pair]
    assert [process.returncode for process in pair] == [0, 0], said
    assert f"trained {STEPS} steps" in "".join(said)
    assert f"{STOPPED}/{STEPS}" in "".join(said)  # where it began
    assert not list(folder.glob("checkpoints/*/sharded"))

    # `bitnet run` finds it finished; a training on one machine that nothing interrupted comes to the same.
    run(manifest, stages=["train"], quiet=True)
    summary = json.loads((folder / "stages/train/done.json").read_text())["summary"]
    assert summary["resumed_from"] == f"step_{STEPS}"
    manifest, alone = copies("alone")
    run(manifest, stages=["train"], quiet=True)
    for name in ("seen_tokens", "step"):
        assert last_row(folder)[name] == last_row(alone)[name]
    assert last_row(folder)["loss"] == pytest.approx(last_row(alone)["loss"], rel=0.02)
    assert last_row(folder)["validation_kl"] == pytest.approx(last_row(alone)["validation_kl"], rel=0.02)


def check_parts(folder: Path, copy: Path) -> None:
    """What a stopped training leaves: parts, of which a plain folder can be made, and not of damaged ones."""
    shutil.copytree(folder, copy)
    newest = copy / f"checkpoints/step_{STOPPED}"
    assert read_record(newest)["layout"] == "sharded"
    with pytest.raises(CoreError, match="in parts") as refused:
        load_model(newest)
    assert f"bitnet checkpoint {newest}" in refused.value.fix

    part = next((copy / "checkpoints/step_2/sharded").glob("shard-00002-*"))
    part.write_bytes(part.read_bytes()[:-1])
    result = CliRunner().invoke(cli, ["checkpoint", str(copy / "checkpoints/step_2")])
    assert result.exit_code == 2
    assert "not a complete checkpoint" in result.output

    result = CliRunner().invoke(cli, ["checkpoint", str(newest)])
    assert result.exit_code == 0, result.output
    assert {file.name for file in newest.iterdir()} >= {"model.safetensors", "training.safetensors", "config.json"}
    assert not (newest / "sharded").exists()
    load_model(newest)


@pytest.mark.parametrize(
    ("lost", "changed", "why"),
    [
        ("project", (), "do the stages before it first, with `bitnet run`"),
        (
            "",
            ("train.learning_rate=0.5",),
            r"other settings have been trained here \(train.learning_rate",
        ),
    ],
)
def test_what_a_worker_refuses(
    copies: Callable[[str], tuple[Path, Path]],
    tiny_place: Path,
    capsys: pytest.CaptureFixture[str],
    lost: str,
    changed: tuple[str, ...],
    why: str,
) -> None:
    manifest, folder = copies("refused")
    if lost:
        shutil.rmtree(folder / "stages" / lost)
        shutil.rmtree(folder / "data")
    else:
        shutil.copytree(tiny_place / "runs/quickstart/stages/train", folder / "stages/train")
        shutil.copytree(tiny_place / "runs/quickstart/checkpoints", folder / "checkpoints")
    before = sorted(filter(Path.is_file, folder.rglob("*")))
    assert worked(manifest, (*changed, "train.steps=4"), None, within_run=False) == 2
    assert re.search(why, capsys.readouterr().err)
    assert sorted(filter(Path.is_file, folder.rglob("*"))) == before
