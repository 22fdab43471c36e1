"""How far are the dry run's predictions from what is really used? A student of 300 M parameters, on this machine.

    python -m benchmarks.dry_run [--model 300m]
    python -m benchmarks.dry_run --model 7b      Llama 2's 7B: 16 bytes a weight, so 115 GB

Predicts and measures every phase, with gradient checkpointing and without it (a 7B: with it alone), and prints one JSON
object. On a CPU the bytes of live tensors are counted, on CUDA those of the allocator. What is predicted is torch's own
operators, so they are what is measured: a CPU's compiled ones (docs/training-speed.md) take less. Beside them stands
the process's own peak so far, Python and torch included, which the operating system counts. 300m takes 7 GB. Where a
7B doesn't fit, as many of its layers are taken as do: `layers` says how many of how many.
"""

import argparse
import json
import os
import platform
import sys
from importlib.metadata import version
from typing import Any

import attrs
import torch

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import predict
from bitnet_core.dry_run.predict_and_measure import dry_run, obstacle
from bitnet_core.hardware import autocast_dtype, best_device, peak_memory_bytes
from bitnet_core.kernels import cpu_training

MODELS: dict[str, dict[str, Any]] = {
    "300m": {
        "hidden_size": 1024, "intermediate_size": 2816, "num_hidden_layers": 18, "num_attention_heads": 16,
        "num_key_value_heads": 16, "batch_size": 2, "context": 512,
    },
    "7b": {"precision": "auto"},
    "tiny": {
        "vocab_size": 1000, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2,
        "num_attention_heads": 2, "num_key_value_heads": 2, "context": 32,
    },
}  # fmt: skip


def that_fits(config: DryRunConfig, device: torch.device) -> DryRunConfig:
    """With as many layers as there is memory for."""
    compute_bytes = autocast_dtype(config.precision, device).itemsize
    for layers in range(config.num_hidden_layers, 0, -1):
        fewer = attrs.evolve(config, num_hidden_layers=layers)
        needed = max(predict(fewer, compute_bytes=compute_bytes, on_cpu=device.type == "cpu").values())
        if obstacle(fewer, device, needed) is None:
            return fewer
    raise SystemExit("dry_run: not even one layer fits into the memory that is free here")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=list(MODELS), default="300m")
    sizes = MODELS[model := parser.parse_args().model]
    os.environ[cpu_training.SWITCH] = "0"
    device = best_device()
    runs, at_start = {}, peak_memory_bytes(torch.device("cpu"))
    whole = DryRunConfig(**sizes, measure="always")
    config = that_fits(whole, device)
    for checkpointing in (True, False) if model != "7b" else (True,):
        config = attrs.evolve(config, gradient_checkpointing=checkpointing)
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
    layers = {"run": config.num_hidden_layers, "of": whole.num_hidden_layers}
    figures = {"model": model, "layers": layers, "largest_error": max(errors), "resident_bytes_at_start": at_start}
    print(json.dumps(figures | {"runs": runs, "machine": machine, "versions": versions}, indent=1))


if __name__ == "__main__":
    main()
