"""How much of a GPU's memory bandwidth does a ternary decode use?

    python -m benchmarks.decode_gpu [--rounds 20] [--shapes 4096x11008,11008x4096,8192x28672,28672x8192] [--skip-model]
    TRITON_INTERPRET=1 python -m benchmarks.decode_gpu --device cpu    does it run? small, and no figure means a thing

For each shape (outputs x inputs) of one token's product: the W2A8 GEMV of
`bitnet_core.runtime.packed.triton_products` with each of its tiles, and cuBLAS in 16 bits (bfloat16; float16 on a GPU
that has none). Each goes over copies of its weights in turn, together larger than the caches, and is replayed as a CUDA
graph, so that neither a cache nor a launch flatters or hides anything. The bandwidth is measured in the same run,
by adding up a gigabyte. Then prefill (512 tokens) of the same shapes, and whole decode steps of a student with 1.5
billion linear weights and random codes, beside the same shape in 16 bits.
Numbers are checked first, against exact ones, on the device itself. Needs a CUDA GPU. The last line is one JSON
object: `bandwidth_fraction` by shape (bytes of codes, scales, input and output a second / measured bandwidth; the
best tile, which it names), `vs_half` by shape, `prefill_vs_half`, `decode`, `half` (which of the two dtypes).
"""

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.hardware import half_dtype
from bitnet_core.ternary.activation_quantiser import activation_codes
from bitnet_core.ternary.packed_linear import CODES_PER_BYTE, pack_codes

SHAPES = "4096x11008,11008x4096,8192x28672,28672x8192"
STUDENT = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip
SMALL = {"vocab_size": 96, "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 1, "num_attention_heads": 2,
         "num_key_value_heads": 1, "max_position_embeddings": 32}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--shapes", help="OUTPUTSxINPUTS, comma-separated")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--skip-model", action="store_true")
    options = parser.parse_args()
    if options.device == "cuda" and not torch.cuda.is_available():
        sys.exit("decode_gpu: no CUDA GPU here, so there is nothing to measure; benchmarks.decode measures the CPU")
    place = Place.of(options.device, options.rounds)
    shapes = (options.shapes or (SHAPES if options.device == "cuda" else "40x300")).split(",")
    bandwidth = read_bandwidth(place)
    print(f"{place.name}: reads {bandwidth / 1e9:.0f} GB/s")
    gemv = {shape: gemv_figures(*sizes(shape), bandwidth, place) for shape in shapes}
    prefill = {shape: prefill_figures(*sizes(shape), options.prefill_tokens, place) for shape in shapes}
    decode = None if options.skip_model else decode_figures(bandwidth, place)
    print(json.dumps({
        "bandwidth_fraction": {shape: each["bandwidth_fraction"] for shape, each in gemv.items()},
        "vs_half": {shape: each["vs_half"] for shape, each in gemv.items()},
        "prefill_vs_half": {shape: each["vs_half"] for shape, each in prefill.items()},
        "decode": decode,
        "half": str(place.half).removeprefix("torch."),
        "gemv": gemv,
        "prefill": prefill,
        "bandwidth_bytes_s": round(bandwidth),
        "rounds": options.rounds,
        "machine": {"device": place.name, "capability": place.capability},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }))  # fmt: skip


@attrs.frozen
class Place:
    """Where it runs, and how large things are there."""

    device: str
    name: str
    capability: tuple[int, int] | None
    half: torch.dtype
    """What cuBLAS multiplies, and what products are written in."""
    rounds: int
    caches: int
    """Bytes that the copies take together at least: several times an H200's second-level cache."""
    student: Mapping[str, Any]

    @classmethod
    def of(cls, device: str, rounds: int) -> "Place":
        half = half_dtype(torch.device(device))
        if device == "cpu":
            return cls(device, "CPU", None, half, rounds, 2**12, STUDENT | SMALL)
        name, capability = torch.cuda.get_device_name(), torch.cuda.get_device_capability()
        return cls(device, name, capability, half, rounds, 256 * 2**20, STUDENT)


def sizes(shape: str) -> tuple[int, int]:
    outputs, inputs = shape.split("x")
    return int(outputs), int(inputs)


