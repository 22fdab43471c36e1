"""The activation quantisers against formulas written again in float64 NumPy."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.ternary.activation_quantiser import FakeQuantActivation, activation_codes


def reference_activation(x: np.ndarray, bits: int) -> np.ndarray:
    """BitNet b1.58's absmax (8) and BitNet a4.8's absmean (4), token by token, float64."""
    out = np.zeros_like(x)
    for token in range(x.shape[0]):
        row = x[token]
        if not row.any():
            continue
        if bits == 8:
            gain = 127 / max(abs(value) for value in row)
            out[token] = np.clip(np.rint(row * gain), -128, 127) / gain
        else:
            gain = math.sqrt(7) / (sum(abs(value) for value in row) / len(row))
            out[token] = np.clip(np.rint(row * gain), -8, 7) / gain
    return out


def activation_inputs(kind: str) -> np.ndarray:
    rng = np.random.default_rng(11)
    x = rng.normal(size=(6, 48))
    if kind == "outlier":
        x[:, 5] = 400
        x[2, 5] = -400
    return {"tiny": x * 1e-20, "zero": x * 0, "huge": x * 1e20}.get(kind, x).astype(np.float32).astype(np.float64)


@pytest.mark.parametrize("bits", [8, 4])
@pytest.mark.parametrize("kind", ["gaussian", "outlier", "tiny", "zero", "huge"])
def test_activations_are_the_published_formulas(kind: str, bits: int) -> None:
    x = activation_inputs(kind)
    expected = reference_activation(x, bits)
    quantised = FakeQuantActivation(bits, low_bits=True)(torch.tensor(x, dtype=torch.float32)).double().numpy()
    assert np.isfinite(quantised).all()
    np.testing.assert_allclose(quantised, expected, rtol=1e-6)
    codes, scale = activation_codes(torch.tensor(x, dtype=torch.float32), bits)
    assert codes.eq(codes.round()).all()
    assert codes.min() >= (-127 if bits == 8 else -8)
    assert codes.max() <= (127 if bits == 8 else 7)
    np.testing.assert_allclose((codes * scale).double().numpy(), expected, rtol=1e-6)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.floats(-25, 25))
def test_a8_is_within_half_a_step_and_idempotent(seed: int, log10_size: float) -> None:
    x = torch.tensor(np.random.default_rng(seed).normal(size=(3, 40)) * 10**log10_size, dtype=torch.float32)
    quantise = FakeQuantActivation(8, low_bits=True)
    once = quantise(x)
    step = x.abs().amax(-1, keepdim=True) / 127
    assert ((once - x).abs() <= step * 0.5001).all()
    torch.testing.assert_close(quantise(once), once, rtol=1e-6, atol=0)


@pytest.mark.parametrize("bits", [16, 8, 4])
def test_activation_gradient_is_straight_through_also_where_clipped(bits: int) -> None:
    x = torch.tensor(activation_inputs("outlier"), dtype=torch.float32, requires_grad=True)
    out = FakeQuantActivation(bits, low_bits=True)(x)
    assert (bits == 4) == bool(out[0, 5] < 399)  # the outlier is clipped at 4 bits
    grad = torch.randn_like(out)
    out.backward(grad)
    torch.testing.assert_close(x.grad, grad)


def test_inputs_that_keep_eight_bits_follow_the_model_only_so_far() -> None:
    quantise = FakeQuantActivation(16, low_bits=False)
    assert quantise.bits == 16
    quantise.set_bits(4)
    assert quantise.bits == 8
    with pytest.raises(ValueError, match="must be 16 \\(off\\), 8 or 4, not 2"):
        quantise.set_bits(2)


def test_autocast_gives_one_low_precision_copy_of_exact_codes() -> None:
    x = torch.randn(4, 32, requires_grad=True)
    with torch.autocast("cpu", torch.bfloat16):
        out = FakeQuantActivation(8, low_bits=True)(x)
    assert out.dtype == torch.bfloat16
    codes, scale = activation_codes(x, 8)
    torch.testing.assert_close(out, (codes * scale).bfloat16())
    out.float().sum().backward()
    assert x.grad is not None
    assert x.grad.dtype == torch.float32
