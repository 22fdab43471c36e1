"""What a checkpoint's ``step_N_health.json`` says about the student: are the ternary codes alive and moving?"""

from pathlib import Path
from typing import Any

import torch
from torch import nn

from bitnet_core.bitlinear import ternary_layers
from bitnet_core.files import write_json


def layer_codes(model: nn.Module) -> dict[str, torch.Tensor]:
    """The ternary codes of each BitLinear, int8 [out, in] on the CPU."""
    return {name: layer.codes().cpu() for name, layer in ternary_layers(model)}


def code_report(codes: dict[str, torch.Tensor], before: dict[str, torch.Tensor]) -> dict[str, dict[str, float]]:
    """For each layer: the shares of −1, 0, +1, of rows with no live code, and of codes that moved since `before`."""
    report = {}
    for name, code in codes.items():
        report[name] = {
            "minus": (code == -1).float().mean().item(),
            "zero": (code == 0).float().mean().item(),
            "plus": (code == 1).float().mean().item(),
            "dead_rows": (code == 0).all(dim=1).float().mean().item(),
            "flipped": (code != before[name]).float().mean().item() if name in before else 0.0,
        }
    return report


def write_health(file: Path, counters: dict[str, Any], layers: dict[str, dict[str, float]]) -> None:
    """`counters`: loss parts, gradient norm, seen tokens, bits, tokens per second, peak memory in bytes."""
    dead = max((layer["dead_rows"] for layer in layers.values()), default=0.0)
    write_json(file, counters | {"worst_dead_row_share": dead, "layers": layers})
