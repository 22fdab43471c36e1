"""Groups of linears of any decoder layer, found by running it, and its stream through them.

What a layer puts out while some of its linears are silent (give zeros) is the residual stream without what these would
have added. So the stream before a group is the layer's output with this group and all later ones silent, and a group's
output is added to the stream where the layer's output moves by just that.

Shapes: N tokens of all documents, B documents, T positions, D residual width, I width of a group's input.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.calibration.documents import Batch
from bitnet_core.calibration.llama_groups import Group
from bitnet_core.model.find_layers_and_head import linears, widths
from bitnet_core.model.start_whole_model import WholeStart
from bitnet_core.ternary.bitlinear import BitLinear
from bitnet_core.ternary.ternary_linear import compute_dtype

Run = Callable[[nn.Module, Tensor], Tensor]
"""A layer, its hidden states [B, T, D] → its output [B, T, D]."""
_PROBE_TOKENS = 6
_ADDED = 1e-4
"""Of the largest value: so far may a layer's output be from the stream and a multiple of a linear's output."""


@attrs.frozen
class FoundGroup(Group):
    """A group of `found_groups`."""

    from_here: tuple[str, ...] = ()
    """Its linears and all that the layer calls after them, left out ones too."""


def runner(start: WholeStart, index: int, ids_BT: Tensor, is_token_BT: Tensor) -> Run:
    """Runs layer `index` as the decoder does on these documents."""
    call = start.calls(ids_BT, is_token_BT)[index]

    def run(layer: nn.Module, hidden_BTD: Tensor) -> Tensor:
        output = layer(hidden_BTD, *call.args, **call.kwargs)
        found: Tensor = output[0] if isinstance(output, tuple) else output
        return found

    return run


def found_groups(start: WholeStart, index: int, device: torch.device) -> tuple[FoundGroup, ...]:
    """The groups of ternary linears of layer `index`, in the order in which they are called."""
    layer = start.layer(index, device, ternary=False)
    ids_BT = torch.arange(_PROBE_TOKENS, device=device)[None] % start.vocab_size
    run = runner(start, index, ids_BT, torch.ones_like(ids_BT, dtype=torch.bool))
    generator = torch.Generator().manual_seed(0)
    hidden_BTD = torch.randn(1, _PROBE_TOKENS, start.hidden_size, generator=generator).to(device)
    inputs = _inputs(layer, run, hidden_BTD)
    order = list(inputs)
    ternary = [name for name in order if f"{start.prefix}{index}.{name}" not in start.config.left_out]
    groups: dict[int, list[str]] = {}
    for name in ternary:
        groups.setdefault(id(inputs[name]), []).append(name)
    found = []
    for names in groups.values():
        rest = tuple(order[order.index(names[0]) :])
        scale = _added(layer, run, hidden_BTD, names[0], rest) if len(names) == 1 else None
        found.append(FoundGroup(tuple(names), scale is not None, 1.0 if scale is None else scale, rest))
    return tuple(found)


def _inputs(layer: nn.Module, run: Run, hidden_BTD: Tensor) -> dict[str, Tensor]:
    """Linear → the tensor that it read, in the order of the calls."""
    found: dict[str, Tensor] = {}

    def keep(name: str) -> Callable[..., None]:
        def hook(_module: nn.Module, inputs: tuple[Tensor, ...]) -> None:
            found.setdefault(name, inputs[0])

        return hook

    with ExitStack() as stack:
        for name, linear in linears(layer).items():
            stack.callback(linear.register_forward_pre_hook(keep(name)).remove)
        run(layer, hidden_BTD)
    return found


def _added(layer: nn.Module, run: Run, hidden_BTD: Tensor, name: str, rest: Sequence[str]) -> float | None:
    """What the layer multiplies the linear's output with before it adds it to the stream; None: it doesn't add it."""
    outputs = widths(layer.get_submodule(name))[1]
    if outputs != hidden_BTD.shape[-1]:
        return None
    generator = torch.Generator().manual_seed(1)
    moved_BTD = torch.randn(hidden_BTD.shape, generator=generator).to(hidden_BTD)
    with silent(layer, rest):
        before_BTD = run(layer, hidden_BTD)
        layer.get_submodule(name).forward = lambda _: moved_BTD
        change_BTD = run(layer, hidden_BTD) - before_BTD
    scale = float((change_BTD * moved_BTD).sum() / moved_BTD.square().sum())
    rest_BTD = change_BTD - scale * moved_BTD
    return scale if scale and float(rest_BTD.abs().max()) <= _ADDED * float(change_BTD.abs().max()) else None


@contextmanager
def silent(layer: nn.Module, names: Sequence[str]) -> Iterator[list[Tensor]]:
    """Within it these linears give zeros; the list gets what the first of them reads, quantised where it would be."""
    read: list[Tensor] = []

    def zeros(linear: Any, keeps: bool) -> Callable[[Tensor], Tensor]:
        def forward(x_BTI: Tensor) -> Tensor:
            if keeps:
                quantiser = linear.input_quantiser if isinstance(linear, BitLinear) else None
                read.append(x_BTI if quantiser is None else quantiser(x_BTI))
            return torch.zeros(*x_BTI.shape[:-1], widths(linear)[1], dtype=compute_dtype(x_BTI), device=x_BTI.device)

        return forward

    with ExitStack() as stack:
        for name in names:
            linear: Any = layer.get_submodule(name)
            linear.forward = zeros(linear, name == names[0])
            stack.callback(delattr, linear, "forward")
        yield read


@attrs.define(eq=False)
class FoundStream:
    """As `Stream`, of any decoder layer: each step runs the layer from its beginning."""

    layer: nn.Module
    start: WholeStart
    index: int
    entry_ND: Tensor
    """What the layer gets, float32."""
    hidden_ND: Tensor
    """The stream before the present group, float32; after `finish` what the layer puts out."""
    rooms: tuple[Tensor, Tensor]
    input_NI: Tensor = attrs.Factory(lambda: torch.empty(0))

    def come_to(self, group: FoundGroup, batches: Sequence[Batch], device: torch.device) -> None:
        """Compute the group's input, and the stream before its output is added."""
        width = widths(self.layer.get_submodule(group.linears[0]))[0]
        self.input_NI = self.rooms[0][: len(self.hidden_ND) * width].view(-1, width)
        with silent(self.layer, group.from_here) as read:
            for batch in batches:
                read.clear()
                self.hidden_ND[batch.rows] = self._output(batch, device)
                self.input_NI[batch.rows] = batch.unpadded(read[0]).to(self.input_NI)

    def leave(self, group: FoundGroup, batches: Sequence[Batch], device: torch.device) -> None:
        """Nothing: the next group's stream is computed from the layer's beginning."""

    def finish(self, batches: Sequence[Batch], device: torch.device) -> None:
        """Take the stream past the layer."""
        for batch in batches:
            self.hidden_ND[batch.rows] = self._output(batch, device)

    def _output(self, batch: Batch, device: torch.device) -> Tensor:
        run = runner(self.start, self.index, batch.padded_ids(device), batch.is_token(device))
        output_BTD = run(self.layer, batch.padded(self.entry_ND[batch.rows].to(device)))
        return batch.unpadded(output_BTD).to(self.hidden_ND)
