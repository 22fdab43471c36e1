"""Which architectures of transformers become ternary, and what of them: the table of docs/other-architectures.md.

    uv run python -m benchmarks.architectures

A row for each: a tiny random model, whose logits are compared with those of the ternarised one with quantisation
switched off, and its linears counted.
"""

from typing import Any

import attrs
import torch
from transformers import CONFIG_MAPPING, AutoModelForCausalLM, PreTrainedModel

from bitnet_core import BitLinear, ternarise
from bitnet_core.model.find_layers_and_head import decoder_layers, linears, set_activation_bits
from bitnet_core.ternary.bitlinear import set_ternary_share

NAMES = (
    "llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "phi3", "olmo2", "granite", "smollm3", "glm4",
    "gpt_neox", "gpt2",
)  # fmt: skip
VOCABULARY = 96
_SIZES: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 8, "max_position_embeddings": 64,
    "sliding_window": 8, "initializer_range": 0.2, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip
_GPT2: dict[str, Any] = {
    "vocab_size": VOCABULARY, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "initializer_range": 0.2,
    "bos_token_id": 1, "eos_token_id": 2,
}  # fmt: skip


@attrs.frozen
class Row:
    """What was found of one architecture."""

    name: str
    layers: int
    ternary: int
    left_out: tuple[str, ...]
    others: int
    """Linears in the decoder layers that are neither."""
    with_norms: int
    """Ternary linears whose input goes down to 4 bits."""
    difference: float
    """max |logit| between the dense and the ternarised model with quantisation off."""
    quantised: float
    """The same with quantisation on: the model has changed."""


def tiny(name: str, **changes: Any) -> PreTrainedModel:
    """A random model of this `model_type`, of two layers, in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        config = CONFIG_MAPPING[name](**((_GPT2 if name == "gpt2" else _SIZES) | changes))
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, trust_remote_code=False)
    return model.eval()


@torch.no_grad()
def tried(name: str) -> Row:
    """Ternarise a tiny model of this architecture."""
    model, ids = tiny(name), torch.arange(3, 43)[None]
    dense = model(ids).logits
    done = ternarise(model)
    quantised = model(ids).logits
    set_ternary_share(model, 0.0)
    set_activation_bits(model, 16)
    layers = decoder_layers(model)
    return Row(
        name=name,
        layers=len(layers),
        ternary=len(done.ternary),
        left_out=done.left_out,
        others=sum(not isinstance(linear, BitLinear) for linear in linears(layers).values()) - len(done.left_out),
        with_norms=len(model.config.quantization_config.low_bits),
        difference=float((model(ids).logits - dense).abs().max()),
        quantised=float((quantised - dense).abs().max()),
    )


def table() -> str:
    """The rows as Markdown."""
    lines = [
        "| model_type | ternary linears a layer | of these after a norm | left out | differs, quantisation off |",
        "|---|---|---|---|---|",
    ]
    for row in map(tried, NAMES):
        left_out = ", ".join(row.left_out) or "none"
        counts = f"{row.ternary // row.layers} | {row.with_norms // row.layers}"
        difference = "below 1e-5" if row.difference < 1e-5 else f"{row.difference:.0e}"
        lines.append(f"| {row.name} | {counts} | {left_out} | {difference} |")
    return "\n".join(lines)


if __name__ == "__main__":
    print(table())
