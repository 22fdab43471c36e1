"""What does the KD loss cost beside the matrix products that nobody can avoid?

    python -m benchmarks.kd_loss [--tokens 2048 --width 576 --vocabulary 49152 --k 20 --dtype bfloat16 --threads 2]

Forward and backward of `bitnet_core.losses.chunked` and of the plain `bitnet_core.losses.reference.combined_loss`,
against the three bare matrix products (logits, gradient by the hidden states, gradient by the head) of the same
shapes. Rounds are interleaved, and ratios are taken within a round, so that a busy machine disturbs all three alike;
the medians are printed with their spread. Where other programs want the cores, compare with --threads 1: a parallel
region waits for its slowest thread. Memory is the peak of a fresh process beyond inputs and returned gradients (Linux
only, else null).
With --device cuda the loss runs its Triton kernel, and memory is the allocator's; beside it stands, if installed,
liger-kernel's fused linear cross-entropy, which has no KD of K + 1 buckets and runs on GPUs only:

    python -m benchmarks.kd_loss --device cuda --tokens 8192 --width 4096 --vocabulary 128256 --chunk-tokens 2048

The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.losses.chunked import chunked_combined_loss
from bitnet_core.losses.reference import combined_loss

Gradients = tuple[Tensor, ...]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--width", type=int, default=576)
    parser.add_argument("--vocabulary", type=int, default=49152)
    parser.add_argument("--k", type=int, default=20)
    parser.add_argument("--dtype", choices=["bfloat16", "float32", "float16"], default="bfloat16")
    parser.add_argument("--chunk-tokens", type=int, default=TopKOtherConfig().chunk_tokens)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--peak-of", choices=["chunked", "plain"], help="print one way's extra bytes and end")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.peak_of:
        print(extra_bytes(options))
        return

    ways = make_ways(options)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for way in ways.values():
        way()  # warm-up
    for number in range(options.rounds):
        for name, way in ways.items():
            seconds[name].append(timed(way, options.device))
        print(f"round {number + 1}/{options.rounds}: " + ", ".join(f"{n} {s[-1]:.3f} s" for n, s in seconds.items()))
    ratios = {
        name: [own / bare for own, bare in zip(seconds[name], seconds["matmuls"], strict=True)] for name in seconds
    }
    peaks = {way: peak_in_fresh_process(way) for way in ("chunked", "plain")}
    print(json.dumps(summary(options, seconds, ratios, peaks)))


def summary(
    options: argparse.Namespace,
    seconds: dict[str, list[float]],
    ratios: dict[str, list[float]],
    peaks: dict[str, int | None],
) -> dict[str, Any]:
    chunked, plain = peaks["chunked"], peaks["plain"]
    return {
        "ratio_to_matmuls": round(statistics.median(ratios["chunked"]), 3),
        "plain_ratio_to_matmuls": round(statistics.median(ratios["plain"]), 3),
        "extra_memory_fraction": round(chunked / plain, 4) if chunked is not None and plain else None,
        "ratio_range": [round(min(ratios["chunked"]), 3), round(max(ratios["chunked"]), 3)],
        "plain_ratio_range": [round(min(ratios["plain"]), 3), round(max(ratios["plain"]), 3)],
        **peers(options, ratios),
        "seconds_best": {name: round(min(values), 4) for name, values in seconds.items()},
        "extra_bytes": peaks,
        "shape": {
            name: getattr(options, name)
            for name in ("tokens", "width", "vocabulary", "k", "dtype", "chunk_tokens", "device")
        },
        "rounds": options.rounds,
        "machine": {
            "cpu": cpu_name(),
            "gpu": torch.cuda.get_device_name() if options.device == "cuda" else None,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "load_average": os.getloadavg()[0],
        },
        "versions": {"python": platform.python_version(), "torch": torch.__version__},
    }


def peers(options: argparse.Namespace, ratios: dict[str, list[float]]) -> dict[str, Any]:
    if "liger_ce" in ratios:
        return {"liger_ce_ratio_to_matmuls": round(statistics.median(ratios["liger_ce"]), 3)}
    return {"not_run": {"liger-kernel": "not installed" if options.device == "cuda" else "runs on GPUs only"}}


def make_inputs(options: argparse.Namespace) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """One sequence of tokens + 1 positions, each of the `tokens` rows a KD and CE target."""
    generator = torch.Generator().manual_seed(0)
    t, k, v = options.tokens + 1, options.k, options.vocabulary
    dtype = getattr(torch, options.dtype)
    hidden = torch.randn(1, t, options.width, generator=generator).to(options.device, dtype)
    head = torch.empty(v, options.width, dtype=dtype).normal_(std=0.05, generator=generator).to(options.device)
    # Distinct in a row: a step of 997 (a prime) doesn't come back within k steps.
    ids = (torch.randint(0, v, (1, t, 1), generator=generator) + 997 * torch.arange(k)) % v
    logprobs = torch.randn(1, t, k + 1, generator=generator).log_softmax(-1)
    batch = {
        "attention_mask": torch.ones(1, t, dtype=torch.bool),
        "teacher_sample_id": ids[..., 0].contiguous(),
        "topk_ids": ids,
        "topk_logprobs": logprobs[..., :-1].contiguous(),
        "other_logprob": logprobs[..., -1].contiguous(),
        "is_struct_token": torch.rand(1, t, generator=generator) < 0.2,
        "has_kd": torch.ones(1, t, dtype=torch.bool),
        "is_prompt": torch.zeros(1, t, dtype=torch.bool),
    }
    moved = {name: column.to(options.device) for name, column in batch.items()}
    return hidden.requires_grad_(), head.requires_grad_(), moved


def make_ways(options: argparse.Namespace) -> dict[str, Callable[[], Gradients]]:
    hidden, head, batch = make_inputs(options)
    loss = TopKOtherConfig(tau=1.5, ce_weight=0.1, format_weight=0.1, chunk_tokens=options.chunk_tokens)

    def matmuls() -> Gradients:
        with torch.no_grad():
            hidden_ND = hidden[0, :-1]
            logits_NV = hidden_ND @ head.T
            return logits_NV @ head, logits_NV.T @ hidden_ND

    def chunked() -> Gradients:
        return torch.autograd.grad(chunked_combined_loss(hidden, head, batch, loss)[0], (hidden, head))

    def plain() -> Gradients:
        value, _ = combined_loss(
            hidden @ head.T, batch, tau=loss.tau, ce_weight=loss.ce_weight, format_weight=loss.format_weight
        )
        return torch.autograd.grad(value, (hidden, head))

    ways = {"matmuls": matmuls, "chunked": chunked, "plain": plain}
    if options.device == "cuda" and find_spec("liger_kernel"):
        from liger_kernel.transformers import LigerFusedLinearCrossEntropyLoss

        liger = LigerFusedLinearCrossEntropyLoss()

        def liger_ce() -> Gradients:
            value = liger(head, hidden[0, :-1], batch["teacher_sample_id"][0, 1:])
            return torch.autograd.grad(value, (hidden, head))

        ways["liger_ce"] = liger_ce
    return ways


def timed(way: Callable[[], Gradients], device: str) -> float:
    start = time.perf_counter()
    way()
    if device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def extra_bytes(options: argparse.Namespace) -> int:
    """Peak bytes (resident, or allocated on the GPU) of one run beyond what was there before and what it returns."""
    small = argparse.Namespace(**vars(options) | {"tokens": 8, "vocabulary": 64})
    make_ways(small)[options.peak_of]()  # loads the libraries' code
    way = make_ways(options)[options.peak_of]
    if options.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        at_start = torch.cuda.memory_allocated()
        returned = sum(g.numel() * g.element_size() for g in way())
        return torch.cuda.max_memory_allocated() - at_start - returned
    Path("/proc/self/clear_refs").write_text("5")  # resets the peak
    before = status_bytes("VmRSS")
    gradients = way()
    return status_bytes("VmHWM") - before - sum(g.numel() * g.element_size() for g in gradients)


def status_bytes(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:")) * 1024


def peak_in_fresh_process(way: str) -> int | None:
    if not Path("/proc/self/clear_refs").exists():
        return None
    command = [sys.executable, "-m", "benchmarks.kd_loss", *sys.argv[1:], "--peak-of", way]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return int(done.stdout.split()[-1])


def cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if not cpuinfo.exists():
        return platform.processor()
    lines = cpuinfo.read_text().splitlines()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.machine())


if __name__ == "__main__":
    main()
