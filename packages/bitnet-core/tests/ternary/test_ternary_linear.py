"""The ternary product and its scales against formulas in float64 NumPy, and against finite differences."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_core.ternary.ternary_linear import (
    least_squares_log_scale,
    lsq_log_scale_gradient,
    ternary_codes,
    ternary_linear,
    ternary_weight,
)


def reference_codes(weight: np.ndarray, scale: np.ndarray) -> np.ndarray:
    """clip(round(w / s)), one weight at a time."""
    codes = np.zeros(weight.shape)
    for row in range(weight.shape[0]):
        for column in range(weight.shape[1]):
            ratio = weight[row, column] / scale[row]
            codes[row, column] = 1 if ratio > 0.5 else -1 if ratio < -0.5 else 0
    return codes


def reference_step_gradient(u: float) -> float:
    """LSQ's d(s t)/ds: t - u within the range, t outside."""
    if u > 1:
        return 1.0
    if u < -1:
        return -1.0
    return (1.0 if u > 0.5 else -1.0 if u < -0.5 else 0.0) - u


def random_layer(seed: int, outputs: int = 5, inputs: int = 12) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    weight = torch.randn(outputs, inputs, generator=generator, dtype=torch.float64)
    log_scale = 0.3 * torch.randn(outputs, generator=generator, dtype=torch.float64)
    x = torch.randn(2, 3, inputs, generator=generator, dtype=torch.float64)
    return x, weight, log_scale


@pytest.mark.parametrize("seed", range(3))
def test_codes_and_weight_are_the_definition(seed: int) -> None:
    _, weight, log_scale = random_layer(seed)
    scale = np.exp(log_scale.numpy())
    expected = reference_codes(weight.numpy(), scale)
    assert set(np.unique(expected)) == {-1, 0, 1}
    np.testing.assert_array_equal(ternary_codes(weight, log_scale).numpy(), expected)
    np.testing.assert_allclose(
        ternary_weight(weight, log_scale, torch.float64).numpy(), expected * scale[:, None], rtol=1e-12
    )


