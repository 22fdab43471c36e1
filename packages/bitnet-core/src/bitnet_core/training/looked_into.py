"""Forward hooks on a decoder: outputs of layers, queries, keys and values. B sequences, T positions."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import attrs
from torch import Tensor, nn

PROJECTIONS = ("q_proj", "k_proj", "v_proj")


@attrs.frozen
class Captured:
    """What the hooks captured in one forward pass."""

    outputs: dict[int, Tensor] = attrs.field(factory=dict)
    """Layer → its output [B, T, D]."""
    states: dict[str, Tensor] = attrs.field(factory=dict)
    """q_proj, k_proj, v_proj → what it gave, before norms and rotation."""


@contextmanager
def hooked_layers(decoder: nn.Module, layers: Sequence[int], attention: int | None) -> Iterator[Captured]:
    """Keep what these layers put out, and queries, keys and values of layer `attention`, in forward passes within.

    A layer that is recomputed in the backward pass isn't captured a second time. Layers must not be compiled.
    """
    captured = Captured()

    def keep(place: dict[Any, Tensor], key: Any) -> Callable[..., None]:
        def hook(_module: nn.Module, _inputs: Any, output: Any) -> None:
            place[key] = output[0] if isinstance(output, tuple) else output

        return hook

    modules: Any = decoder.layers
    handles = [modules[index].register_forward_hook(keep(captured.outputs, index)) for index in dict.fromkeys(layers)]
    if attention is not None:
        block = modules[attention].self_attn
        handles += [getattr(block, name).register_forward_hook(keep(captured.states, name)) for name in PROJECTIONS]
    try:
        yield captured
    finally:
        for handle in handles:
            handle.remove()
