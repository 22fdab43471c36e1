"""How much of a GPU's memory bandwidth does a ternary decode use?

    python -m benchmarks.decode_gpu [--rounds 20] [--shapes 4096x11008,11008x4096,8192x28672,28672x8192] [--skip-model]

For each shape (outputs x inputs) of one token's product: the W2A8 GEMV of
`bitnet_core.runtime.packed.triton_products` with each of its tiles, and cuBLAS in bfloat16. Each goes over copies of
its weights in turn, together larger than the caches, and is replayed as a CUDA graph, so that neither a cache nor a
launch flatters or hides anything. The bandwidth is measured in the same run, by adding up a gigabyte. Then prefill
(512 tokens) of the same shapes, and whole decode steps of a student with 1.5 billion linear weights and random codes,
beside the same shape in bfloat16.
Numbers are checked first, against exact ones, on the device itself. Needs a CUDA GPU. The last line is one JSON
object: `bandwidth_fraction` by shape (bytes of codes, scales, input and output a second / measured bandwidth; the
best tile, which it names), `vs_bf16` by shape, `prefill_vs_bf16`, `decode`.
"""

import argparse
import json
import platform
import statistics
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from bitnet_core.ternary.packed_linear import CODES_PER_BYTE, pack_codes
from bitnet_core.ternary.quantisers import activation_codes

SHAPES = "4096x11008,11008x4096,8192x28672,28672x8192"
CACHES = 256 * 2**20
"""Bytes that the copies take together at least: several times an H200's second-level cache."""
STUDENT = {
    "vocab_size": 49152, "hidden_size": 2048, "intermediate_size": 8192, "num_hidden_layers": 24,
    "num_attention_heads": 32, "num_key_value_heads": 8, "max_position_embeddings": 1024, "tie_word_embeddings": True,
}  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shapes", default=SHAPES, help="OUTPUTSxINPUTS, comma-separated")
    parser.add_argument("--rounds", type=int, default=20)
    parser.add_argument("--prefill-tokens", type=int, default=512)
    parser.add_argument("--skip-model", action="store_true")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("decode_gpu: no CUDA GPU here, so there is nothing to measure; benchmarks.decode measures the CPU")
    bandwidth = read_bandwidth(options.rounds)
    print(f"{torch.cuda.get_device_name()}: reads {bandwidth / 1e9:.0f} GB/s")
    gemv = {shape: gemv_figures(*sizes(shape), bandwidth, options.rounds) for shape in options.shapes.split(",")}
    prefill = {
        shape: prefill_figures(*sizes(shape), options.prefill_tokens, options.rounds)
        for shape in options.shapes.split(",")
    }
    decode = None if options.skip_model else decode_figures(bandwidth, options.rounds)
    print(json.dumps({
        "bandwidth_fraction": {shape: each["bandwidth_fraction"] for shape, each in gemv.items()},
        "vs_bf16": {shape: each["vs_bf16"] for shape, each in gemv.items()},
        "prefill_vs_bf16": {shape: each["vs_bf16"] for shape, each in prefill.items()},
        "decode": decode,
        "gemv": gemv,
        "prefill": prefill,
        "bandwidth_bytes_s": round(bandwidth),
        "rounds": options.rounds,
        "machine": {"gpu": torch.cuda.get_device_name(), "capability": torch.cuda.get_device_capability()},
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "cuda": torch.version.cuda},
    }))  # fmt: skip


def sizes(shape: str) -> tuple[int, int]:
    outputs, inputs = shape.split("x")
    return int(outputs), int(inputs)


def read_bandwidth(rounds: int) -> float:
    """Bytes a second, of a sum over a gigabyte."""
    block = torch.zeros(2**28, dtype=torch.float32, device="cuda")
    return block.nbytes / seconds_of(block.sum, 1, rounds)


def seconds_of(work: Callable[[], Any], repeats: int, rounds: int) -> float:
    """Median seconds of one of the `repeats` pieces that `work` does, replayed as a graph."""
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
    found = []
    for _ in range(rounds):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3 / repeats)
    return statistics.median(found)


