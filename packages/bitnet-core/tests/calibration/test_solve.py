"""Codes, scales and latent weights against a slow float64 reference, and where inputs say nothing."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from bitnet_core.calibration import solve
from bitnet_core.calibration.moments import Moments
from bitnet_core.calibration.solve import (
    DAMPING,
    Fitted,
    corrected_weight,
    damped_cholesky,
    elimination_order,
    fit,
    gptq_codes,
    into_cell,
    output_scale,
)
from bitnet_core.ternary.ternary_linear import least_squares_log_scale, ternary_codes

WIDTH, ROWS = 150, 12  # more columns than two blocks hold
Array = NDArray[np.float64]


def inputs(width: int = WIDTH, tokens: int = 400, seed: int = 0) -> Tensor:
    """Correlated, of unlike sizes. [tokens, width]"""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(width, width, generator=generator) / width**0.5 + torch.eye(width)
    return torch.randn(tokens, width, generator=generator) @ mixing * torch.rand(width, generator=generator)


def moments_of(x_NI: Tensor, shift_NO: Tensor) -> Moments:
    return Moments(x_NI.T @ x_NI / len(x_NI), x_NI.T @ shift_NO / len(x_NI))


@pytest.fixture
def weight() -> Tensor:
    return torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(1))


def fitted_for(weight: Tensor, x_NI: Tensor, seed: int = 2) -> Fitted:
    shift = 0.3 * torch.randn(len(x_NI), len(weight), generator=torch.Generator().manual_seed(seed))
    return fit(weight, moments_of(x_NI, shift))


def reference_codes(target: Array, H: Array, scale: Array) -> tuple[Array, Array]:
    """Optimal brain surgeon, a column at a time: the inverse of H is made anew for the columns that are left.

    Each rounding error is made good by the columns left (Hassibi and Stork 1993), without GPTQ's Cholesky or blocks.
    """
    order = np.argsort(-np.diag(H), kind="stable")
    weight, codes, moved = target.copy(), np.zeros_like(target), np.zeros_like(target)
    damped = H + DAMPING * np.diag(H).mean() * np.eye(len(H))
    for position, column in enumerate(order):
        left = order[position:]
        inverse = np.linalg.inv(damped[np.ix_(left, left)])
        moved[:, column] = weight[:, column]
        codes[:, column] = np.clip(np.round(weight[:, column] / scale), -1, 1)
        error = (weight[:, column] - codes[:, column] * scale) / inverse[0, 0]
        weight[:, left] -= np.outer(error, inverse[0])
    return codes, moved


def test_codes_and_scales_are_the_slow_references(weight: Tensor) -> None:
    x = inputs()
    H = (x.T @ x / len(x)).double().numpy()
    scale = least_squares_log_scale(weight).exp()
    upper, order, damping = elimination_order(torch.from_numpy(H).float())
    assert damping == DAMPING
    codes, moved = gptq_codes(weight, scale, upper, order)
    expected, expected_moved = reference_codes(weight.double().numpy(), H, scale.double().numpy())
    same = (codes.numpy() == expected).mean(1) == 1  # float32 may tip a tie, and then the rest of its row
    assert same.mean() > 0.8
    np.testing.assert_allclose(moved.numpy()[same], expected_moved[same], atol=2e-3)

    found = output_scale(weight, codes, torch.from_numpy(H).float(), scale)
    t, w = codes.double().numpy(), weight.double().numpy()
    best = np.einsum("oi,ij,oj->o", t, H, w) / np.einsum("oi,ij,oj->o", t, H, t)
    np.testing.assert_allclose(found.numpy(), best, rtol=1e-4)


def test_the_outputs_are_nearer_than_those_of_the_rounded_weights(weight: Tensor) -> None:
    x = inputs()
    result = fit(weight, moments_of(x, torch.zeros(len(x), ROWS)))
    scale = least_squares_log_scale(weight)
    plain = ternary_codes(weight, scale) * scale.exp()[:, None]
    ours = result.codes_OI * result.log_scale_O.exp()[:, None]
    wanted = x @ weight.T
    assert (x @ ours.T - wanted).square().sum() < 0.7 * (x @ plain.T - wanted).square().sum()


def test_choosing_codes_again_with_the_fitted_scales_brings_the_outputs_nearer(
    weight: Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = inputs()
    errors = []
    for rounds in (1, 2):
        monkeypatch.setattr(solve, "ROUNDS", rounds)
        result = fit(weight, moments_of(x, torch.zeros(len(x), ROWS)))
        ours = result.codes_OI * result.log_scale_O.exp()[:, None]
        errors.append(float((x @ (ours - weight).T).square().sum()))
    assert errors[1] < 0.98 * errors[0]


def test_the_corrected_weight_is_ridge_regression(weight: Tensor) -> None:
    x, shift = inputs(tokens=300), torch.randn(300, ROWS, generator=torch.Generator().manual_seed(3))
    found = corrected_weight(weight, moments_of(x, shift)).double().numpy()
    X, Y = x.double().numpy(), shift.double().numpy()
    H = X.T @ X / len(X)
    # The same by least squares on the data with rows for the penalty, without any normal equations.
    penalty = np.sqrt(0.2 * np.diag(H).mean() * len(X)) * np.eye(WIDTH)
    expected = np.linalg.lstsq(np.vstack([X, penalty]), np.vstack([Y, np.zeros((WIDTH, ROWS))]), rcond=None)[0].T
    np.testing.assert_allclose(found - weight.double().numpy(), expected, atol=1e-4)


def test_latent_weights_round_to_the_codes_exactly(weight: Tensor) -> None:
    result = fitted_for(weight, inputs())
    assert torch.equal(ternary_codes(result.weight_OI, result.log_scale_O), result.codes_OI)
    inside = (result.weight_OI / result.log_scale_O.exp()[:, None]).abs()
    assert inside.max() <= 1.5 + 1e-5
    assert (inside - 0.5).abs().min() >= 0.02 - 1e-5
    assert result.codes_OI.unique().tolist() == [-1, 0, 1]


@given(u=st.floats(-5, 5, width=32), code=st.sampled_from([-1.0, 0.0, 1.0]), log_scale=st.floats(-18, 5, width=32))
def test_any_weight_can_be_moved_into_any_cell(u: float, code: float, log_scale: float) -> None:
    codes, scales = torch.tensor([[code]]), torch.tensor([log_scale])
    inside = into_cell(torch.tensor([[u]]), codes)
    assert ternary_codes(inside * scales.exp()[:, None], scales).item() == code
    if abs(u) <= 1.4 and round(u) == code and abs(abs(u) - 0.5) > 0.03:
        assert inside.item() == pytest.approx(u)  # where it belongs already it stays


def test_a_row_of_zeros_stays_one(weight: Tensor) -> None:
    weight[3] = 0
    x = inputs()
    result = fit(weight, moments_of(x, torch.zeros(len(x), ROWS)))
    assert not result.codes_OI[3].any()
    assert torch.isfinite(result.weight_OI).all()
    assert torch.isfinite(result.log_scale_O).all()
    assert torch.equal(ternary_codes(result.weight_OI, result.log_scale_O), result.codes_OI)


def test_a_column_that_was_never_seen_keeps_its_own_rounding(weight: Tensor) -> None:
    x = inputs()
    x[:, [5, 70]] = 0
    shift = torch.randn(len(x), ROWS, generator=torch.Generator().manual_seed(3))
    moments = moments_of(x, shift)
    target = corrected_weight(weight, moments)
    assert torch.equal(target[:, [5, 70]], weight[:, [5, 70]])
    result = fit(weight, moments)
    upper, order, _ = elimination_order(moments.input_II)
    start = least_squares_log_scale(target).exp()
    again = output_scale(target, gptq_codes(target, start, upper, order)[0], moments.input_II, start)
    assert torch.equal(result.codes_OI[:, [5, 70]], ternary_codes(weight, again.log())[:, [5, 70]])


def test_inputs_that_are_all_zero_give_the_least_squares_start(weight: Tensor) -> None:
    result = fit(weight, Moments(torch.zeros(WIDTH, WIDTH), torch.zeros(WIDTH, ROWS)))
    scale = least_squares_log_scale(weight)
    torch.testing.assert_close(result.log_scale_O, scale)
    assert torch.equal(result.codes_OI, ternary_codes(weight, scale))


def test_an_indefinite_matrix_takes_more_damping_and_then_its_diagonal() -> None:
    matrix = torch.diag(torch.tensor([1.0, 1.0, -0.05], dtype=torch.float64))
    lower, damping = damped_cholesky(matrix, 0.01)
    assert damping == pytest.approx(0.1)
    mean = matrix.diagonal().mean()
    torch.testing.assert_close(lower @ lower.T, matrix + 0.1 * mean * torch.eye(3, dtype=torch.float64))
    matrix[2, 2] = -0.9
    matrix[0, 1] = matrix[1, 0] = 5.0
    lower, damping = damped_cholesky(matrix, 0.01)
    assert damping == float("inf")
    assert torch.isfinite(lower).all()
    assert (lower.diagonal() > 0).all()
