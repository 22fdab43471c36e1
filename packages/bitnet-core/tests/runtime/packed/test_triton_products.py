"""The GPU kernels where there is no GPU: their numbers in Triton's interpreter, what its compiler makes of them."""

import os
import re
import subprocess
import sys
from collections import Counter
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


@pytest.mark.parametrize(("capability", "dtype"), [(75, torch.float16), (90, torch.bfloat16)])
@pytest.mark.parametrize("tied", [True, False])
def test_the_decode_step_on_a_gpu_that_is_not_here(
    capability: int, dtype: torch.dtype, tied: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On fake CUDA tensors: a value that the host asks for, or a tensor on another device, is an error there.

    Two layers of seven products and four quantised inputs, one token by the GEMV and a prompt by the product for many.
    """
    from benchmarks.kernels import recorded
    from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
    from bitnet_core.runtime.packed.cuda import CudaEngine

    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation=True: capability >= 80)
    monkeypatch.setattr(CudaEngine, "_capture", lambda engine: None)
    monkeypatch.setattr("bitnet_core.runtime.packed.cuda.move", lambda model, device: model)  # fakes can't be moved
    config = BitNetKDEConfig(
        vocab_size=96, hidden_size=64, intermediate_size=96, num_hidden_layers=2, num_attention_heads=2,
        num_key_value_heads=1, max_position_embeddings=64, tie_word_embeddings=tied, packed=True,
    )  # fmt: skip
    found: list[torch.Tensor] = []

    def decode() -> None:
        with torch.device("cuda"):
            model = BitNetKDEForCausalLM(config).eval()
        engine = CudaEngine(model, context=32)
        found.append(engine._step())
        found.append(engine.logits([1, 2, 3, 4], last=2))
        assert engine._cache.layers[0].keys.dtype is dtype

    launches = recorded("decode", capability, decode)
    assert [(each.device.type, each.dtype, each.shape) for each in found] == [
        ("cuda", dtype, (1, 96)), ("cuda", torch.float32, (2, 96)),
    ]  # fmt: skip
    many = "matmul_kernel" if capability >= 80 else "dp4a_matmul_kernel"
    assert Counter(each.name for each in launches) == {"quantise_kernel": 3 * 8, "gemv_kernel": 2 * 14, many: 14}


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
