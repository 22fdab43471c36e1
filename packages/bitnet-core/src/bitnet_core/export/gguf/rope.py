"""Rotary embeddings in llama.cpp's words.

In a ``llama`` file any frequencies can be written, as what plain ones are divided by; the other architectures have a
place for the kinds that llama.cpp computes itself (linear, yarn).
"""

from collections.abc import Mapping
from typing import Any

import attrs
import numpy as np
import torch
from numpy.typing import NDArray

from bitnet_core.errors import CoreError
from bitnet_core.export.published_architecture import Architecture, head_width
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM

Floats = NDArray[np.float32]
_STATIC = ("default", "linear", "llama3", "yarn")


@attrs.frozen(eq=False)
class Rope:
    """What the file says of them."""

    base: float
    scaling: str | None = None
    """llama.cpp's kind; None: plain, but for `factors`."""
    factor: float | None = None
    """How many times longer the context is than `original_context`."""
    original_context: int | None = None
    attention_factor: float = 1.0
    """What cosines and sines are multiplied by, beyond what `scaling` does by itself."""
    factors: Mapping[str, Floats] = attrs.field(factory=dict)
    """Tensors [E / 2]: what plain frequencies are divided by."""
    notes: tuple[str, ...] = ()

    def add_to(self, writer: Any) -> None:
        """Write all but the tensors into a file of gguf's `GGUFWriter`."""
        from gguf import RopeScalingType

        writer.add_rope_freq_base(self.base)
        if self.scaling is not None:
            writer.add_rope_scaling_type(RopeScalingType(self.scaling))
        if self.factor is not None:
            writer.add_rope_scaling_factor(self.factor)
        if self.original_context is not None:
            writer.add_rope_scaling_orig_ctx_len(self.original_context)
        if self.attention_factor != 1.0:
            writer.add_rope_scaling_attn_factors(self.attention_factor)


def rope_of(model: BitNetKDEForCausalLM, architecture: Architecture) -> Rope:
    """Raises CoreError for what this architecture of llama.cpp has no place for."""
    config, rotary = model.config, model.model.rotary_emb
    parameters: Any = config.rope_parameters  # LlamaConfig fills it in
    kind, base = parameters.get("rope_type", "default"), float(parameters["rope_theta"])
    nowhere = CoreError(
        f"gguf: llama.cpp's architecture {architecture} has no place for rotary embeddings of type {kind!r}",
        "export hf or packed",
    )
    if rotary.inv_freq.shape[0] * 2 != head_width(config):
        raise CoreError("gguf: llama.cpp turns whole heads, and this student only a part of each", "export hf")
    if kind == "dynamic":
        longest = config.max_position_embeddings
        note = f"the student stretches its rotary embeddings beyond {longest:,} tokens (dynamic), llama.cpp doesn't"
        return Rope(base, notes=(note,))
    if kind == "longrope" and architecture == "llama":
        return _longrope(base, parameters, float(rotary.attention_scaling))
    if kind not in _STATIC:
        raise nowhere
    factors = _factors(base, rotary.inv_freq, config)
    attention = float(rotary.attention_scaling)
    if factors is None and attention == 1.0:
        return Rope(base)
    if architecture == "llama":
        tensors = {} if factors is None else {"rope_freqs.weight": factors}
        return Rope(base, attention_factor=attention, factors=tensors)
    if kind == "linear":
        return Rope(base, "linear", float(parameters["factor"]))
    if kind == "yarn" and not any(parameters.get(name) not in (None, usual) for name, usual in _YARN.items()):
        return _yarn(base, parameters, config)
    raise nowhere


def _factors(base: float, inverse_E2: torch.Tensor, config: BitNetKDEConfig) -> Floats | None:
    """What plain frequencies are divided by [E / 2]; None: they are plain."""
    width = head_width(config)
    plain = base ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    factors = plain / inverse_E2.double().cpu()
    return None if torch.allclose(factors, torch.ones_like(factors), rtol=1e-5) else factors.float().numpy()


_YARN = {
    "truncate": True, "beta_fast": 32, "beta_slow": 1, "attention_factor": None, "mscale": None, "mscale_all_dim": None,
}  # fmt: skip
"""What llama.cpp does by itself; with other settings it was seen to compute something else."""


def _yarn(base: float, parameters: Mapping[str, Any], config: BitNetKDEConfig) -> Rope:
    original = int(parameters["original_max_position_embeddings"])
    factor = float(parameters["factor"] or config.max_position_embeddings / original)
    return Rope(base, "yarn", factor, original)


def _longrope(base: float, parameters: Mapping[str, Any], attention: float) -> Rope:
    original = int(parameters["original_max_position_embeddings"])
    tensors = {
        f"rope_factors_{name}.weight": np.array(parameters[f"{name}_factor"], np.float32) for name in ("long", "short")
    }
    note = (
        f"llama.cpp takes longrope's long factors for every text where its context is set beyond {original:,} tokens, "
        "the student for texts that are longer"
    )
    return Rope(base, "longrope", None, original, attention_factor=attention, factors=tensors, notes=(note,))
