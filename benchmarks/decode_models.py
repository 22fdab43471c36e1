"""Random models for `benchmarks.decode`, the same shape in every format; speed doesn't depend on what they say."""

from collections.abc import Iterator
from pathlib import Path

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import save_file

VOCABULARY = 32_000
CONTEXT = 2048


@attrs.frozen
class Shape:
    """A Llama-shaped model; heads of 128."""

    name: str
    hidden: int
    inner: int
    layers: int
    heads: int
    kv_heads: int

    def linears(self) -> dict[str, tuple[int, int]]:
        """The ternary layers of one decoder layer, by their name in GGUF: outputs, inputs."""
        keys = self.kv_heads * 128
        return {
            "attn_q": (self.hidden, self.hidden), "attn_k": (keys, self.hidden), "attn_v": (keys, self.hidden),
            "attn_output": (self.hidden, self.hidden), "ffn_gate": (self.inner, self.hidden),
            "ffn_up": (self.inner, self.hidden), "ffn_down": (self.hidden, self.inner),
        }  # fmt: skip

    @property
    def linear_weights(self) -> int:
        return self.layers * sum(outputs * inputs for outputs, inputs in self.linears().values())


SHAPES = (Shape("400M", 1536, 4096, 16, 12, 4), Shape("1.5B", 2048, 8192, 25, 16, 4))
OURS = {
    "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
    "attn_output": "self_attn.o_proj", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
    "ffn_down": "mlp.down_proj",
}  # fmt: skip


def write_packed(folder: Path, shape: Shape) -> None:
    """A packed export with random codes, its head tied."""
    from bitnet_core.model import BitNetKDEConfig

    generator = np.random.default_rng(0)
    folder.mkdir(parents=True)
    config(shape, BitNetKDEConfig, packed=True).save_pretrained(folder)
    tensors = {"model.norm.weight": torch.ones(shape.hidden), "model.embed_tokens.weight": _table(shape).half()}
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        for name, (outputs, inputs) in shape.linears().items():
            digits = generator.integers(0, 81, outputs * inputs // 4, dtype=np.uint8)
            codes = _four_digits()[digits].reshape(outputs, inputs // 4)
            tensors[f"{prefix}{OURS[name]}.codes"] = torch.from_numpy(codes)
            tensors[f"{prefix}{OURS[name]}.row_scale"] = torch.full((outputs,), inputs**-0.5).half()
        for norm in ("input_layernorm", "post_attention_layernorm"):
            tensors[f"{prefix}{norm}.weight"] = torch.ones(shape.hidden)
    save_file(tensors, folder / "model.safetensors", {"format": "pt"})


def config(shape: Shape, kind: type, **more: object) -> object:
    return kind(
        vocab_size=VOCABULARY, hidden_size=shape.hidden, intermediate_size=shape.inner, num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads, num_key_value_heads=shape.kv_heads, head_dim=128, tie_word_embeddings=True,
        max_position_embeddings=CONTEXT, rms_norm_eps=1e-5, bos_token_id=1, eos_token_id=2, **more,
    )  # fmt: skip


def _table(shape: Shape) -> torch.Tensor:
    return torch.randn(VOCABULARY, shape.hidden, generator=torch.Generator().manual_seed(0)).mul_(0.02)


def _four_digits() -> NDArray[np.uint8]:
    """The 81 bytes that hold four codes."""
    numbers = np.arange(81)
    return sum((numbers // 3**k % 3) << (2 * k) for k in range(4)).astype(np.uint8)  # type: ignore[union-attr]


BLOCKS = {
    "q2_0": (64, 18, 0), "tq2_0": (256, 66, 64), "tq1_0": (256, 54, 52), "q4_0": (32, 18, 0), "q8_0": (32, 34, 0),
    "f16": (1, 2, 0),
}  # fmt: skip
"""Of each GGUF type: weights of a block, its bytes, and where the float16 scale lies in it."""
TERNARY = ("q2_0", "tq2_0", "tq1_0")


def write_gguf(file: Path, shape: Shape, type_: str) -> None:
    """A GGUF file with random blocks; the table, which is the head too, q8_0 beside ternary weights, else as they."""
    from gguf import GGMLQuantizationType, GGUFWriter

    from bitnet_core.export.gguf import q2_0

    generator = np.random.default_rng(0)
    writer = GGUFWriter(file, "llama")
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(shape.hidden)
    writer.add_block_count(shape.layers)
    writer.add_feed_forward_length(shape.inner)
    writer.add_head_count(shape.heads)
    writer.add_head_count_kv(shape.kv_heads)
    writer.add_rope_dimension_count(128)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(VOCABULARY)
    writer.add_tokenizer_model("llama")
    writer.add_token_list([text for text, _ in _vocabulary()])
    writer.add_token_scores([-float(index) for index in range(VOCABULARY)])
    writer.add_token_types([kind for _, kind in _vocabulary()])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)

    def add(name: str, outputs: int, inputs: int, kind: str) -> None:
        data = _random_blocks(generator, outputs, inputs, kind)
        if kind == "q2_0":
            return q2_0.add_tensor(writer, name, data)
        writer.add_tensor(name, data, raw_dtype=GGMLQuantizationType[kind.upper()])

    add("token_embd.weight", VOCABULARY, shape.hidden, "q8_0" if type_ in TERNARY else type_)
    writer.add_tensor("output_norm.weight", np.ones(shape.hidden, np.float32))
    for layer in range(shape.layers):
        for norm in ("attn_norm", "ffn_norm"):
            writer.add_tensor(f"blk.{layer}.{norm}.weight", np.ones(shape.hidden, np.float32))
        for name, (outputs, inputs) in shape.linears().items():
            add(f"blk.{layer}.{name}.weight", outputs, inputs, type_)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _random_blocks(generator: np.random.Generator, outputs: int, inputs: int, kind: str) -> NDArray[np.generic]:
    weights, size, scale_at = BLOCKS[kind]
    if kind == "f16":
        # Ternary, for the quantisers that read it; drawn as bytes, which is quick.
        return np.array([-(inputs**-0.5), 0, inputs**-0.5], np.float16)[
            generator.integers(0, 3, (outputs, inputs), dtype=np.uint8)
        ]
    data = generator.integers(0, 256, (outputs, inputs // weights, size), dtype=np.uint8)
    data[..., scale_at : scale_at + 2] = np.array([inputs**-0.5 / 8], np.float16).view(np.uint8)
    return data.reshape(outputs, -1)


def _vocabulary() -> Iterator[tuple[str, int]]:
    """(text, llama.cpp's kind: 2 unknown, 3 control, 6 byte, 1 normal)"""
    yield from (("<unk>", 2), ("<s>", 3), ("</s>", 3))
    yield from ((f"<0x{byte:02X}>", 6) for byte in range(256))
    yield from ((f"token{index}", 1) for index in range(259, VOCABULARY))
