"""Token weights and moments against the sums written out in float64."""

import numpy as np
import pytest
import torch

from bitnet_core.calibration.moments import GAP_CAP, INPUT_CAP, Inputs, all_weights, gather_moments, token_weights

TOKENS, WIDTH, ROWS = 700, 24, 10  # more tokens than are summed in one product


def some_inputs(residual: bool, dtype: torch.dtype = torch.float32) -> list[Inputs]:
    generator = torch.Generator().manual_seed(0)
    student = torch.randn(TOKENS, WIDTH, generator=generator)
    teacher = student + 0.2 * torch.randn(TOKENS, WIDTH, generator=generator)
    behind = torch.randn(TOKENS, ROWS, generator=generator)
    student[7] *= 200  # a sink of the student's inputs alone
    teacher[7] = student[7]
    teacher[31] += 50  # one of the gap
    behind[64] *= 90  # one of the stream
    parts = [slice(0, 100), slice(100, 650), slice(650, TOKENS)]
    return [
        Inputs(student[rows].to(dtype), teacher[rows].to(dtype), behind[rows] if residual else None) for rows in parts
    ]


def whole(batches: list[Inputs]) -> tuple[np.ndarray, np.ndarray, np.ndarray | None]:
    student, teacher = (
        torch.cat([getattr(each, name) for each in batches]).double().numpy() for name in ("student_NI", "teacher_NI")
    )
    behind = [each.behind_NO for each in batches if each.behind_NO is not None]
    return student, teacher, torch.cat(behind).double().numpy() if behind else None


def reference_weights(batches: list[Inputs]) -> np.ndarray:
    student, teacher, behind = whole(batches)
    weights = np.ones(TOKENS)
    for values, cap in ((student, INPUT_CAP), (teacher - student, GAP_CAP), (behind, GAP_CAP)):
        if values is not None:
            norms = (values**2).sum(1)
            weights = np.minimum(weights, cap * np.sort(norms)[(TOKENS - 1) // 2] / np.maximum(norms, 1e-30))
    return weights


@pytest.mark.parametrize("residual", [False, True])
def test_massive_tokens_count_less(residual: bool) -> None:
    batches = some_inputs(residual)
    found = all_weights(batches).double().numpy()
    np.testing.assert_allclose(found, reference_weights(batches), rtol=1e-4)
    assert set(np.flatnonzero(found < 1)) == ({7, 31, 64} if residual else {7, 31})


def test_a_sink_is_capped_at_the_median() -> None:
    norms = torch.tensor([1.0, 2.0, 3.0, 1e6, 60.0])
    torch.testing.assert_close(token_weights((norms, 30.0)), torch.tensor([1.0, 1.0, 1.0, 90 / 1e6, 1.0]))


def test_a_gap_that_is_mostly_zero_caps_nothing() -> None:
    norms = torch.tensor([0.0, 0.0, 0.0, 5.0])
    assert token_weights((norms, 20.0)).tolist() == [1.0] * 4


@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 1e-2)])
def test_moments_are_the_sums_over_all_tokens(residual: bool, dtype: torch.dtype, tolerance: float) -> None:
    batches = some_inputs(residual, dtype)
    weight = torch.randn(ROWS, WIDTH, generator=torch.Generator().manual_seed(5))
    found = gather_moments(lambda: batches, weight)
    student, teacher, behind = whole(batches)
    weighted = student * reference_weights(batches)[:, None]
    expected = weighted.T @ student / TOKENS
    target = (teacher - student) @ weight.double().numpy().T + (0 if behind is None else behind)
    correction = weighted.T @ target / TOKENS
    assert found.input_II.dtype == found.correction_IO.dtype == torch.float32
    assert torch.equal(found.input_II, found.input_II.T)
    for ours, theirs in ((found.input_II, expected), (found.correction_IO, correction)):
        assert np.abs(ours.double().numpy() - theirs).max() < tolerance * np.abs(theirs).max()
