"""The GPU kernels where there is no GPU: their numbers in Triton's interpreter, what its compiler makes of them."""

import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("triton", reason="torch brings Triton on Linux only")


@pytest.mark.slow
def test_kernels_and_engine_in_the_interpreter() -> None:
    """In a process of its own: Triton looks at TRITON_INTERPRET when it is imported, which torch may have done here."""
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-x", "-n0", "-p", "no:cacheprovider", "--import-mode=importlib",
         str(Path(__file__).with_name("triton_in_the_interpreter.py"))],
        capture_output=True, text=True, check=False, env=os.environ | {"TRITON_INTERPRET": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:] + done.stderr[-2000:]
    assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 30


def ptx(kernel: Any, signature: dict[str, str], constants: dict[str, Any], warps: int) -> str:
    """What Triton makes of it for an H200 (sm_90); all pointers and sizes are multiples of 16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = [*signature, *constants]
    source = ASTSource(
        fn=kernel,
        signature=signature | dict.fromkeys(constants, "constexpr"),
        constexprs={(names.index(name),): value for name, value in constants.items()},
        attrs={(names.index(name),): [["tt.divisibility", 16]] for name in signature},
    )
    compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": warps})
    return str(compiled.asm["ptx"])


def test_the_compiler_makes_what_the_speed_rests_on() -> None:
    """Sixteen bytes of codes a load and four products an instruction in the GEMV, int8 tensor cores in the prefill."""
    from bitnet_core.runtime.packed import triton_products as kernels

    tensors = {"row_scales": "*fp32", "biases": "*fp32", "y": "*bf16"}
    tile = kernels.GEMV_TILES[0]
    gemv = ptx(
        kernels.gemv_kernel,
        {"planes": "*i32", "scales": "*fp32", "sums": "*i32", "codes": "*i32"}
        | tensors
        | {"outputs": "i32", "words": "i32"},
        {"ROWS": tile.rows, "WORDS": tile.inner, "BIAS": False, "DP4A": True},
        tile.warps,
    )
    assert gemv.count("dp4a.u32.s32") == 4 * tile.rows * tile.inner // (32 * tile.warps)
    assert "ld.global.v4.b32" in gemv
    tile = kernels.PREFILL_TILES[0]
    prefill = ptx(
        kernels.matmul_kernel,
        {"planes": "*i8", "scales": "*fp32", "codes": "*u8"} | tensors
        | {"tokens": "i32", "outputs": "i32", "row_bytes": "i32"},
        {"TOKENS": tile.tokens, "ROWS": tile.rows, "BYTES": tile.inner, "BIAS": False},
        tile.warps,
    )  # fmt: skip
    assert re.search(r"(wgmma\.mma_async|mma)\.sync\S*\.s32\.s8\.s8", prefill)
    quantise = ptx(
        kernels.quantise_kernel,
        {"x": "*fp32", "planes": "*i8", "scales": "*fp32", "sums": "*i32", "inputs": "i32", "row_bytes": "i32"},
        {"WIDTH": 1024, "FOUR": False},
        4,
    )
    assert "div.rn.f32" in quantise, "the division that gives torch's own codes"
    assert "div.full" not in quantise


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: kernels and graphs as they really run")
def test_on_a_gpu_the_graph_replays_what_the_model_says(checkpoint: Path) -> None:
    from bitnet_core.runtime.packed.cuda import CudaEngine, packed_model

    ids = [5, 9, 200, 33, 7, 120, 8, 64]
    model = packed_model(checkpoint)
    with torch.no_grad():
        expected_TV = model(input_ids=torch.tensor([ids])).logits[0]
    engine = CudaEngine(model, dtype=torch.float32, context=64)
    assert engine._graph is not None
    torch.testing.assert_close(engine.logits(ids).cpu(), expected_TV, rtol=0, atol=1e-2)
    for length in (3, 4, 5, 8, 2):
        replayed_V = engine.logits(ids[:length], last=1)[0].cpu()
        torch.testing.assert_close(replayed_V, expected_TV[length - 1], rtol=0, atol=1e-2)
