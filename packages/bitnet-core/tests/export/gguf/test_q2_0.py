"""Q2_0 as llama.cpp's own C code reads it, written down here once more, byte by byte."""

import struct
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.config.export import GGUFOptions
from bitnet_core.export.folder import export
from bitnet_core.export.gguf import q2_0
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.model.read_checkpoint import load_model
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.ternary_linear import ternary_codes

NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
TEXT, LIST = 8, 9


def decoded(block: bytes) -> list[float]:
    """One block of 64: ``d`` in float16, then ``((qs[j / 4] >> 2 * (j % 4)) & 3) - 1``."""
    (scale,) = struct.unpack_from("<e", block)
    return [((block[2 + j // 4] >> 2 * (j % 4) & 3) - 1) * scale for j in range(64)]


def matrix(content: bytes, rows: int, columns: int) -> np.ndarray[Any, Any]:
    values = [value for at in range(0, rows * columns // 64 * 18, 18) for value in decoded(content[at : at + 18])]
    return np.array(values, np.float32).reshape(rows, columns)


def tensors_of(file: Path) -> tuple[dict[str, tuple[tuple[int, ...], int, int]], bytes]:
    """Name → (shape with columns first, type, place) of a GGUF file, read by its specification; and its bytes."""
    content, at = file.read_bytes(), 4

    def take(form: str) -> Any:
        nonlocal at
        (value,) = struct.unpack_from(f"<{form}", content, at)
        at += struct.calcsize(f"<{form}")
        return value

    def text() -> str:
        nonlocal at
        size = take("Q")
        at += size
        return content[at - size : at].decode()

    def value(kind: int) -> Any:
        if kind == LIST:
            inner, size = take("I"), take("Q")
            return [value(inner) for _ in range(size)]
        return text() if kind == TEXT else take(NUMBERS[kind])

    assert (content[:4], take("I")) == (b"GGUF", 3)
    count, keys = take("Q"), take("Q")
    known = {text(): value(take("I")) for _ in range(keys)}
    found = {}
    for _ in range(count):
        name = text()
        shape = tuple(take("Q") for _ in range(take("I")))
        found[name] = (shape, take("I"), take("Q"))
    start = -(-at // known.get("general.alignment", 32)) * known.get("general.alignment", 32)
    assert known["general.file_type"] == 41
    return {name: (shape, kind, start + place) for name, (shape, kind, place) in found.items()}, content


@given(st.integers(1, 3), st.integers(1, 3), st.integers(0, 2**31), st.sampled_from([6e-8, 1e-4, 0.03, 1.0, 60000.0]))
def test_rows_of_one_scale_come_back_exactly(rows: int, blocks: int, seed: int, size: float) -> None:
    random = np.random.default_rng(seed)
    scale_O1 = (random.uniform(0.5, 1, (rows, 1)) * size).astype(np.float16).astype(np.float32)
    values = random.integers(-1, 2, (rows, blocks * 64)) * scale_O1
    values[:, :64] *= random.integers(0, 2, (rows, 1))  # a block of zeros here and there
    values = values.astype(np.float32)
    stored = q2_0.quantize(values)
    assert stored.shape == (rows, blocks * 18)
    np.testing.assert_array_equal(matrix(stored.tobytes(), rows, blocks * 64), values)
    np.testing.assert_array_equal(q2_0.dequantize(stored), values)


def test_bytes_as_llama_cpp_writes_them() -> None:
    """Codes 2, 1, 0, 0 in the first byte: 0 + 0 · 4 + ... from the lowest bits on; the scale's float16 before them."""
    values = np.zeros((1, 64), np.float32)
    values[0, :4], values[0, 63] = [0.5, 0, -0.5, -0.5], 0.5
    block = q2_0.quantize(values)[0].tolist()
    assert block == [0x00, 0x38, 0b00000110, *[0b01010101] * 14, 0b10010101]
    assert q2_0.quantize(np.zeros((1, 64), np.float32))[0].tolist() == [0, 0, *[0b01010101] * 16]


def test_a_file_by_its_specification_holds_the_students_codes(make_checkpoint: Any, tmp_path: Path) -> None:
    """Widths of 64 stay as they are; the scales are the rows' own."""
    checkpoint = make_checkpoint(
        hidden_size=192, intermediate_size=320, num_attention_heads=3, num_key_value_heads=1, head_dim=64
    )
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions(types=("q2_0",)))}, tmp_path)
    tensors, content = tensors_of(tmp_path / "student-q2_0.gguf")
    places = {"mlp.gate_proj": "ffn_gate", "mlp.down_proj": "ffn_down", "self_attn.o_proj": "attn_output"}
    compared = 0
    for name, layer in ternary_layers(load_model(checkpoint)):
        _, _, number, rest = name.split(".", 3)
        if rest in places:
            (columns, rows), kind, place = tensors[f"blk.{number}.{places[rest]}.weight"]
            assert (rows, columns, kind) == (*layer.weight.shape, 42)
            scale_O = layer.row_log_scale().detach().exp().half().float()
            wanted = ternary_codes(layer.weight, layer.row_log_scale()) * scale_O[:, None]
            np.testing.assert_array_equal(matrix(content[place:], rows, columns), wanted.numpy())
            compared += 1
    assert compared == 3 * load_model(checkpoint).config.num_hidden_layers


def test_the_reader_reads_all_types(make_checkpoint: Any, tmp_path: Path) -> None:
    options = GGUFOptions(types=("q2_0", "tq2_0"))
    export(make_checkpoint(), {"gguf": gguf_exporter(options)}, tmp_path)
    ours, theirs = (
        {tensor.name: q2_0.read_matrix(tensor) for tensor in q2_0.Reader(tmp_path / f"student-{type_}.gguf").tensors}
        for type_ in options.types
    )
    known = {tensor.name for tensor in gguf.GGUFReader(tmp_path / "student-tq2_0.gguf").tensors}
    assert ours.keys() == theirs.keys() == known
    for name, values in ours.items():
        np.testing.assert_array_equal(values, theirs[name])
        assert values.flags.writeable
    with pytest.raises(ValueError, match="42"):
        gguf.GGUFReader(tmp_path / "student-q2_0.gguf")  # once it can, `Reader` can go
