"""What does a training step with ternary layers cost beside the same step with nn.Linear?

    python -m benchmarks.bitlinear [--widths 576 1536 --tokens 2048 --device cpu --threads 2 --rounds 15]

A step is forward and backward of width -> inner -> width (up and down, as in a feed-forward block), under bfloat16
autocast (float16 on a GPU without bfloat16) with float32 masters, gradients to both weights and to the input; no
optimizer. `step_ratio` is of compiled blocks; eager ones, which the training loop runs unless told otherwise, are
beside it. The ways: nn.Linear; ours with its 8-bit inputs (`FakeQuantActivation` + `BitLinear`), and ours without them;
transformers' `AutoBitLinear` (weights quantised online, 8-bit inputs); onebitllms' layer, which is Triton and so needs
CUDA. On a GPU the widths are 4096 and 11008. Rounds are interleaved and ratios are taken within a round, so that a busy
machine disturbs all alike; medians are printed with their range. On a CPU `step_ratio` is of the process's CPU seconds,
which others disturb less: use --threads 1 where they want the cores. `retained_bytes`: what a way keeps from forward to
backward beyond its weights and its input, as autograd reports it. The last line is one JSON object.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any

import torch
from torch import Tensor, nn
from transformers.integrations.bitnet import AutoBitLinear

from benchmarks.kd_loss import cpu_name
from bitnet_core.hardware import half_dtype
from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
from bitnet_core.ternary.bitlinear import BitLinear

WIDTHS = {"cpu": (576, 1536), "cuda": (4096, 11008)}
OURS, WEIGHTS_ONLY, PLAIN = "bitlinear_a8", "bitlinear", "linear"
MODES = ("compiled", "eager")
"""``--eager`` leaves the first one out."""
Seconds = tuple[float, float]
"""Wall seconds, and CPU seconds of the process: what a busy machine disturbs less."""
WALL, CPU = 0, 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=list(WIDTHS), default="cpu")
    parser.add_argument("--widths", type=int, nargs=2, help="of the block's ends, and within it")
    parser.add_argument("--tokens", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--eager", action="store_true", help="compile nothing: `step_ratio` is then of eager blocks")
    options = parser.parse_args()
    options.widths = options.widths or WIDTHS[options.device]
    options.dtype = half_dtype(torch.device(options.device))
    modes = MODES[options.eager :]
    torch.set_num_threads(options.threads)

    blocks, absent = make_blocks(options)
    x_ND = torch.randn(options.tokens, options.widths[0], device=options.device)
    grad_ND = torch.randn(options.tokens, options.widths[0], device=options.device).to(options.dtype)
    steps: dict[tuple[str, str], Callable[[], None]] = {}
    breaks = {}
    for name, block in blocks.items():
        calls = {"compiled": torch.compile(block), "eager": block}
        steps |= {(mode, name): make_step(calls[mode], block, x_ND, grad_ND) for mode in modes}
        torch._dynamo.utils.counters.clear()
        for mode in modes:
            for _ in range(3):
                steps[mode, name]()
        breaks[name] = sum(torch._dynamo.utils.counters["graph_break"].values())
    seconds: dict[tuple[str, str], list[Seconds]] = {key: [] for key in steps}
    for number in range(options.rounds):
        for key, step in steps.items():
            seconds[key].append(timed(step, options.device))
        print(f"round {number + 1}: " + ", ".join(f"{m} {n} {s[-1][0] * 1e3:.1f} ms" for (m, n), s in seconds.items()))

    def ratios(mode: str, clock: int) -> dict[str, list[float]]:
        """Of each way: the median within rounds, the least, the largest."""
        plain = [each[clock] for each in seconds[mode, PLAIN]]
        found = {}
        for name in blocks:
            values = [own[clock] / other for own, other in zip(seconds[mode, name], plain, strict=True)]
            found[name] = [round(figure, 3) for figure in (statistics.median(values), min(values), max(values))]
        return found

    print(
        json.dumps(
            {
                "step_ratio": ratios(modes[0], CPU if options.device == "cpu" else WALL)[OURS][0],
                "step_ratios_median_min_max": {mode: ratios(mode, WALL) for mode in modes},
                "cpu_step_ratios_median_min_max": {mode: ratios(mode, CPU) for mode in modes},
                "seconds_median": {
                    mode: {name: statistics.median(each[WALL] for each in seconds[mode, name]) for name in blocks}
                    for mode in modes
                },
                "retained_bytes": {n: retained_bytes(block, x_ND, grad_ND, modes) for n, block in blocks.items()},
                "graph_breaks": breaks,
                "absent": absent,
                "shape": {
                    "widths": list(options.widths),
                    "tokens": options.tokens,
                    "dtype": f"{options.dtype} autocast",
                },
                "rounds": options.rounds,
                "machine": machine(options.device),
                "versions": {
                    "python": platform.python_version(),
                    **{name: version(name) for name in ("torch", "transformers", "bitnet-core")},
                },
            }
        )
    )


def make_blocks(options: argparse.Namespace) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """Each way's block, and why a way is absent."""
    ends, inner = options.widths

    def block(layer: Callable[[int, int], nn.Module]) -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(layer(ends, inner), layer(inner, ends)).to(options.device)

    def with_inputs(inputs: int, outputs: int) -> nn.Module:
        return nn.Sequential(FakeQuantActivation(8, low_bits=True), BitLinear(inputs, outputs))

    blocks = {
        PLAIN: block(lambda inputs, outputs: nn.Linear(inputs, outputs, bias=False)),
        OURS: block(with_inputs),
        WEIGHTS_ONLY: block(BitLinear),
        "autobitlinear": block(lambda inputs, outputs: AutoBitLinear(inputs, outputs, bias=False, online_quant=True)),
    }
    if options.device != "cuda":
        return blocks, {"onebitllms": "its kernels are Triton's and want CUDA"}
    try:
        from onebitllms.layers import BitNetLinear
    except ImportError as error:
        return blocks, {"onebitllms": f"pip install onebitllms ({error})"}

    def onebit(inputs: int, outputs: int) -> nn.Module:
        layer = BitNetLinear(inputs, outputs)
        nn.init.normal_(layer.weight, std=inputs**-0.5)
        return layer

    return blocks | {"onebitllms": block(onebit)}, {}