def read_bandwidth(place: Place) -> float:
    """Bytes a second, of a sum over four times the copies: a gigabyte."""
    block = torch.zeros(place.caches, dtype=torch.float32, device=place.device)
    return block.nbytes / seconds_of(block.sum, 1, place)


def seconds_of(work: Callable[[], Any], repeats: int, place: Place) -> float:
    """Median seconds of one of the `repeats` pieces that `work` does, replayed as a graph where it can be one."""
    if place.device == "cpu":
        return timed(work, place) / repeats
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            work()
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        work()
    graph.replay()
    return timed(graph.replay, place) / repeats


def timed(work: Callable[[], Any], place: Place, before: Callable[[], Any] = lambda: None) -> float:
    """Median seconds of `work`, as the device has them; `before` each round something that isn't counted."""
    found = []
    for _ in range(place.rounds):
        before()
        if place.device == "cpu":
            started = time.perf_counter()
            work()
            found.append(time.perf_counter() - started)
            continue
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        work()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


def weights(outputs: int, inputs: int, place: Place) -> tuple[Tensor, list[Tensor], Tensor]:
    """Codes [O, I] of the first copy, packed copies on the device, row scales."""
    from bitnet_core.runtime.packed.triton_products import padded_codes

    torch.manual_seed(0)
    codes_OI = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device=place.device)
    first = padded_codes(pack_codes(codes_OI))
    copies = max(2, -(-place.caches // first.nbytes))
    others = [first[torch.randperm(outputs, device=place.device)].contiguous() for _ in range(copies - 1)]
    return codes_OI, [first, *others], torch.rand(outputs, device=place.device) + 0.5


def check(x_NI: Tensor, codes_OI: Tensor, packed: Tensor, scale_O: Tensor, tile: Any) -> None:
    """The integers on this device, exactly: int8 sums of these sizes are whole numbers that float64 holds."""
    from bitnet_core.runtime.packed.triton_products import product, quantise

    quantised = quantise(x_NI, 8)
    codes_NI, _ = activation_codes(x_NI.cpu(), 8)
    exact_NO = (
        (codes_NI.double().to(x_NI.device) @ codes_OI.double().T)
        * scale_O.double()
        * quantised.scale_N.double()[:, None]
    )
    found_NO = product(quantised, packed, scale_O, tile=tile).double()
    torch.testing.assert_close(found_NO, exact_NO, rtol=1e-6, atol=0)


def gemv_figures(outputs: int, inputs: int, bandwidth: float, place: Place) -> dict[str, Any]:
    from bitnet_core.runtime.packed.triton_products import GEMV_TILES, product, quantise

    codes_OI, copies, scale_O = weights(outputs, inputs, place)
    x_1I = torch.randn(1, inputs, device=place.device)
    quantised = quantise(x_1I, 8)
    times = {}
    for tile in GEMV_TILES:
        check(x_1I, codes_OI, copies[0], scale_O, tile)

        def ours(tile: Any = tile) -> None:
            for packed in copies:
                product(quantised, packed, scale_O, dtype=place.half, tile=tile)

        times[f"{tile.rows}x{tile.inner}/{tile.warps}"] = seconds_of(ours, len(copies), place)
    best = min(times, key=times.__getitem__)
    moved = copies[0].nbytes + scale_O.nbytes + quantised.planes_N4P.nbytes + 2 * outputs
    dense = half_seconds(outputs, inputs, x_1I, place)
    figures = {
        "bandwidth_fraction": round(moved / times[best] / bandwidth, 4),
        "vs_half": round(dense / times[best], 3),
        "tile": best,
        "microseconds": {name: round(each * 1e6, 2) for name, each in times.items()} | {"half": round(dense * 1e6, 2)},
        "quantise_microseconds": round(seconds_of(lambda: quantise(x_1I, 8), 1, place) * 1e6, 2),
    }
    print(f"{outputs}x{inputs}, one token: {figures}")
    return figures


def prefill_figures(outputs: int, inputs: int, tokens: int, place: Place) -> dict[str, Any]:
    from bitnet_core.runtime.packed.triton_products import (
        DP4A_TILE,
        PREFILL_TILES,
        has_int8_matrices,
        product,
        quantise,
    )

    codes_OI, copies, scale_O = weights(outputs, inputs, place)
    x_NI = torch.randn(tokens, inputs, device=place.device)
    quantised = quantise(x_NI, 8)
    times = {}
    for tile in PREFILL_TILES if has_int8_matrices(copies[0]) else (DP4A_TILE,):
        check(x_NI, codes_OI, copies[0], scale_O, tile)

        def ours(tile: Any = tile) -> None:
            product(quantised, copies[0], scale_O, dtype=place.half, tile=tile)

        times[f"{tile.tokens}x{tile.rows}x{tile.inner}/{tile.warps}"] = seconds_of(ours, 1, place)
    best = min(times, key=times.__getitem__)
    dense = half_seconds(outputs, inputs, x_NI, place)
    figures = {
        "vs_half": round(dense / times[best], 3),
        "tile": best,
        "tera_operations_s": round(2 * tokens * outputs * inputs / times[best] / 1e12, 1),
        "microseconds": {name: round(each * 1e6, 2) for name, each in times.items()} | {"half": round(dense * 1e6, 2)},
    }
    print(f"{outputs}x{inputs}, {tokens} tokens: {figures}")
    return figures


def half_seconds(outputs: int, inputs: int, x_NI: Tensor, place: Place) -> float:
    """Of cuBLAS, over copies as well."""
    first = torch.randn(outputs, inputs, dtype=place.half, device=place.device)
    copies = [first] + [first.clone() for _ in range(max(1, -(-place.caches // first.nbytes) - 1))]
    x_NI = x_NI.to(place.half)

    def dense() -> None:
        for weight_OI in copies:
            nn.functional.linear(x_NI, weight_OI)

    return seconds_of(dense, len(copies), place)


def decode_figures(bandwidth: float, place: Place) -> dict[str, Any]:
    """Whole steps: the student's with the kernels, and the same student with dense layers, both as graphs."""
    from bitnet_core.runtime.packed.cuda import CudaEngine

    engine = CudaEngine(
        random_student(place, packed=True), context=place.student["max_position_embeddings"], device=place.device
    )
    linears = sum(buffer.nbytes for name, buffer in engine._body.named_buffers() if name.endswith("codes"))
    ours = step_seconds(engine, place)
    read = linears + engine._head_VD.nbytes
    dense = DenseStep(random_student(place, packed=False), place)
    theirs = seconds_of(dense, 1, place)
    figures = {
        "tokens_s": round(1 / ours, 1),
        "half_tokens_s": round(1 / theirs, 1),
        "vs_half": round(theirs / ours, 3),
        "bandwidth_fraction": round(read / ours / bandwidth, 4),
        "linear_weights": linears * CODES_PER_BYTE,
        "context": engine.context,
    }
    print(f"whole steps: {figures}")
    return figures


def random_student(place: Place, *, packed: bool) -> Any:
    """Speed does not depend on what the codes are."""
    from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM

    with torch.device(place.device):
        model = BitNetKDEForCausalLM(BitNetKDEConfig(**place.student, packed=packed, quantise_weights=packed))
    for name, buffer in model.named_buffers():
        if name.endswith(".codes"):
            buffer.random_(0, 3).mul_(0b01010101)
    return model.eval().requires_grad_(False)


def step_seconds(engine: Any, place: Place) -> float:
    """Of a replay at the end of the context, sampling left out."""
    engine.logits(list(range(1, 9)))
    replay = engine._step if engine._graph is None else engine._graph.replay
    return timed(replay, place, before=lambda: engine._go_to(engine.context - 2))


class DenseStep:
    """One token through the dense model, its cache as large as the other's."""

    def __init__(self, model: Any, place: Place) -> None:
        from transformers import StaticCache

        from bitnet_core.model.kv_cache import named

        self.named = named
        model.set_activation_bits(16)
        self.model = model.to(place.device, place.half)
        self.cache = StaticCache(config=model.config, max_cache_len=place.student["max_position_embeddings"])
        self.id = torch.ones(1, 1, dtype=torch.long, device=place.device)

    @torch.no_grad()
    def __call__(self) -> Tensor:
        for layer in self.cache.layers:
            layer.cumulative_length.zero_()
        logits: Tensor = self.model(
            input_ids=self.id, position_ids=self.id, use_cache=True, **self.named(self.cache)
        ).logits
        return logits


if __name__ == "__main__":
    main()