@pytest.mark.parametrize("clip", [False, True])
def test_gradients_are_lsq_and_straight_through(clip: bool) -> None:
    x, weight, log_scale = random_layer(7)
    for tensor in (x, weight, log_scale):
        tensor.requires_grad_()
    y = ternary_linear(x, weight, log_scale, no_gradient_beyond=1.0 if clip else None)
    grad_y = torch.randn(y.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    y.backward(grad_y)

    scale = np.exp(log_scale.detach().numpy())
    w, g = weight.detach().numpy(), grad_y.numpy().reshape(-1, weight.shape[0])
    quantised = reference_codes(w, scale) * scale[:, None]
    grad_quantised = g.T @ x.detach().numpy().reshape(-1, weight.shape[1])
    u = w / scale[:, None]
    expected_scale = scale * (grad_quantised * np.vectorize(reference_step_gradient)(u)).sum(1)
    expected_weight = np.where(np.abs(u) <= 1, grad_quantised, 0) if clip else grad_quantised
    assert (np.abs(u) > 1).any()
    assert (np.abs(u) < 1).any()

    np.testing.assert_allclose(y.detach().numpy(), x.detach().numpy() @ quantised.T, rtol=1e-12)
    assert x.grad is not None
    assert weight.grad is not None
    assert log_scale.grad is not None
    np.testing.assert_allclose(x.grad.numpy(), grad_y.numpy() @ quantised, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(weight.grad.numpy(), expected_weight, rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(log_scale.grad.numpy(), expected_scale, rtol=1e-12, atol=1e-12)


def test_scale_gradient_is_the_derivative_of_the_surrogate() -> None:
    """Straight through the rounding: d(s * clip(u))/ds plus the rounding's error, by central differences in log s.

    The surrogate holds the rounding error e = round(clip(u)) - clip(u) fixed, so s * (clip(w / s) + e) is smooth in s.
    """
    _, weight, log_scale = random_layer(3, outputs=4, inputs=50)
    grad = torch.randn(weight.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    w, g, log_s = weight.numpy(), grad.numpy(), log_scale.numpy()

    def clipped(at: np.ndarray) -> np.ndarray:
        return np.clip(w / np.exp(at)[:, None], -1, 1)

    error = reference_codes(w, np.exp(log_s)) - clipped(log_s)

    def loss(at: np.ndarray) -> np.ndarray:
        return (g * np.exp(at)[:, None] * (clipped(at) + error)).sum(1)

    step = 1e-7
    numeric = (loss(log_s + step) - loss(log_s - step)) / (2 * step)
    np.testing.assert_allclose(lsq_log_scale_gradient(grad, weight, log_scale).numpy(), numeric, rtol=1e-5, atol=1e-6)


def test_frozen_parts_get_no_gradient() -> None:
    x, weight, log_scale = random_layer(4)
    log_scale.requires_grad_()
    ternary_linear(x, weight, log_scale).sum().backward()
    assert log_scale.grad is not None
    assert weight.grad is None
    assert x.grad is None


def test_backward_keeps_no_copy_of_the_weight() -> None:
    x, weight, log_scale = random_layer(5)
    x.requires_grad_()
    weight.requires_grad_()
    log_scale.requires_grad_()
    saved: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t.data_ptr()) or t, lambda t: t):
        ternary_linear(x, weight, log_scale)
    assert sorted(saved) == sorted(t.data_ptr() for t in (x, weight, log_scale))


def squared_error(weight: torch.Tensor, log_scale: torch.Tensor) -> torch.Tensor:
    return (weight - ternary_weight(weight, log_scale, weight.dtype)).square().sum(1)


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 10_000), st.sampled_from(["normal", "uniform", "student", "few"]), st.floats(-12, 4))
def test_least_squares_is_never_worse_than_absmean(seed: int, kind: str, log10_size: float) -> None:
    rng = np.random.default_rng(seed)
    draw = {
        "normal": lambda: rng.normal(size=(4, 64)),
        "uniform": lambda: rng.uniform(-1, 1, size=(4, 64)),
        "student": lambda: rng.standard_t(2, size=(4, 64)),
        "few": lambda: rng.choice([0.0, 0.0, 1.0, -3.0], size=(4, 64)),
    }[kind]()
    weight = torch.tensor(draw * 10**log10_size)
    absmean = weight.abs().mean(1).clamp(min=1e-8).log()
    fitted = least_squares_log_scale(weight)
    assert torch.isfinite(fitted).all()
    assert (squared_error(weight, fitted) <= squared_error(weight, absmean) * (1 + 1e-9)).all()


def test_least_squares_finds_the_best_scale_of_gaussian_rows() -> None:
    """Against all thresholds: with the k largest magnitudes kept, the best error is |w|^2 - (sum of them)^2 / k."""
    weight = torch.randn(20, 500, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    sorted_sum = np.cumsum(-np.sort(-np.abs(weight.numpy()), axis=1), axis=1)
    best = (weight.numpy() ** 2).sum(1) - (sorted_sum**2 / np.arange(1, 501)).max(1)
    error = squared_error(weight, least_squares_log_scale(weight)).numpy()
    absmean = squared_error(weight, weight.abs().mean(1).log()).numpy()
    assert (error <= best * 1.002).all()
    assert (absmean > best * 1.05).mean() > 0.9  # so the start is worth its name


def test_least_squares_of_ternary_rows_is_exact_and_of_zeros_is_positive() -> None:
    codes = torch.tensor([[1.0, 0.0, -1.0, 0.0], [1.0, 1.0, -1.0, 1.0]])
    scales = torch.tensor([0.02, 3.0])
    torch.testing.assert_close(least_squares_log_scale(codes * scales[:, None]), scales.log())
    assert least_squares_log_scale(torch.zeros(2, 8)).exp().gt(0).all()
    assert torch.isfinite(least_squares_log_scale(torch.zeros(2, 8))).all()
