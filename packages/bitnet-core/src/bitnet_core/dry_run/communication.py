"""What the processes of a sharded training send each other in a step, by formula. Loads no torch.

FSDP gathers a layer's parameters for its forward pass, and again for its backward pass, and sums its gradients while it
scatters them; embedding, head and last norm are gathered once and stay until the backward pass ends. All float32. A
process sends its part of what it gathers to the N - 1 others, and as much of the gradients: (N - 1) / N of their bytes.
"""

from typing import Any, Final

import attrs

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import FLOAT, sizes_of

GROUPS: Final = (2, 8, 64, 512)
"""Numbers of devices, beside the manifest's own."""
LINKS: Final = {"NVLink 4": 450, "InfiniBand NDR": 50, "100 Gb/s Ethernet": 12.5, "10 Gb/s Ethernet": 1.25}
"""10⁹ bytes a second that a device can send; behind a link that several share, each has its part of it."""


@attrs.frozen
class Volume:
    """Bytes that one device sends for one micro-batch."""

    gathered: int
    """Parameters, for the others."""
    scattered: int
    """Gradients, to those that own them."""

    @property
    def total(self) -> int:
        return self.gathered + self.scattered


def volume(layer: int, layers: int, rest: int, devices: int) -> Volume:
    """`layer`, `rest`: parameters of a layer, and of what is in none."""
    once = FLOAT * (layer * layers + rest) * (devices - 1) // devices
    again = FLOAT * layer * layers * (devices - 1) // devices
    return Volume(gathered=once + again, scattered=once)


def communication(config: DryRunConfig) -> list[dict[str, Any]]:
    """A row a number of devices: bytes that each sends for a micro-batch, and the seconds that takes by each link, if
    nothing of it happens while the device computes."""
    sizes, layers = sizes_of(config), config.num_hidden_layers
    rows = []
    for devices in sorted({config.devices, *GROUPS} - {1}):
        sent = volume(sizes.layer, layers, sizes.total - layers * sizes.layer, devices)
        rows.append(
            {
                "devices": devices,
                "all_gather_bytes": sent.gathered,
                "reduce_scatter_bytes": sent.scattered,
                "seconds": {link: sent.total / speed / 1e9 for link, speed in LINKS.items()},
            }
        )
    return rows
