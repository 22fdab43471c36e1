"""What a checkpoint's ``step_N_health.json`` says about the student: are the ternary codes alive and moving?"""

from pathlib import Path
from typing import Any

import attrs
from torch import Tensor, nn

from bitnet_core.distributed import whole
from bitnet_core.files import write_json
from bitnet_core.ternary.bitlinear import shares_of, ternary_layers


@attrs.frozen(eq=False)
class LayerState:
    """A ternary layer at one moment, on the CPU."""

    codes: Tensor
    """int8 [out, in]"""
    log_scale: Tensor
    """float32 [out]"""


def layer_states(model: nn.Module) -> dict[str, LayerState]:
    """Each BitLinear as it stands; where parameters are sharded, all processes must ask."""
    return {
        name: LayerState(whole(layer.codes()).cpu(), whole(layer.row_log_scale().detach()).cpu().clone())
        for name, layer in ternary_layers(model)
    }


def layer_report(now: dict[str, LayerState], before: dict[str, LayerState]) -> dict[str, dict[str, float]]:
    """For each layer: the shares of −1, 0, +1, of rows without a live code, and what has moved since `before`.

    ``flipped``: share of the codes; ``scale_drift``: mean |Δ log s| of the rows.
    """
    report = {}
    for name, layer in now.items():
        codes, old = layer.codes, before[name]
        report[name] = attrs.asdict(shares_of(codes)) | {
            "dead_rows": (codes == 0).all(dim=1).float().mean().item(),
            "flipped": (codes != old.codes).float().mean().item(),
            "scale_drift": (layer.log_scale - old.log_scale).abs().mean().item(),
        }
    return report


def write_health(file: Path, counters: dict[str, Any], layers: dict[str, dict[str, float]]) -> None:
    """`counters`: loss parts, gradient norm, seen tokens, bits, tokens per second, peak memory in bytes."""
    dead = max((layer["dead_rows"] for layer in layers.values()), default=0.0)
    write_json(file, counters | {"worst_dead_row_share": dead, "layers": layers})
