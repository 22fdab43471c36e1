"""The kernel against eager PyTorch: interpreted on the CPU, compiled where there is a GPU."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from bitnet_core.losses import chunked
from bitnet_core.losses.divergences import FORWARD_KL, Divergence, jensen_shannon, topk_other_term

pytest.importorskip("triton", reason="this torch comes without triton")
CASES = Path(__file__).with_name("chunk_triton_process.py")


def compared_on(device: str, **environment: str) -> str:
    """What the cases print, in a process of their own: triton reads the environment when it is imported."""
    command = [sys.executable, str(CASES), device]
    done = subprocess.run(command, capture_output=True, text=True, check=False, env=os.environ | environment)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.slow
def test_interpreted_it_is_the_eager_rows() -> None:
    assert compared_on("cpu", TRITON_INTERPRET="1", CUDA_VISIBLE_DEVICES="").count("the same") == 6


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU that Triton compiles for")
def test_compiled_it_is_the_eager_rows() -> None:
    assert compared_on("cuda", TRITON_INTERPRET="0").count("the same") == 6


def test_a_cpu_and_a_divergence_without_a_kernel_stay_eager(monkeypatch: pytest.MonkeyPatch) -> None:
    cuda: Any = type("Logits", (), {"device": torch.device("cuda"), "dtype": torch.bfloat16})()
    with_kernel = topk_other_term(1.0, jensen_shannon(0.3))
    assert chunked.has_kernel(cuda, with_kernel)
    assert not chunked.has_kernel(torch.zeros(1, 1), with_kernel)
    with FakeTensorMode():
        assert not chunked.has_kernel(torch.zeros(1, 1, device="cuda"), with_kernel)
    own = topk_other_term(1.0, Divergence(FORWARD_KL.value, FORWARD_KL.gradient))
    assert not chunked.has_kernel(cuda, own)
    monkeypatch.setenv(chunked.TRITON_SWITCH, "0")
    assert not chunked.has_kernel(cuda, with_kernel)
