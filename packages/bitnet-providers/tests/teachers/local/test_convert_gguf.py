"""Quick reading changes nothing but the time: a small file with its vocabulary, converted with it and without."""

import contextlib
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest

from bitnet_providers.teachers.local import convert_gguf

WIDTH, HEADS, LAYERS = 32, 2, 2


def small_llama(path: Path) -> Path:
    """A Llama with Q8_0 weights, a byte-level vocabulary, merges, and a key of every kind of value."""
    random = np.random.default_rng(0)
    tokens = [*"abcdefghijklmnopqrstuvwxyz.,!", "Ġ", "th", "the", "é", "<|end|>"]
    writer = gguf.GGUFWriter(str(path), "llama")
    writer.add_context_length(64)
    writer.add_embedding_length(WIDTH)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(2 * WIDTH)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(HEADS)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_rope_freq_base(10_000.0)
    writer.add_tokenizer_model("gpt2")
    writer.add_token_list(tokens)
    writer.add_token_types([1] * (len(tokens) - 1) + [3])
    writer.add_token_merges(["t h", "th e"])
    writer.add_eos_token_id(len(tokens) - 1)
    writer.add_array("general.tags", ["tiny", "ünïcode"])
    writer.add_array("test.numbers", [0.5, -1.25])
    writer.add_bool("test.yes", True)
    shapes = {"token_embd": (len(tokens), WIDTH), "output_norm": (WIDTH,)}
    for layer in range(LAYERS):
        shapes |= {f"blk.{layer}.{name}": (WIDTH, WIDTH) for name in ("attn_q", "attn_k", "attn_v", "attn_output")}
        shapes |= {f"blk.{layer}.{name}": (WIDTH,) for name in ("attn_norm", "ffn_norm")}
        shapes |= {f"blk.{layer}.{name}": (2 * WIDTH, WIDTH) for name in ("ffn_gate", "ffn_up")}
        shapes[f"blk.{layer}.ffn_down"] = (WIDTH, 2 * WIDTH)
    for name, shape in shapes.items():
        weight = random.normal(size=shape).astype(np.float32)
        kind = gguf.GGMLQuantizationType.F32 if len(shape) == 1 else gguf.GGMLQuantizationType.Q8_0
        writer.add_tensor(f"{name}.weight", gguf.quants.quantize(weight, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def converted(file: Path, folder: Path) -> dict[str, bytes]:
    folder.mkdir()
    convert_gguf._convert(file, folder)
    return {each.name: each.read_bytes() for each in folder.iterdir()}


@pytest.mark.slow
def test_the_folder_is_the_same_and_the_file_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small_llama(tmp_path / "small.gguf")
    read: list[Any] = []
    tables: list[Any] = []

    class Counted(gguf.GGUFReader):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            read.append(args)
            super().__init__(*args, **kwargs)

    table = gguf.get_tensor_name_map
    monkeypatch.setattr(gguf, "GGUFReader", Counted)
    monkeypatch.setattr(gguf, "get_tensor_name_map", lambda *args: (tables.append(args), table(*args))[1])
    quick = converted(file, tmp_path / "quick")
    assert (len(read), len(tables)) == (1, 1)

    monkeypatch.setattr(convert_gguf, "read_once", contextlib.nullcontext)
    slow = converted(file, tmp_path / "slow")
    assert len(read) > 1
    assert len(tables) > 1
    assert quick == slow
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= set(quick)


def test_a_file_cut_within_its_vocabulary_is_refused(tmp_path: Path) -> None:
    whole = small_llama(tmp_path / "small.gguf").read_bytes()
    cut = tmp_path / "cut.gguf"
    cut.write_bytes(whole[: whole.index(b"tokenizer.ggml.tokens") + 60])
    with pytest.raises(convert_gguf.ProviderError, match="transformers can't convert"):
        converted(cut, tmp_path / "folder")
