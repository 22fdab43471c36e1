"""Training by several processes on this machine: torchrun starts them, the first one talks to us in JSON lines.

Across machines, start the same worker with torchrun on each: docs/many-machines.md.
"""

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from bitnet_cli.errors import UserError

WORKER = "bitnet_cli.train_worker"


def train_on_devices(devices: int, folder: Path, on_progress: Callable[[int, int, str], None]) -> dict[str, Any]:
    """Train what the run folder's manifest says (see `train_worker`) in `devices` processes; returns the summary.

    Raises UserError for the training's own errors, and RuntimeError where a process died without a message.
    """
    _check_devices(devices)
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={devices}"]
    log = folder / "logs" / "devices.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("w") as errors:
        process = subprocess.Popen(
            [*command, "-m", WORKER, str(folder / "manifest.resolved.toml"), "--within-run"],
            stdout=subprocess.PIPE,
            stderr=errors,
            text=True,
            start_new_session=True,  # so that all of it can be stopped together
        )
        try:
            result = _listen(process, on_progress)
            process.wait()
        except BaseException:
            _stop(process)
            raise
    if result is None:
        raise RuntimeError(f"a training process ended with code {process.returncode}; its messages are in {log}")
    if "error" in result:
        raise UserError(result["error"]["why"], result["error"]["fix"])
    return dict(result["summary"])


def _listen(process: "subprocess.Popen[str]", on_progress: Callable[[int, int, str], None]) -> dict[str, Any] | None:
    """Pass progress on until the summary or the error, which is returned."""
    assert process.stdout is not None
    for line in process.stdout:
        try:
            event = json.loads(line)
        except ValueError:
            continue  # a library printed something
        if not isinstance(event, dict):
            continue
        if "progress" in event:
            on_progress(*event["progress"])
        elif "summary" in event or "error" in event:
            return event
    return None


def _check_devices(devices: int) -> None:
    import torch

    there = torch.cuda.device_count()
    if there and devices > there:
        raise UserError(f"train.devices = {devices}, but this machine has {there} GPUs", f"set train.devices = {there}")


def _stop(process: "subprocess.Popen[str]") -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGTERM)
    try:
        process.wait(timeout=20)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
