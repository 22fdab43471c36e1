"""W2A8 products on a GPU, in Triton: two-bit codes times int8 activations, summed in int32, scaled once at the end.

Integers are those of `bitnet_core.quantisers` and `bitnet_core.packed_linear`, exactly: activations are rounded half to
even after an IEEE division, sums never overflow or round. Only the last product (sum x row scale x token scale) is in
floating point.

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
import triton.language as tl
from torch import Tensor, nn

from bitnet_core.packed_linear import CODES_PER_BYTE
from bitnet_core.quantisers import SMALLEST_MAGNITUDE

ROW_BYTES = 16
"""Rows of codes begin at a multiple of this, so that a thread loads sixteen bytes at once."""
GEMV_TOKENS = 1
"""Up to so many tokens, each goes over the weights by itself; more go through the tensor cores together."""
_SQRT7 = tl.constexpr(7**0.5)
_SMALLEST = tl.constexpr(SMALLEST_MAGNITUDE)


@attrs.frozen
class Tile:
    """How one program's part of a product is cut, and by how many warps it is made."""

    rows: int
    """Of the weight."""
    inner: int
    """Words of a row in a GEMV, bytes of a row in a product for many tokens: taken in one step."""
    warps: int
    tokens: int = 16
    """Of a product for many."""


GEMV_TILES = (Tile(4, 256, 2), Tile(8, 256, 4), Tile(4, 512, 4), Tile(16, 128, 4), Tile(8, 128, 2), Tile(2, 512, 2))
"""The first is the default; `benchmarks.decode_gpu` tries them all."""
PREFILL_TILES = (Tile(128, 64, 8, 64), Tile(64, 64, 4, 64), Tile(128, 32, 4, 128), Tile(64, 64, 4, 16))


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
    """Codes of `bitnet_core.quantisers.activation_codes` (bits 8 or 4) of ``x`` [..., I], in planes.

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
    _quantise[(tokens,)](x_NI, planes, scale, total, inputs, row_bytes, WIDTH=width, FOUR=bits == 4, num_warps=warps)
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
    """Activations times the ternary weight, [N, O] in `dtype`: a GEMV for each of a few tokens, else tensor cores."""
    tokens, outputs = len(x.scale_N), len(codes_OP)
    y_NO = torch.empty(tokens, outputs, dtype=dtype, device=codes_OP.device)
    few = tokens <= GEMV_TOKENS
    if tile is None:
        tile = GEMV_TILES[0] if few else PREFILL_TILES[0 if tokens >= 64 else 3]
    words = codes_OP.shape[1] // 4
    bias = row_scale_O if bias_O is None else bias_O  # never read where there is none
    if few:
        _gemv[(triton.cdiv(outputs, tile.rows), tokens)](
            x.planes_N4P.view(torch.int32), x.scale_N, x.sum_N, codes_OP.view(torch.int32), row_scale_O, bias, y_NO,
            outputs, words, ROWS=tile.rows, WORDS=tile.inner, BIAS=bias_O is not None, DP4A=_has_dp4a(codes_OP),
            num_warps=tile.warps,
        )  # fmt: skip
    else:
        _matmul[(triton.cdiv(outputs, tile.rows), triton.cdiv(tokens, tile.tokens))](
            x.planes_N4P, x.scale_N, codes_OP, row_scale_O, bias, y_NO, tokens, outputs, words * 4,
            TOKENS=tile.tokens, ROWS=tile.rows, BYTES=tile.inner, BIAS=bias_O is not None, num_warps=tile.warps,
        )  # fmt: skip
    return y_NO


def _has_dp4a(tensor: Tensor) -> bool:
    """NVIDIA's, from compute capability 6.1 on; elsewhere the same in plain integer operations."""
    return tensor.is_cuda and torch.version.cuda is not None


@triton.jit
def _quantise(x, planes, scales, sums, inputs, row_bytes, WIDTH: tl.constexpr, FOUR: tl.constexpr):
    token = tl.program_id(0).to(tl.int64)
    p = tl.arange(0, WIDTH)[:, None]
    k = tl.arange(0, 4)[None, :]
    column = p * 4 + k
    value = tl.load(x + token * inputs + column, mask=column < inputs, other=0.0).to(tl.float32)
    magnitude = tl.abs(value)
    if FOUR:
        mean = tl.div_rn(tl.sum(tl.sum(magnitude, 1), 0), inputs.to(tl.float32))
        scale = tl.div_rn(tl.maximum(mean, _SMALLEST), tl.full((), _SQRT7, tl.float32))
    else:
        scale = tl.div_rn(tl.maximum(tl.max(tl.max(magnitude, 1), 0), _SMALLEST), tl.full((), 127.0, tl.float32))
    # Adding and taking away 1.5 * 2^23 rounds to the nearest whole number, halves to even: no fraction has room there.
    ratio = tl.div_rn(value, tl.broadcast_to(scale, (WIDTH, 4)))
    if FOUR:
        ratio = tl.minimum(tl.maximum(ratio, -8.0), 7.0)
    code = ((ratio + 12582912.0) - 12582912.0).to(tl.int32)
    tl.store(planes + (token * 4 + k) * row_bytes + p, code.to(tl.int8), mask=(p < row_bytes) & (k < 4))
    tl.store(scales + token, scale)
    tl.store(sums + token, tl.sum(tl.sum(code, 1), 0))