def weights(outputs: int, inputs: int) -> tuple[Tensor, list[Tensor], Tensor]:
    """Codes [O, I] of the first copy, packed copies on the device, row scales."""
    from bitnet_core.runtime.packed.triton_products import padded_codes

    torch.manual_seed(0)
    codes_OI = torch.randint(-1, 2, (outputs, inputs), dtype=torch.int8, device="cuda")
    first = padded_codes(pack_codes(codes_OI))
    copies = max(2, -(-CACHES // first.nbytes))
    others = [first[torch.randperm(outputs, device="cuda")].contiguous() for _ in range(copies - 1)]
    return codes_OI, [first, *others], torch.rand(outputs, device="cuda") + 0.5


def check(x_NI: Tensor, codes_OI: Tensor, packed: Tensor, scale_O: Tensor, tile: Any) -> None:
    """The integers on this device, exactly: int8 sums of these sizes are whole numbers that float64 holds."""
    from bitnet_core.runtime.packed.triton_products import product, quantise

    quantised = quantise(x_NI, 8)
    codes_NI, _ = activation_codes(x_NI.cpu(), 8)
    exact_NO = (codes_NI.double().cuda() @ codes_OI.double().T) * scale_O.double() * quantised.scale_N.double()[:, None]
    found_NO = product(quantised, packed, scale_O, tile=tile).double()
    torch.testing.assert_close(found_NO, exact_NO, rtol=1e-6, atol=0)


def gemv_figures(outputs: int, inputs: int, bandwidth: float, rounds: int) -> dict[str, Any]:
    from bitnet_core.runtime.packed.triton_products import GEMV_TILES, product, quantise

    codes_OI, copies, scale_O = weights(outputs, inputs)
    x_1I = torch.randn(1, inputs, device="cuda")
    quantised = quantise(x_1I, 8)
    times = {}
    for tile in GEMV_TILES:
        check(x_1I, codes_OI, copies[0], scale_O, tile)

        def ours(tile: Any = tile) -> None:
            for packed in copies:
                product(quantised, packed, scale_O, dtype=torch.bfloat16, tile=tile)

        times[f"{tile.rows}x{tile.inner}/{tile.warps}"] = seconds_of(ours, len(copies), rounds)
    best = min(times, key=times.__getitem__)
    moved = copies[0].nbytes + scale_O.nbytes + quantised.planes_N4P.nbytes + 2 * outputs
    dense = bf16_seconds(outputs, inputs, x_1I, rounds)
    figures = {
        "bandwidth_fraction": round(moved / times[best] / bandwidth, 4),
        "vs_bf16": round(dense / times[best], 3),
        "tile": best,
        "microseconds": {name: round(each * 1e6, 2) for name, each in times.items()} | {"bf16": round(dense * 1e6, 2)},
        "quantise_microseconds": round(seconds_of(lambda: quantise(x_1I, 8), 1, rounds) * 1e6, 2),
    }
    print(f"{outputs}x{inputs}, one token: {figures}")
    return figures


def prefill_figures(outputs: int, inputs: int, tokens: int, rounds: int) -> dict[str, Any]:
    from bitnet_core.runtime.packed.triton_products import (
        DP4A_TILE,
        PREFILL_TILES,
        has_int8_matrices,
        product,
        quantise,
    )

    codes_OI, copies, scale_O = weights(outputs, inputs)
    x_NI = torch.randn(tokens, inputs, device="cuda")
    quantised = quantise(x_NI, 8)
    times = {}
    for tile in PREFILL_TILES if has_int8_matrices(copies[0]) else (DP4A_TILE,):
        check(x_NI, codes_OI, copies[0], scale_O, tile)

        def ours(tile: Any = tile) -> None:
            product(quantised, copies[0], scale_O, dtype=torch.bfloat16, tile=tile)

        times[f"{tile.tokens}x{tile.rows}x{tile.inner}/{tile.warps}"] = seconds_of(ours, 1, rounds)
    best = min(times, key=times.__getitem__)
    dense = bf16_seconds(outputs, inputs, x_NI, rounds)
    figures = {
        "vs_bf16": round(dense / times[best], 3),
        "tile": best,
        "tera_operations_s": round(2 * tokens * outputs * inputs / times[best] / 1e12, 1),
        "microseconds": {name: round(each * 1e6, 2) for name, each in times.items()} | {"bf16": round(dense * 1e6, 2)},
    }
    print(f"{outputs}x{inputs}, {tokens} tokens: {figures}")
    return figures


def bf16_seconds(outputs: int, inputs: int, x_NI: Tensor, rounds: int) -> float:
    """Of cuBLAS, over copies as well."""
    first = torch.randn(outputs, inputs, dtype=torch.bfloat16, device="cuda")
    copies = [first] + [first.clone() for _ in range(max(1, -(-CACHES // first.nbytes) - 1))]
    x_NI = x_NI.to(torch.bfloat16)

    def dense() -> None:
        for weight_OI in copies:
            nn.functional.linear(x_NI, weight_OI)

    return seconds_of(dense, len(copies), rounds)


def decode_figures(bandwidth: float, rounds: int) -> dict[str, Any]:
    """Whole steps: the student's with the kernels, and the same student with dense bfloat16 layers, both as graphs."""
    from bitnet_core.runtime.packed.cuda import CudaEngine

    engine = CudaEngine(random_student(packed=True), context=STUDENT["max_position_embeddings"])
    linears = sum(buffer.nbytes for name, buffer in engine._body.named_buffers() if name.endswith("codes"))
    ours = step_seconds(engine, rounds)
    read = linears + engine._head_VD.nbytes
    dense = DenseStep(random_student(packed=False))
    theirs = seconds_of(dense, 1, rounds)
    figures = {
        "tokens_s": round(1 / ours, 1),
        "bf16_tokens_s": round(1 / theirs, 1),
        "vs_bf16": round(theirs / ours, 3),
        "bandwidth_fraction": round(read / ours / bandwidth, 4),
        "linear_weights": linears * CODES_PER_BYTE,
        "context": engine.context,
    }
    print(f"whole steps: {figures}")
    return figures


def random_student(packed: bool) -> Any:
    """On the CPU; speed does not depend on what the codes are."""
    from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM

    model = BitNetKDEForCausalLM(BitNetKDEConfig(**STUDENT, packed=packed, quantise_weights=packed))
    for name, buffer in model.named_buffers():
        if name.endswith(".codes"):
            buffer.random_(0, 3).mul_(0b01010101)
    return model.eval().requires_grad_(False)


def step_seconds(engine: Any, rounds: int) -> float:
    """Of a replay at the end of the context, sampling left out."""
    engine.logits(list(range(1, 9)))
    found = []
    for _ in range(rounds):
        engine._go_to(engine.context - 2)
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        start.record()
        engine._graph.replay()
        end.record()
        end.synchronize()
        found.append(start.elapsed_time(end) / 1e3)
    return statistics.median(found)


class DenseStep:
    """One token through the dense model, its cache as large as the other's."""

    def __init__(self, model: Any) -> None:
        from transformers import StaticCache

        from bitnet_core.model.kv_cache import named

        self.named = named
        model.set_activation_bits(16)
        self.model = model.to("cuda", torch.bfloat16)
        self.cache = StaticCache(config=model.config, max_cache_len=STUDENT["max_position_embeddings"])
        self.id = torch.ones(1, 1, dtype=torch.long, device="cuda")

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
