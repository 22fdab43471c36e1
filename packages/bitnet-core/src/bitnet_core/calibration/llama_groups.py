"""Which linear layers of a decoder layer share an input, in the order in which the stream meets them.

All that calibration knows of the student's own architecture; those of others are found (`found_groups`).

Shapes: N tokens of a batch of documents, padding left out; D residual width, I width of a group's input.
"""

from collections.abc import Callable
from typing import Any

import attrs
from torch import Tensor, nn

from bitnet_core.calibration.documents import Batch

InputOf = Callable[[Any, Tensor, Tensor, Batch], Tensor]
"""Decoder layer, its stream [N, D], the input of the group before [N, I'], documents → this group's input [N, I]."""


@attrs.frozen
class Group:
    """Linear layers with one input."""

    linears: tuple[str, ...]
    """Their names within the decoder layer."""
    residual: bool
    """What they put out is added to the residual stream; then there is one of them."""
    scale: float = 1.0
    """What it is multiplied with before (Granite)."""

    def modules(self, layer: nn.Module) -> list[Any]:
        return [layer.get_submodule(name) for name in self.linears]


@attrs.frozen(kw_only=True)
class LlamaGroup(Group):
    """A group of `BitNetKDEDecoderLayer`, which can be run up to there; its input is quantised already."""

    input_of: InputOf


def _attention_mixed(layer: Any, _: Tensor, before_NI: Tensor, batch: Batch) -> Tensor:
    attention = batch.attention(layer.self_attn.config, before_NI.device)
    return batch.unpadded(layer.self_attn.mixed_values(batch.padded(before_NI), **attention)[0])


LLAMA: tuple[LlamaGroup, ...] = (
    LlamaGroup(
        ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"),
        False,
        input_of=lambda layer, stream, *_: layer.self_attn.input_quantiser(layer.input_layernorm(stream)),
    ),
    LlamaGroup(("self_attn.o_proj",), True, input_of=_attention_mixed),
    LlamaGroup(
        ("mlp.gate_proj", "mlp.up_proj"),
        False,
        input_of=lambda layer, stream, *_: layer.mlp.input_quantiser(layer.post_attention_layernorm(stream)),
    ),
    LlamaGroup(("mlp.down_proj",), True, input_of=lambda layer, _, before, __: layer.mlp.inner(before)),
)
"""Of `BitNetKDEDecoderLayer`, which is Llama's, Mistral's and Qwen's."""