@triton.jit
def _dp4a(digits, activations, total, DP4A: tl.constexpr):
    """total + the sum of four products of unsigned bytes and signed bytes."""
    if DP4A:
        total = tl.inline_asm_elementwise(
            "dp4a.u32.s32 $0, $1, $2, $3;", "=r,r,r,r", [digits, activations, total], tl.int32, is_pure=True, pack=1
        )
    else:
        for byte in tl.static_range(4):
            total += ((digits >> (8 * byte)) & 0xFF) * ((activations << (24 - 8 * byte)) >> 24)
    return total


@triton.jit
def _gemv(
    planes, scales, sums, codes, row_scales, biases, y, outputs, words,
    ROWS: tl.constexpr, WORDS: tl.constexpr, BIAS: tl.constexpr, DP4A: tl.constexpr,
):  # fmt: skip
    token = tl.program_id(1).to(tl.int64)
    words = tl.multiple_of(words, 4)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    here = row < outputs
    line = codes + row.to(tl.int64)[:, None] * words
    plane = planes + token * 4 * words
    total0 = tl.zeros((ROWS, WORDS), tl.int32)
    total1 = tl.zeros((ROWS, WORDS), tl.int32)
    total2 = tl.zeros((ROWS, WORDS), tl.int32)
    total3 = tl.zeros((ROWS, WORDS), tl.int32)
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)
        inside = word < words
        code = tl.load(line + word[None, :], mask=here[:, None] & inside[None, :], other=0)
        x0 = tl.load(plane + word, mask=inside, other=0)
        x1 = tl.load(plane + words + word, mask=inside, other=0)
        x2 = tl.load(plane + 2 * words + word, mask=inside, other=0)
        x3 = tl.load(plane + 3 * words + word, mask=inside, other=0)
        total0 = _dp4a(code & 0x03030303, tl.broadcast_to(x0[None, :], (ROWS, WORDS)), total0, DP4A)
        total1 = _dp4a(code & 0x0C0C0C0C, tl.broadcast_to(x1[None, :], (ROWS, WORDS)), total1, DP4A)
        total2 = _dp4a(code & 0x30303030, tl.broadcast_to(x2[None, :], (ROWS, WORDS)), total2, DP4A)
        # 0xC0C0C0C0 as a signed number
        total3 = _dp4a(code & -0x3F3F3F40, tl.broadcast_to(x3[None, :], (ROWS, WORDS)), total3, DP4A)
    total = tl.sum(total0 + (total1 >> 2) + (total2 >> 4) + (total3 >> 6), 1) - tl.load(sums + token)
    result = total.to(tl.float32) * tl.load(row_scales + row, mask=here, other=0.0) * tl.load(scales + token)
    if BIAS:
        result += tl.load(biases + row, mask=here, other=0.0)
    tl.store(y + token * outputs + row, result.to(y.dtype.element_ty), mask=here)


@triton.jit
def _matmul(
    planes, scales, codes, row_scales, biases, y, tokens, outputs, row_bytes,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, BYTES: tl.constexpr, BIAS: tl.constexpr,
):  # fmt: skip
    row_bytes = tl.multiple_of(row_bytes, 16)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row_here, token_here = row < outputs, token < tokens
    line = codes + row.to(tl.int64)[None, :] * row_bytes
    plane = planes + token.to(tl.int64)[:, None] * 4 * row_bytes
    total = tl.zeros((TOKENS, ROWS), tl.int32)
    for first in range(0, row_bytes, BYTES):
        byte = first + tl.arange(0, BYTES)
        inside = byte < row_bytes
        code = tl.load(line + byte[:, None], mask=row_here[None, :] & inside[:, None], other=0)
        for k in tl.static_range(4):
            x = tl.load(plane + k * row_bytes + byte[None, :], mask=token_here[:, None] & inside[None, :], other=0)
            total = tl.dot(x, ((code >> (2 * k)) & 3).to(tl.int8) - 1, total, out_dtype=tl.int32)
    row_scale = tl.load(row_scales + row, mask=row_here, other=0.0)
    token_scale = tl.load(scales + token, mask=token_here, other=0.0)
    result = total.to(tl.float32) * row_scale[None, :] * token_scale[:, None]
    if BIAS:
        result += tl.load(biases + row, mask=row_here, other=0.0)[None, :]
    place = token.to(tl.int64)[:, None] * outputs + row[None, :]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=token_here[:, None] & row_here[None, :])
