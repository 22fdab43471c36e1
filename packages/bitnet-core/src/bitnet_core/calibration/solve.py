"""From the moments of a group of linears to its ternary codes, row scales and latent weights.

Shapes: I input width, O output rows. The codes are chosen one column after the other, and what a column's rounding does
to the outputs is made good by the columns after it: GPTQ (Frantar et al. 2022, https://arxiv.org/abs/2210.17323) with
three levels.
"""

import attrs
import torch
from torch import Tensor

from bitnet_core.calibration.moments import Moments
from bitnet_core.ternary.ternary_linear import SMALLEST_SCALE, least_squares_log_scale

RIDGE = 0.2
"""Of the mean diagonal of H, added to it where targets are corrected: keeps them near the weights. Chosen on validation
documents, at 10,000 to 50,000 tokens (docs/calibrated-start.md)."""
DAMPING = 0.01
"""Of the mean diagonal of H, added to it where codes are chosen."""
ROUNDS = 2
"""Codes are chosen this often: with scales that fit the weights, then with the scales that fitted the outputs."""
BLOCK = 64
"""Columns whose errors are carried to the columns after them in one product."""
CELL_MARGIN = 0.02
"""How far a latent weight stays from the edge of its code's cell, in scales."""
FURTHEST = 1.5
"""The largest magnitude of a latent weight, in scales."""


@attrs.frozen(eq=False)
class Fitted:
    """Ternary weights that put out nearly what was wanted, in the form in which they are trained on; float32."""

    weight_OI: Tensor
    """Latent weights: their rounding by the scales is the codes, exactly."""
    log_scale_O: Tensor
    codes_OI: Tensor
    damping: float
    """What the choice of codes needed, of the mean diagonal; infinity where H was taken as diagonal."""


def fit(weight_OI: Tensor, moments: Moments) -> Fitted:
    """Codes, scales and latent weights for `weight_OI`, float32."""
    target_OI = corrected_weight(weight_OI, moments)
    upper_II, order, damping = elimination_order(moments.input_II)
    scale_O = least_squares_log_scale(target_OI).exp()
    for _ in range(ROUNDS):
        start_O = scale_O
        codes_OI, moved_OI = gptq_codes(target_OI, start_O, upper_II, order)
        scale_O = output_scale(target_OI, codes_OI, moments.input_II, start_O)
    inside_OI = into_cell(moved_OI / start_O[:, None], codes_OI)
    return Fitted(inside_OI * scale_O[:, None], scale_O.log(), codes_OI, damping)


def corrected_weight(weight_OI: Tensor, moments: Moments) -> Tensor:
    """W' = W + ((H + ridge)⁻¹ B)ᵀ, float32: with the student's own inputs it puts out what the teacher's W does.

    The layers before have made errors; without the correction they pile up with depth.
    """
    factor_II, _ = damped_cholesky(moments.input_II.double(), RIDGE)
    shift_IO = torch.cholesky_solve(moments.correction_IO.double(), factor_II)
    return weight_OI + shift_IO.T.float()


def elimination_order(input_II: Tensor) -> tuple[Tensor, Tensor, float]:
    """U [I, I], float32, upper triangular with UᵀU = (H + damping)⁻¹; the order [I], by falling diag H; the damping."""
    order = torch.argsort(input_II.diagonal(), descending=True, stable=True)
    # With the order reversed, H's lower factor is U's inverse read from the other corner: one Cholesky, one inverse.
    reverse = order.flip(0)
    lower_II, damping = damped_cholesky(input_II.double()[reverse][:, reverse], DAMPING)
    identity_II = torch.eye(len(order), dtype=torch.float64, device=input_II.device)
    inverse_II = torch.linalg.solve_triangular(lower_II, identity_II, upper=False)
    return inverse_II.flip(0, 1).float().contiguous(), order, damping


def damped_cholesky(matrix_II: Tensor, damping: float) -> tuple[Tensor, float]:
    """The lower Cholesky factor of the matrix + damping · its mean diagonal, float64, and the damping that it took.

    Where rounding has left the matrix indefinite: up to 100 times more, then its diagonal alone (infinity).
    """
    mean = float(matrix_II.diagonal().mean().clamp(min=torch.finfo(torch.float32).tiny))
    for factor in (1, 10, 100):
        damped_II = matrix_II.clone()
        damped_II.diagonal().add_(factor * damping * mean)
        lower_II, info = torch.linalg.cholesky_ex(damped_II)
        if int(info) == 0 and bool(torch.isfinite(lower_II).all()):
            return lower_II, factor * damping
    return torch.diag((matrix_II.diagonal().clamp(min=0) + damping * mean).sqrt()), float("inf")


def gptq_codes(target_OI: Tensor, scale_O: Tensor, upper_II: Tensor, order: Tensor) -> tuple[Tensor, Tensor]:
    """The codes [O, I], float32, and each weight as it was when its turn to be rounded came [O, I].

    upper_II, order: as `elimination_order` gives them. A column that H knows nothing of keeps its own rounding.
    """
    weight_IO = target_OI[:, order].T.contiguous()  # a column of weights is a row here
    codes_IO, moved_IO = torch.empty_like(weight_IO), torch.empty_like(weight_IO)
    width = len(weight_IO)
    diagonal = upper_II.diagonal().tolist()
    for first in range(0, width, BLOCK):
        last = min(first + BLOCK, width)
        error_KO = weight_IO.new_empty(last - first, weight_IO.shape[1])
        for i in range(first, last):
            moved_IO[i] = weight_IO[i]
            torch.div(weight_IO[i], scale_O, out=codes_IO[i]).round_().clamp_(-1, 1)
            torch.addcmul(weight_IO[i], codes_IO[i], scale_O, value=-1, out=error_KO[i - first]).div_(diagonal[i])
            if i + 1 < last:
                weight_IO[i + 1 : last].addr_(upper_II[i, i + 1 : last], error_KO[i - first], alpha=-1)
        if last < width:
            weight_IO[last:].addmm_(upper_II[first:last, last:].T, error_KO, alpha=-1)
    back = torch.argsort(order)
    return codes_IO[back].T.contiguous(), moved_IO[back].T.contiguous()


def output_scale(target_OI: Tensor, codes_OI: Tensor, input_II: Tensor, otherwise_O: Tensor) -> Tensor:
    """s = t H w' / t H t of each row: what minimises the error of its output. `otherwise_O` where that is no scale."""
    seen_OI = codes_OI @ input_II
    wanted_O, there_O = torch.linalg.vecdot(seen_OI, target_OI), torch.linalg.vecdot(seen_OI, codes_OI)
    scale_O = wanted_O / there_O
    sound_O = (there_O > 0) & (scale_O > SMALLEST_SCALE) & torch.isfinite(scale_O)
    return torch.where(sound_O, scale_O, otherwise_O).clamp(min=SMALLEST_SCALE)


def into_cell(inside_OI: Tensor, codes_OI: Tensor) -> Tensor:
    """Weights in scales, moved as little as it takes to round to their codes with a margin: |u| ≤ `FURTHEST`."""
    edge = 0.5
    low_OI = torch.where(codes_OI > 0, edge + CELL_MARGIN, torch.where(codes_OI < 0, -FURTHEST, CELL_MARGIN - edge))
    high_OI = torch.where(codes_OI > 0, FURTHEST, torch.where(codes_OI < 0, -edge - CELL_MARGIN, edge - CELL_MARGIN))
    return torch.minimum(torch.maximum(inside_OI, low_OI), high_OI)
