"""llama.cpp's type ``Q2_0``, which the gguf package doesn't know yet: a float16 scale and 64 codes of two bits each.

A block is 18 bytes: the scale, then four codes a byte, the first in the lowest bits; code − 1 times the scale is the
weight (ggml-quants.c, ``dequantize_row_q2_0``). B blocks.
"""

from typing import Any

import numpy as np
from gguf import GGUFReader, quants
from gguf.gguf_reader import ReaderField, ReaderTensor
from numpy.typing import NDArray

Q2_0: Any = 42
"""ggml.h's GGML_TYPE_Q2_0."""
MOSTLY_Q2_0: Any = 41
"""llama.h's LLAMA_FTYPE_MOSTLY_Q2_0."""
BLOCK = 64
"""Weights that share a scale."""
BLOCK_BYTES = 18
_SHIFTS = np.array([0, 2, 4, 6], np.uint8)


def quantize(values_OI: NDArray[np.float32]) -> NDArray[np.uint8]:
    """[O, I] → [O, 18 I / 64], as llama.cpp's own quantiser: the scale is the largest magnitude of a block, rounded to
    float16. Exact where a block's weights are one float16 number, its negative, and zeros."""
    rows, columns = values_OI.shape
    values_B64 = values_OI.reshape(-1, BLOCK)
    scale_B1 = np.abs(values_B64).max(1, keepdims=True)
    inverse_B1 = np.divide(1, scale_B1, out=np.zeros_like(scale_B1), where=scale_B1 > 0)
    codes_B64 = (np.clip(np.rint(values_B64 * inverse_B1), -1, 1) + 1).astype(np.uint8)
    packed_B16 = np.bitwise_or.reduce(codes_B64.reshape(-1, BLOCK // 4, 4) << _SHIFTS, axis=2)
    stored_B18 = np.concatenate([scale_B1.astype("<f2").view(np.uint8), packed_B16], axis=1)
    return stored_B18.reshape(rows, columns // BLOCK * BLOCK_BYTES)


def dequantize(stored: NDArray[np.uint8]) -> NDArray[np.float32]:
    """[O, 18 I / 64] → [O, I]"""
    stored_B18 = np.ascontiguousarray(stored).reshape(-1, BLOCK_BYTES)
    scale_B1 = np.ascontiguousarray(stored_B18[:, :2]).view("<f2").astype(np.float32)
    codes_B64 = (stored_B18[:, 2:, None] >> _SHIFTS & 3).reshape(-1, BLOCK)
    return ((codes_B64.astype(np.float32) - 1) * scale_B1).reshape(stored.shape[0], -1)


def add_tensor(writer: Any, name: str, stored: NDArray[np.uint8]) -> None:
    """Put what `quantize` gave into a file of gguf's `GGUFWriter`, which takes signed bytes in any shape that it is
    told."""
    rows, size = stored.shape
    writer.add_tensor(name, stored.view(np.int8), raw_shape=(rows, size // BLOCK_BYTES * BLOCK), raw_dtype=Q2_0)


class Reader(GGUFReader):
    """gguf's reader, for files with Q2_0 in them too."""

    def _build_tensors(self, start_offs: int, fields: list[ReaderField]) -> None:
        ours = [field for field in fields if _type_of(field) == Q2_0]
        super()._build_tensors(start_offs, [field for field in fields if _type_of(field) != Q2_0])
        self.tensors += [self._tensor(start_offs, field) for field in ours]

    def _tensor(self, start: int, field: ReaderField) -> ReaderTensor:
        _, name, _, dimensions, _, offset = field.parts
        columns, *others = (int(each) for each in dimensions)
        rows = int(np.prod(others, dtype=np.int64))
        size, place = rows * columns // BLOCK * BLOCK_BYTES, start + int(offset[0])
        return ReaderTensor(
            name=bytes(name).decode(),
            tensor_type=Q2_0,
            shape=dimensions,
            n_elements=rows * columns,
            n_bytes=size,
            data_offset=place,
            data=self._get(place, np.uint8, size).reshape(rows, -1),
            field=field,
        )


def _type_of(field: ReaderField) -> int:
    return int(field.parts[4][0])


def read_matrix(tensor: ReaderTensor) -> NDArray[np.float32]:
    """The values of a tensor of a `Reader`, [O, I], in memory of their own."""
    if tensor.tensor_type == Q2_0:
        return dequantize(tensor.data)
    return np.array(quants.dequantize(tensor.data, tensor.tensor_type))
