"""The GPU kernels where there is no GPU: their numbers in Triton's interpreter, what its compiler makes of them."""

import os
import re
import subprocess
import sys
from pathlib import Path

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


def test_the_compiler_divides_as_torch_does() -> None:
    """What else it makes of the kernels: tests/test_kernels.py."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    from bitnet_core.runtime.packed.triton_kernels import quantise_kernel

    types = {"x": "*fp32", "planes": "*i8", "scales": "*fp32", "sums": "*i32", "inputs": "i32", "row_bytes": "i32"}
    constants = {"WIDTH": 1024, "FOUR": False}
    source = ASTSource(quantise_kernel, types | dict.fromkeys(constants, "constexpr"), constants)
    ptx = triton.compile(source, target=GPUTarget("cuda", 90, 32)).asm["ptx"]
    assert "div.rn.f32" in ptx
    assert "div.full" not in ptx


@pytest.mark.cuda
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
