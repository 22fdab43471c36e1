"""The dry run: each phase's peak memory predicted in two ways and, where the model fits, measured."""

import os
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.calibration_memory import calibrated_start
from bitnet_core.dry_run.communication import communication
from bitnet_core.dry_run.deployed_sizes import deployed
from bitnet_core.dry_run.formulas import predict, sizes_of
from bitnet_core.dry_run.live_bytes import LiveBytes
from bitnet_core.dry_run.run_phases import run_phases
from bitnet_core.dry_run.what_fits_table import CAPACITIES_GB, what_fits
from bitnet_core.errors import CoreError
from bitnet_core.hardware import autocast_dtype

OnProgress = Callable[[int, int, str], None]
_OVERHEAD = 2 << 30
"""Beside the tensors: Python, torch."""
_SLACK = {"cuda": 1.05, "cpu": 1.25}
"""Gaps between tensors, and kernels' own scratch space: a CPU's resident set was a fifth above the tensors."""


class CudaAllocator:
    """Peak bytes as CUDA's caching allocator counts them."""

    def __init__(self, device: torch.device) -> None:
        self.device = device

    def reset(self) -> None:
        torch.cuda.reset_peak_memory_stats(self.device)

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated(self.device)


def dry_run(config: DryRunConfig, on_progress: OnProgress = lambda done, total, note: None) -> dict[str, Any]:
    """A report in plain JSON values, bytes per phase. The model is never made smaller than it is said to be.

    Raises CoreError where it is to be measured (`measure = "always"`) and doesn't fit.
    """
    device = torch.device("cuda", 0) if torch.cuda.is_available() else torch.device("cpu")
    compute_bytes = autocast_dtype(config.precision, device).itemsize
    on_progress(0, 3, "formulas")
    formulas = predict(config, compute_bytes=compute_bytes, on_cpu=device.type == "cpu")
    why_not = obstacle(config, device, max(formulas.values()))
    if why_not and config.measure == "always":
        raise CoreError(
            f'dry_run.measure = "always", but {why_not}. Nothing was run',
            'set dry_run.measure = "auto" for the prediction alone, or take a machine with more memory',
        )

    on_progress(1, 3, "fake tensors")
    started = time.perf_counter()
    fake = predict_with_fakes(config, device)
    seconds = time.perf_counter() - started

    measured: dict[str, int] = {}
    if why_not is None:
        on_progress(2, 3, f"running it on {device.type}")
        measured = measure(config, device)
    on_progress(3, 3, "measured" if measured else f"predicted, not measured: {why_not}")
    return {
        "model": attrs.asdict(config),
        "parameters": sizes_of(config).total,
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else "CPU",
        "compute_bytes": compute_bytes,
        "phases": {name: _phase(formulas[name], fake.get(name), measured.get(name)) for name in formulas},
        "measured": bool(measured),
        "not_measured_because": why_not,
        "fake_tensors_left_out": _left_out(config),
        "fake_tensor_seconds": seconds,
        "gpu_sizes_gb": list(CAPACITIES_GB),
        "what_fits": what_fits(config, compute_bytes),
        "communication": communication(config),
        "deployed": deployed(config, compute_bytes),
        "calibrated_start": calibrated_start(config, compute_bytes),
    }


def predict_with_fakes(config: DryRunConfig, device: torch.device) -> dict[str, int]:
    """Peak bytes by phase, of the real code on tensors without data."""
    meter = LiveBytes(fake=True)
    with FakeTensorMode(), meter:
        return run_phases(config, device, meter, train=_left_out(config) is None)


def measure(config: DryRunConfig, device: torch.device) -> dict[str, int]:
    """Peak bytes by phase, really run. On a CPU the live tensors are counted: a resident set holds much else."""
    if device.type == "cuda":
        return run_phases(config, device, CudaAllocator(device))
    meter = LiveBytes()
    with meter:
        return run_phases(config, device, meter)


def obstacle(config: DryRunConfig, device: torch.device, needed: int) -> str | None:
    """Why the phases can't be run for real here; None: they can."""
    if config.measure == "never":
        return 'dry_run.measure is "never"'
    if config.devices > 1:
        return f"it is measured on one device, and devices = {config.devices}"
    if config.optimizer == "adamw8bit" and find_spec("bitsandbytes") is None:
        return "adamw8bit needs bitsandbytes: pip install 'bitnet-core[8bit]'"
    there = free_bytes(device)
    if needed * _SLACK[device.type] + _OVERHEAD > there:
        return f"it needs {needed / 1e9:.1f} GB, and this {device.type.upper()} has {there / 1e9:.1f} GB free"
    return None


def free_bytes(device: torch.device) -> int:
    """Memory that can be had now, the container's limit included."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0]
    try:
        lines = dict(line.split(":", 1) for line in Path("/proc/meminfo").read_text().splitlines())
        free = int(lines["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError):  # no Linux: half of what is built in
        free = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2
    try:
        limit, used = (int(Path(f"/sys/fs/cgroup/memory.{name}").read_text()) for name in ("max", "current"))
    except (OSError, ValueError):  # no container, or one without a limit ("max")
        return free
    return min(free, limit - used)


def _left_out(config: DryRunConfig) -> str | None:
    """Why the training phases are predicted by formula alone; None: they aren't."""
    if config.optimizer == "adamw8bit":
        return "bitsandbytes' kernels don't take fake tensors: training by formula alone"
    if config.devices > 1:
        return f"training on {config.devices} devices by formula alone"
    return None


def _phase(formula: int, fake: int | None, measured: int | None) -> dict[str, Any]:
    return {
        "formula_bytes": formula,
        "fake_tensor_bytes": fake,
        "measured_bytes": measured,
        "formula_over_fake": None if fake is None else formula / fake - 1,
        "formula_error": None if measured is None else formula / measured - 1,
        "fake_tensor_error": None if fake is None or measured is None else fake / measured - 1,
    }