def make_step(call: Callable[[Tensor], Tensor], block: nn.Module, x_ND: Tensor, grad_ND: Tensor) -> Callable[[], None]:
    parameters = tuple(block.parameters())

    def step() -> None:
        x = x_ND.detach().requires_grad_()
        with torch.autocast(x.device.type, grad_ND.dtype):
            y_ND = call(x)
        torch.autograd.grad(y_ND, (x, *parameters), grad_ND.to(y_ND.dtype))

    return step


def timed(step: Callable[[], None], device: str) -> Seconds:
    synchronise = torch.cuda.synchronize if device == "cuda" else lambda: None
    synchronise()
    wall, cpu = time.perf_counter(), time.process_time()
    step()
    synchronise()
    return time.perf_counter() - wall, time.process_time() - cpu


def retained_bytes(block: nn.Module, x_ND: Tensor, grad_ND: Tensor, modes: Sequence[str]) -> dict[str, int]:
    """Bytes kept for the backward beyond parameters and the block's input, eager and compiled."""
    found = {}
    for name in modes:
        call = torch.compile(block) if name == "compiled" else block
        kept: dict[int, int] = {}

        def keep(tensor: Tensor, kept: dict[int, int] = kept) -> Tensor:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        step = make_step(call, block, x_ND, grad_ND)
        step()  # compiles outside of the count
        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            step()
        there = {tensor.untyped_storage().data_ptr() for tensor in (x_ND, *block.parameters())}
        found[name] = sum(size for place, size in kept.items() if place not in there)
    return found


def machine(device: str) -> dict[str, Any]:
    if device == "cuda":
        return {"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda}
    return {
        "cpu": cpu_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "load_average": os.getloadavg()[0],
    }


if __name__ == "__main__":
    main()
