"""What a checkpoint's ``step_N_health.json`` says about the student: are the ternary codes alive and moving?"""

from pathlib import Path
from typing import Any

import attrs
import torch
from torch import Tensor, nn

from bitnet_core.distributed import ProcessGroup, own_rows
from bitnet_core.files import write_json
from bitnet_core.ternary.bitlinear import ternary_layers
from bitnet_core.ternary.packed_linear import pack_codes, unpack_codes


@attrs.frozen(eq=False)
class LayerState:
    """A ternary layer at one moment, on the CPU; of a sharded one this process's rows."""

    packed_codes: Tensor
    """uint8, as `pack_codes` makes them: this is held from one checkpoint to the next."""
    log_scale: Tensor
    """float32 [out]"""
    width: int
    """Inputs of the layer."""

    def codes(self) -> Tensor:
        """int8 [out, in]"""
        return unpack_codes(self.packed_codes, self.width)


def layer_states(model: nn.Module) -> dict[str, LayerState]:
    """Each BitLinear as it stands; where parameters are sharded, all processes must ask."""
    return {
        name: LayerState(
            pack_codes(own_rows(layer.codes(), layer.weight)).cpu(),
            own_rows(layer.row_log_scale().detach(), layer.weight).cpu().clone(),
            layer.in_features,
        )
        for name, layer in ternary_layers(model)
    }


def layer_report(
    now: dict[str, LayerState], before: dict[str, LayerState], group: ProcessGroup
) -> dict[str, dict[str, float]]:
    """For each layer: the shares of −1, 0, +1, of rows without a live code, and what has moved since `before`.

    ``flipped``: share of the codes; ``scale_drift``: mean |Δ log s| of the rows. Of whole layers: all processes must
    ask.
    """
    if not now:
        return {}
    counts = torch.stack([_counts(layer, before[name]) for name, layer in now.items()])
    if group.size > 1:
        counts = group.total(counts.to(group.device)).cpu()
    report = {}
    for name, (size, rows, minus, plus, dead, flipped, drift) in zip(now, counts.tolist(), strict=True):
        report[name] = {
            "minus": minus / size,
            "zero": (size - minus - plus) / size,
            "plus": plus / size,
            "dead_rows": dead / rows,
            "flipped": flipped / size,
            "scale_drift": drift / rows,
        }
    return report


def _counts(layer: LayerState, before: LayerState) -> Tensor:
    """Codes, rows, codes of -1, of 1, rows without a live code, codes that differ, the sum of the scales' moves."""
    codes = layer.codes()
    found = (
        codes.numel(),
        len(codes),
        (codes < 0).sum(),
        (codes > 0).sum(),
        (codes == 0).all(dim=1).sum(),
        (codes != before.codes()).sum(),
        (layer.log_scale - before.log_scale).abs().sum(dtype=torch.float64),
    )
    return torch.tensor([float(each) for each in found], dtype=torch.float64)


def write_health(file: Path, counters: dict[str, Any], layers: dict[str, dict[str, float]]) -> None:
    """`counters`: loss parts, gradient norm, seen tokens, bits, tokens per second, peak memory in bytes."""
    dead = max((layer["dead_rows"] for layer in layers.values()), default=0.0)
    write_json(file, counters | {"worst_dead_row_share": dead, "layers": layers})
