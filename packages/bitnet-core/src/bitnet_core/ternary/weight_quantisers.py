"""The recipes by which weights become ternary, by name, so that they can be compared.

All give ``s * t`` with ``t = clip(round(w / s), -1, 1)``; they differ in where s comes from and in what the gradients
do. Shapes: I input width, O output width.
"""

from collections.abc import Callable

import attrs
from torch import Tensor

from bitnet_core.ternary.ternary_linear import SMALLEST_SCALE, least_squares_log_scale


@attrs.frozen
class WeightQuantiser:
    """One recipe."""

    log_scale_of: Callable[[Tensor], Tensor]
    """log s [O], float32, of a weight [O, I]: where a learned scale starts, or what a computed one is at every step."""
    learned: bool
    """The scale is a parameter with LSQ's gradient; else it is computed from the weight, without gradient."""
    gradient_range: float = 1.0
    """In scales: where |w| is beyond it, LSQ's gradient takes the code as clipped, not as rounded."""
    clip_gradient: bool = False
    """No gradient to weights beyond that range; else the identity everywhere (straight-through)."""

    @property
    def no_gradient_beyond(self) -> float | None:
        return self.gradient_range if self.clip_gradient else None


def row_absmean_log_scale(weight_OI: Tensor) -> Tensor:
    return weight_OI.detach().float().abs().mean(1).clamp(min=SMALLEST_SCALE).log()


def tensor_absmean_log_scale(weight_OI: Tensor) -> Tensor:
    mean = weight_OI.detach().float().abs().mean().clamp(min=SMALLEST_SCALE)
    return mean.log().expand(weight_OI.shape[0])


def stretched_log_scale(weight_OI: Tensor) -> Tensor:
    """Two thirds of the row's largest magnitude: three levels spread evenly over the whole range."""
    return weight_OI.detach().float().abs().amax(1).mul(2 / 3).clamp(min=SMALLEST_SCALE).log()


WEIGHT_QUANTISERS = {
    # A learned scale per output row (Esser et al. 2020, https://arxiv.org/abs/1902.08153), started by least squares.
    "lsq": WeightQuantiser(least_squares_log_scale, learned=True),
    "lsq_clip": WeightQuantiser(least_squares_log_scale, learned=True, clip_gradient=True),
    # BitNet b1.58 (https://arxiv.org/abs/2402.17764), and the same for each row.
    "absmean_tensor": WeightQuantiser(tensor_absmean_log_scale, learned=False),
    "absmean_row": WeightQuantiser(row_absmean_log_scale, learned=False),
    # ParetoQ's stretched elastic quantiser (https://arxiv.org/abs/2502.02631). Its range alpha is 1.5 s, cut at 0.99.
    # Beyond the range we take the code's own derivative, t.
    "seq": WeightQuantiser(stretched_log_scale, learned=True, gradient_range=0.99 * 1.5, clip_gradient=True),
}
"""By the name that a manifest's ``student.weight_quantiser`` gives."""
