"""The student's tensors as llama.cpp names and lays them out, padded, one at a time.

Shapes: O output rows, I input width; primes are the padded sizes.
"""

from collections.abc import Iterator
from typing import Literal

import attrs
import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from bitnet_core.errors import CoreError
from bitnet_core.export.gguf.rope import rope_of
from bitnet_core.export.gguf.widths import Widths
from bitnet_core.export.published_architecture import Architecture, architecture_of, head_width
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.ternary.packed_linear import PackedBitLinear

Floats = NDArray[np.float32]
Role = Literal["vector", "ternary", "table"]
"""`vector`: norm gains, biases and frequency factors, float32 in every file; `table`: embedding and head."""


@attrs.frozen(eq=False)
class GGUFTensor:
    name: str
    role: Role
    values: Floats


def student_tensors(model: BitNetKDEForCausalLM, widths: Widths) -> Iterator[GGUFTensor]:
    """Every tensor of the file, in its order. Raises CoreError where the architecture has no place for one."""
    config, architecture = model.config, architecture_of(model.config)
    check_representable(model, architecture)
    hidden, root = widths.hidden, float(np.sqrt(widths.shrink))
    vocabulary = config.vocab_size
    yield GGUFTensor("token_embd.weight", "table", _table(model.model.embed_tokens.weight, vocabulary, hidden))
    yield GGUFTensor("output_norm.weight", "vector", root * _vector(model.model.norm.weight, hidden))
    if not config.tie_word_embeddings:
        yield GGUFTensor("output.weight", "table", _table(model.lm_head.weight, vocabulary, hidden))
    for name, factors in rope_of(model, architecture).factors.items():
        yield GGUFTensor(name, "vector", factors)
    for number, layer in enumerate(model.model.layers):
        at = f"blk.{number}"
        yield GGUFTensor(f"{at}.attn_norm.weight", "vector", root * _vector(layer.input_layernorm.weight, hidden))
        yield from _attention(at, layer.self_attn, config, widths, architecture)
        after = layer.post_attention_layernorm.weight
        yield GGUFTensor(f"{at}.ffn_norm.weight", "vector", root * _vector(after, hidden))
        yield from _feed_forward(at, layer.mlp, config, widths)


def _attention(
    at: str, attention: nn.Module, config: BitNetKDEConfig, widths: Widths, architecture: Architecture
) -> Iterator[GGUFTensor]:
    width = head_width(config)
    queries, keys = widths.heads * width, widths.kv_heads * width
    # llama.cpp turns neighbours in a llama file, halves in the others, as transformers does in all.
    turn = width if architecture == "llama" else None
    yield from _projection(f"{at}.attn_q", attention.get_submodule("q_proj"), queries, widths.hidden, turn)
    yield from _projection(f"{at}.attn_k", attention.get_submodule("k_proj"), keys, widths.hidden, turn)
    yield from _projection(f"{at}.attn_v", attention.get_submodule("v_proj"), keys, widths.hidden)
    if config.qk_norm:
        for name in ("q_norm", "k_norm"):
            yield GGUFTensor(
                f"{at}.attn_{name}.weight", "vector", _vector(attention.get_parameter(f"{name}.weight"), width)
            )
    if config.sublayer_norm:
        gain = np.sqrt(widths.shrink) * _vector(attention.get_parameter("attn_sub_norm.weight"), queries)
        yield GGUFTensor(f"{at}.attn_sub_norm.weight", "vector", gain.astype(np.float32))
    yield from _projection(f"{at}.attn_output", attention.get_submodule("o_proj"), widths.hidden, queries)


def _feed_forward(at: str, mlp: nn.Module, config: BitNetKDEConfig, widths: Widths) -> Iterator[GGUFTensor]:
    yield from _projection(f"{at}.ffn_gate", mlp.get_submodule("gate_proj"), widths.inner, widths.hidden)
    yield from _projection(f"{at}.ffn_up", mlp.get_submodule("up_proj"), widths.inner, widths.hidden)
    if config.sublayer_norm:
        gain = np.sqrt(widths.shrink) * _vector(mlp.get_parameter("ffn_sub_norm.weight"), widths.inner)
        yield GGUFTensor(f"{at}.ffn_sub_norm.weight", "vector", gain.astype(np.float32))
    yield from _projection(f"{at}.ffn_down", mlp.get_submodule("down_proj"), widths.hidden, widths.inner)


def _projection(name: str, layer: nn.Module, rows: int, columns: int, turn: int | None = None) -> Iterator[GGUFTensor]:
    if isinstance(layer, PackedBitLinear):
        weight_OI, bias = layer.quantised_weight(), layer.bias
    else:
        assert isinstance(layer, nn.Linear)
        weight_OI, bias = layer.weight, layer.bias
    weight = _table(weight_OI, rows, columns)
    yield GGUFTensor(f"{name}.weight", "ternary", rotary_order(weight, turn) if turn else weight)
    if bias is not None:
        padded = _vector(bias, rows)
        yield GGUFTensor(f"{name}.bias", "vector", rotary_order(padded, turn) if turn else padded)


def rotary_order(rows: Floats, width: int) -> Floats:
    """Each head's rows from (first half, second half) to pairs of the two: dimension i beside i + width / 2."""
    heads = rows.reshape(-1, 2, width // 2, *rows.shape[1:])
    return np.ascontiguousarray(heads.swapaxes(1, 2).reshape(rows.shape))


def check_representable(model: BitNetKDEForCausalLM, architecture: Architecture) -> None:
    """Raises CoreError for what this architecture of llama.cpp has no place for."""
    config = model.config
    if config.hidden_act != "silu":
        raise CoreError(
            f"gguf: llama.cpp's architecture {architecture} has SiLU on its gates, not {config.hidden_act}",
            "export hf or packed",
        )
    if architecture == "bitnet":
        obstacles = {
            "biases": config.attention_bias,
            "a head of its own": not config.tie_word_embeddings,
        }
        for name, there in obstacles.items():
            if there:
                raise CoreError(
                    f"gguf: llama.cpp's architecture for students with SubLN (bitnet) has no place for {name}",
                    "export hf or packed",
                )


def _table(weight: torch.Tensor, rows: int, columns: int) -> Floats:
    """[O, I] → [O', I'], float32."""
    found = weight.detach().float().cpu().numpy()
    return np.pad(found, ((0, rows - found.shape[0]), (0, columns - found.shape[1])))


def _vector(values: torch.Tensor, size: int) -> Floats:
    found = values.detach().float().cpu().numpy()
    return np.pad(found, (0, size - found.shape[0]))
