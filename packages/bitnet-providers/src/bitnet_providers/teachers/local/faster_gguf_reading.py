"""Makes transformers read a GGUF file once and quickly; what it reads stays the same.

It opens a file three times (configuration, weights, tokenizer); gguf slices a memory map for each of some 100,000
entries of a vocabulary; and the table of tensor names is built anew for each of the model's modules: nine tenths of a
conversion's time. Where a later version of either looks things up elsewhere, it is only slow again.
"""

import contextlib
import struct
import threading
from collections.abc import Iterator
from functools import cache
from typing import Any
from unittest import mock

import numpy as np

_STRING, _ARRAY = 8, 9
"""Of GGUF's value types."""
_LOCK = threading.Lock()
"""One conversion at a time: what two threads replace would not all come back."""


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """transformers' GGUF loading is quick inside."""
    import gguf
    from transformers import modeling_gguf_pytorch_utils as loading

    parse: Any = getattr(loading, "_gguf_parse_value", None)

    class QuickReader(gguf.GGUFReader):
        """Arrays are read in one go, into plain values in place of a slice of the file for each."""

        def _get_field_parts(self, orig_offs: int, raw_type: int) -> tuple[int, Any, list[int], Any]:
            if raw_type == _ARRAY and self.endianess == gguf.GGUFEndian.LITTLE:
                data = self.data.data
                kind, count = struct.unpack_from("<IQ", data, orig_offs)
                number = self.gguf_scalar_to_np.get(kind)
                if kind == _STRING or number is not None:
                    start = orig_offs + 12
                    values, end = (
                        _strings(data, start, count) if number is None else _numbers(data, start, count, number)
                    )
                    types = [gguf.GGUFValueType(_ARRAY), *[gguf.GGUFValueType(kind)][:count]]
                    return end - orig_offs, values, list(range(count)), types
            return super()._get_field_parts(orig_offs, raw_type)

    def value(part: Any, types: Any) -> Any:
        return parse(part, types) if isinstance(part, np.ndarray) else part

    with (
        _LOCK,
        mock.patch.object(gguf, "GGUFReader", cache(QuickReader)),
        mock.patch.object(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map)),
        mock.patch.object(loading, "_gguf_parse_value", value, create=True),
    ):
        yield


def _numbers(data: memoryview, start: int, count: int, number: Any) -> tuple[list[Any], int]:
    array = np.frombuffer(data, np.dtype(number).newbyteorder("<"), count, start)
    return array.tolist(), start + array.nbytes


def _strings(data: memoryview, start: int, count: int) -> tuple[list[str], int]:
    values = []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", data, start)
        end = start + 8 + length
        values.append(str(data[start + 8 : end], "utf-8"))
        start = end
    return values, start
