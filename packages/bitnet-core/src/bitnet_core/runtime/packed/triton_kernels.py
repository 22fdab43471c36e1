# mypy: disable-error-code="untyped-decorator, no-untyped-def"
"""The kernels of `bitnet_core.runtime.packed.triton_products`, which tells of their layout, and how they are called.

Arguments in lower case are pointers and sizes, those in upper case are known when a kernel is compiled.
"""

import triton
import triton.language as tl

from bitnet_core.ternary.activation_quantiser import SMALLEST_MAGNITUDE

_SQRT7 = tl.constexpr(7**0.5)
_SMALLEST = tl.constexpr(SMALLEST_MAGNITUDE)


@triton.jit
def quantise_kernel(x, planes, scales, sums, inputs, row_bytes, WIDTH: tl.constexpr, FOUR: tl.constexpr):
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
def gemv_kernel(
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
def matmul_kernel(
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


@triton.jit
def dp4a_matmul_kernel(
    planes, scales, sums, codes, row_scales, biases, y, tokens, outputs, words,
    TOKENS: tl.constexpr, ROWS: tl.constexpr, WORDS: tl.constexpr, BIAS: tl.constexpr, DP4A: tl.constexpr,
):  # fmt: skip
    """`matmul_kernel` without a matrix instruction; tiles are tokens x rows x words of a row."""
    words = tl.multiple_of(words, 4)
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    token = tl.program_id(1) * TOKENS + tl.arange(0, TOKENS)
    row_here, token_here = row < outputs, token < tokens
    line = codes + row.to(tl.int64)[None, :, None] * words
    plane = planes + token.to(tl.int64)[:, None, None] * 4 * words
    total = tl.zeros((TOKENS, ROWS, WORDS), tl.int32)
    for first in range(0, words, WORDS):
        word = first + tl.arange(0, WORDS)[None, None, :]
        inside = word < words
        code = tl.load(line + word, mask=row_here[None, :, None] & inside, other=0)
        for k in tl.static_range(4):
            x = tl.load(plane + k * words + word, mask=token_here[:, None, None] & inside, other=0)
            digits = tl.broadcast_to((code >> (2 * k)) & 0x03030303, (TOKENS, ROWS, WORDS))
            total = _dp4a(digits, tl.broadcast_to(x, (TOKENS, ROWS, WORDS)), total, DP4A)
    whole = tl.sum(total, 2) - tl.load(sums + token, mask=token_here, other=0)[:, None]
    row_scale = tl.load(row_scales + row, mask=row_here, other=0.0)
    token_scale = tl.load(scales + token, mask=token_here, other=0.0)
    result = whole.to(tl.float32) * row_scale[None, :] * token_scale[:, None]
    if BIAS:
        result += tl.load(biases + row, mask=row_here, other=0.0)[None, :]
    place = token.to(tl.int64)[:, None] * outputs + row[None, :]
    tl.store(y + place, result.to(y.dtype.element_ty), mask=token_here[:, None] & row_here[None, :])
