"""Which published architecture a student is, by its switches; what no export can say is refused here."""

from typing import Literal

from bitnet_core.errors import CoreError
from bitnet_core.model.configuration import BitNetKDEConfig

Architecture = Literal["llama", "bitnet", "qwen2", "qwen3"]
"""``bitnet`` is transformers' (and llama.cpp's): Llama with SubLN norms before o_proj and down_proj, without biases
in the MLP."""


def architecture_of(config: BitNetKDEConfig) -> Architecture:
    """The published architecture with these switches. Raises CoreError where no library has one."""
    if config.hadamard:
        raise CoreError(
            "a student with a Hadamard transform before o_proj and down_proj (hadamard) is no published architecture",
            "use the packed export",
        )
    if config.qk_norm or config.qkv_bias:
        return _qwen(config)
    if not config.sublayer_norm:
        return "llama"
    attended = config.num_attention_heads * head_width(config)
    if attended != config.hidden_size:
        raise CoreError(
            "a student with SubLN exports as the BitNet architecture, whose heads together are as wide as the "
            f"residual stream: {config.num_attention_heads} × {head_width(config)} = {attended} is not "
            f"{config.hidden_size}",
            "use the packed export, or train with other sizes",
        )
    if config.mlp_bias:
        raise CoreError(
            "a student with SubLN exports as the BitNet architecture, whose MLP has no biases, and this one "
            "has (mlp_bias)",
            "use the packed export, or start from a checkpoint without them",
        )
    return "bitnet"


def _qwen(config: BitNetKDEConfig) -> Architecture:
    """Qwen2 has biases on q, k and v alone; Qwen3 norms on its query and key heads."""
    for switch in ("sublayer_norm", "mlp_bias", *(("qkv_bias",) if config.qk_norm else ("attention_bias",))):
        if getattr(config, switch):
            raise CoreError(
                f"a student with {'qk_norm' if config.qk_norm else 'qkv_bias'} exports as Qwen's architecture, "
                f"which has no {switch}",
                "use the packed export",
            )
    return "qwen3" if config.qk_norm else "qwen2"


def head_width(config: BitNetKDEConfig) -> int:
    assert config.head_dim is not None  # LlamaConfig fills it in
    return config.head_dim


def kv_heads(config: BitNetKDEConfig) -> int:
    assert config.num_key_value_heads is not None  # LlamaConfig fills it in
    return config.num_key_value_heads
