"""W2A8 products on a GPU, in Triton: two-bit codes times int8 activations, summed in int32, scaled once at the end.

Integers are those of `activation_quantiser` and `packed_linear` in `bitnet_core.ternary`, exactly: activations are
rounded half to even after an IEEE division, sums never overflow or round. Only the last product (sum x row scale x
token scale) is in floating point.

A byte of codes holds four columns 4 p + k, k = 0..3, as digits 0, 1, 2 (code + 1). So activations lie in four planes,
plane k with the columns 4 p + k: a 32-bit word of codes, masked for k, meets four activations of plane k in one dp4a,
without a shuffle. What a mask leaves is the digit times 4^k, which is divided out at the end, exactly.

With ``TRITON_INTERPRET=1`` (set before Triton is imported) all of it runs on CPU tensors: so the tests run it.

Shapes: N tokens, I inputs, O outputs, P bytes of a row of codes (a multiple of 16: zeros behind the I-th column, which
meet zeros), W = P / 4 words.
"""

import attrs
import torch
import triton
from torch import Tensor, nn

from bitnet_core.runtime.packed.triton_kernels import (
    dp4a_matmul_kernel,
    gemv_kernel,
    matmul_kernel,
    quantise_kernel,
)
from bitnet_core.ternary.packed_linear import CODES_PER_BYTE

ROW_BYTES = 16
"""Rows of codes begin at a multiple of this, so that a thread loads sixteen bytes at once."""
GEMV_TOKENS = 1
"""Up to so many tokens, each goes over the weights by itself; more go over them together."""


@attrs.frozen
class Tile:
    """How one program's part of a product is cut, and by how many warps it is made."""

    rows: int
    """Of the weight."""
    inner: int
    """Words of a row where dp4a multiplies, bytes of a row where tensor cores do: taken in one step."""
    warps: int
    tokens: int = 16
    """Of a product for many."""


GEMV_TILES = (Tile(4, 256, 2), Tile(8, 256, 4), Tile(4, 512, 4), Tile(16, 128, 4), Tile(8, 128, 2), Tile(2, 512, 2))
"""The first is the default; `benchmarks.decode_gpu` tries them all."""
PREFILL_TILES = (Tile(128, 64, 8, 64), Tile(64, 64, 4, 64), Tile(128, 32, 8, 128), Tile(64, 64, 4, 16))
DP4A_TILE = Tile(16, 32, 4, 16)
"""Of a product for many without tensor cores."""


@attrs.frozen(eq=False)
class QuantisedTokens:
    """What `quantise` makes of activations."""

    planes_N4P: Tensor
    """int8"""
    scale_N: Tensor
    """float32: activations are about codes times this."""
    sum_N: Tensor
    """int32, of each token's codes."""
    shape: torch.Size
    """Of the tokens, as they came: N is its product."""


def padded_codes(codes: Tensor) -> Tensor:
    """Packed codes [O, ceil(I / 4)] as [O, P], uint8, on the same device."""
    return nn.functional.pad(codes, (0, _row_bytes(codes.shape[1]) - codes.shape[1])).contiguous()


def quantise(x: Tensor, bits: int) -> QuantisedTokens:
    """Codes of `bitnet_core.ternary.activation_quantiser.activation_codes` (bits 8 or 4) of ``x`` [..., I], in planes.

    At 4 bits the mean magnitude may differ from torch's in its last bit, since both sum in their own order.
    """
    assert bits in (8, 4), bits
    x_NI = x.reshape(-1, x.shape[-1]).contiguous()
    tokens, inputs = x_NI.shape
    row_bytes = _row_bytes(-(-inputs // CODES_PER_BYTE))
    planes = torch.empty(tokens, 4, row_bytes, dtype=torch.int8, device=x_NI.device)
    scale = torch.empty(tokens, dtype=torch.float32, device=x_NI.device)
    total = torch.empty(tokens, dtype=torch.int32, device=x_NI.device)
    width = triton.next_power_of_2(row_bytes)
    warps = min(16, max(1, width // 256))
    quantise_kernel[(tokens,)](
        x_NI, planes, scale, total, inputs, row_bytes, WIDTH=width, FOUR=bits == 4, num_warps=warps
    )
    return QuantisedTokens(planes, scale, total, x.shape[:-1])


def _row_bytes(packed: int) -> int:
    return packed + -packed % ROW_BYTES


def product(
    x: QuantisedTokens,
    codes_OP: Tensor,
    row_scale_O: Tensor,
    bias_O: Tensor | None = None,
    *,
    dtype: torch.dtype = torch.float32,
    tile: Tile | None = None,
) -> Tensor:
    """Activations times the ternary weight, [N, O] in `dtype`: a GEMV for each of a few tokens; for more, tensor cores
    or, where they have no int8, dp4a."""
    tokens, outputs = len(x.scale_N), len(codes_OP)
    y_NO = torch.empty(tokens, outputs, dtype=dtype, device=codes_OP.device)
    few = tokens <= GEMV_TOKENS
    matrix = not few and has_int8_matrices(codes_OP)
    if tile is None:
        prefill = PREFILL_TILES[0 if tokens >= 64 else 3] if matrix else DP4A_TILE
        tile = GEMV_TILES[0] if few else prefill
    words = codes_OP.shape[1] // 4
    bias = row_scale_O if bias_O is None else bias_O  # never read where there is none
    if few:
        gemv_kernel[(triton.cdiv(outputs, tile.rows), tokens)](
            x.planes_N4P.view(torch.int32), x.scale_N, x.sum_N, codes_OP.view(torch.int32), row_scale_O, bias, y_NO,
            outputs, words, ROWS=tile.rows, WORDS=tile.inner, BIAS=bias_O is not None, DP4A=_has_dp4a(codes_OP),
            num_warps=tile.warps,
        )  # fmt: skip
    elif matrix:
        matmul_kernel[(triton.cdiv(outputs, tile.rows), triton.cdiv(tokens, tile.tokens))](
            x.planes_N4P, x.scale_N, codes_OP, row_scale_O, bias, y_NO, tokens, outputs, words * 4,
            TOKENS=tile.tokens, ROWS=tile.rows, BYTES=tile.inner, BIAS=bias_O is not None, num_warps=tile.warps,
        )  # fmt: skip
    else:
        dp4a_matmul_kernel[(triton.cdiv(outputs, tile.rows), triton.cdiv(tokens, tile.tokens))](
            x.planes_N4P.view(torch.int32), x.scale_N, x.sum_N, codes_OP.view(torch.int32), row_scale_O, bias, y_NO,
            tokens, outputs, words, TOKENS=tile.tokens, ROWS=tile.rows, WORDS=tile.inner, BIAS=bias_O is not None,
            DP4A=_has_dp4a(codes_OP), num_warps=tile.warps,
        )  # fmt: skip
    return y_NO


def _has_dp4a(tensor: Tensor) -> bool:
    """NVIDIA's, from compute capability 6.1 on; elsewhere the same in plain integer operations."""
    return tensor.is_cuda and torch.version.cuda is not None


def has_int8_matrices(tensor: Tensor) -> bool:
    """Whether Triton compiles int8 products for the tensor cores there: not for NVIDIA's before 8.0, such as a T4."""
    return not _has_dp4a(tensor) or torch.cuda.get_device_capability(tensor.device) >= (8, 0)
