"""What a group of linear layers is fitted to: weighted second moments of its inputs over the calibration tokens.

Shapes: N tokens, I input width, O output width (of all linears of the group). X̂ is the student's quantised input, X the
teacher's, R the teacher's residual stream less the student's, before the output is added to it.
"""

from collections.abc import Callable, Iterable
from typing import Any

import attrs
import torch
from torch import Tensor

INPUT_CAP = 30.0
"""A token's input may have this many times the median squared norm before it counts less: an attention sink, whose norm
is hundreds of times the others', would otherwise be all that is fitted."""
GAP_CAP = 20.0
"""The same of the gaps between student and teacher."""
PRODUCT_TOKENS = 512
"""Tokens whose products are summed before they are added in float32: the result of a 16-bit product is rounded."""


@attrs.frozen(eq=False)
class Inputs:
    """Some tokens before a group of linears."""

    student_NI: Tensor
    teacher_NI: Tensor
    behind_NO: Tensor | None
    """R, float32; None where the output isn't added to the stream."""


@attrs.frozen(eq=False)
class Moments:
    """Sums over tokens with weight w, divided by the number of tokens; float32, on the device of the inputs."""

    input_II: Tensor
    """H = X̂ᵀ w X̂"""
    correction_IO: Tensor
    """B = X̂ᵀ w ((X − X̂) Wᵀ + R)"""


def token_weights(*norms_and_caps: tuple[Tensor, float]) -> Tensor:
    """w [N]: the smallest of 1 and cap · median / norm over the pairs (squared norms [N], cap).

    A median of 0 caps nothing.
    """
    weight_N = torch.ones_like(norms_and_caps[0][0])
    for norm_N, cap in norms_and_caps:
        limit = cap * norm_N.median()
        if limit > 0:
            weight_N = torch.minimum(weight_N, limit / norm_N.clamp(min=float(limit)))
    return weight_N


def gather_moments(batches: Callable[[], Iterable[Inputs]], weight_OI: Tensor) -> Moments:
    """The moments over all of `batches`, which are gone through twice: for the tokens' weights, then for the products.

    weight_OI: W, float32. Products run in the dtype of the inputs and are summed in float32.
    """
    weights = all_weights(batches())
    input_II = weight_OI.new_zeros(weight_OI.shape[1], weight_OI.shape[1])
    gap_II, correction_IO = torch.zeros_like(input_II), weight_OI.new_zeros(weight_OI.shape).T.contiguous()
    first = 0
    for inputs in batches():
        dtype, count = inputs.student_NI.dtype, len(inputs.student_NI)
        root_N1 = weights[first : first + count, None].sqrt()
        student_NI = (inputs.student_NI * root_N1).to(dtype)
        gap_NI = ((inputs.teacher_NI.float() - inputs.student_NI) * root_N1).to(dtype)
        add_product(input_II, student_NI, student_NI)
        if inputs.behind_NO is None:
            add_product(gap_II, student_NI, gap_NI)
        else:  # O is at most I here: the gap goes through W before the sum, so that there is one product
            behind_NO = inputs.behind_NO * root_N1 + (gap_NI @ weight_OI.T.to(dtype)).float()
            add_product(correction_IO, student_NI, behind_NO.to(dtype))
        first += count
    correction_IO += gap_II @ weight_OI.T
    # Rounded products are not alike on both sides of the diagonal.
    return Moments((input_II + input_II.T) / (2 * first), correction_IO / first)


def all_weights(batches: Iterable[Inputs]) -> Tensor:
    """w of all tokens, in order, float32."""
    norms: list[tuple[Any, ...]] = []
    for inputs in batches:
        student_NI = inputs.student_NI.float()
        norms.append(
            (
                _squared_norm(student_NI),
                _squared_norm(inputs.teacher_NI - student_NI),
                *(() if inputs.behind_NO is None else (_squared_norm(inputs.behind_NO),)),
            )
        )
    whole = [torch.cat(each) for each in zip(*norms, strict=True)]
    return token_weights(*zip(whole, (INPUT_CAP, GAP_CAP, GAP_CAP), strict=False))


def _squared_norm(x_NI: Tensor) -> Tensor:
    return torch.linalg.vecdot(x_NI, x_NI)


def add_product(total_IO: Tensor, left_NI: Tensor, right_NO: Tensor) -> None:
    """Add leftᵀ right to `total_IO`, float32."""
    for left, right in zip(left_NI.split(PRODUCT_TOKENS), right_NO.split(PRODUCT_TOKENS), strict=True):
        if left.dtype == torch.float32:
            total_IO.addmm_(left.T, right)
        elif left.is_cuda:
            total_IO += torch.mm(left.T, right, out_dtype=torch.float32)
        else:
            total_IO += left.T @ right
