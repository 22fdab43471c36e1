"""How far are the dry run's predictions from what is really used? A student of 300 M parameters, on this machine.

    python -m benchmarks.dry_run

Predicts and measures every phase, with gradient checkpointing and without it, and prints one JSON object. On a CPU the
bytes of live tensors are counted, on CUDA those of the allocator. What is predicted is torch's own operators, so they
are what is measured: a CPU's compiled ones (docs/training-speed.md) take less. Beside them stands the process's own
peak so far, Python and torch included, which the operating system counts. Takes 7 GB.
"""

import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import torch

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.predict_and_measure import dry_run
from bitnet_core.hardware import peak_memory_bytes
from bitnet_core.kernels import cpu_training

SIZES: Any = {
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 18,
    "num_attention_heads": 16,
    "num_key_value_heads": 16,
    "batch_size": 2,
    "context": 512,
}


def main() -> None:
    os.environ[cpu_training.SWITCH] = "0"
    runs, at_start = {}, peak_memory_bytes(torch.device("cpu"))
    for checkpointing in (True, False):
        config = DryRunConfig(**SIZES, gradient_checkpointing=checkpointing, measure="always")
        report = dry_run(config, lambda done, total, note: print(f"{done}/{total} {note}", file=sys.stderr))
        del report["what_fits"]
        report["resident_peak_bytes"] = peak_memory_bytes(torch.device("cpu"))
        runs["with checkpointing" if checkpointing else "without checkpointing"] = report
    errors = [
        abs(phase[key])
        for report in runs.values()
        for phase in report["phases"].values()
        for key in ("formula_error", "fake_tensor_error")
    ]
    machine = {"platform": f"{platform.system()} {platform.machine()}", "threads": torch.get_num_threads()}
    versions = {name: version(name) for name in ("torch", "transformers", "bitnet-core")}
    figures = {"largest_error": max(errors), "resident_bytes_at_start": at_start}
    print(json.dumps(figures | {"runs": runs, "machine": machine, "versions": versions}, indent=1))


if __name__ == "__main__":
    main()
