"""What a step computed, on its way to the host: read when it has arrived, so that the host needn't wait for a step that
the device is still at.
"""

from collections.abc import Mapping, Sequence

import attrs
import torch
from torch import Tensor


@attrs.frozen(kw_only=True, eq=False)
class StepFigures:
    """Of one optimizer step."""

    step: int
    """0-based"""
    micro_batches: Sequence[Mapping[str, Tensor]]
    """That it learnt from, on the CPU."""
    names: tuple[str, ...]
    values: Tensor
    """float64, on the CPU; what they are isn't known before `arrived`."""
    arrived: torch.cuda.Event | None

    def read(self) -> dict[str, float]:
        """The values by name. Waits for them where they are still on their way."""
        if self.arrived is not None:
            self.arrived.synchronize()
        return dict(zip(self.names, self.values.tolist(), strict=True))


def sent_to_host(values: Tensor) -> tuple[Tensor, torch.cuda.Event | None]:
    """`values` on the CPU, and the event after which they are there (None: now)."""
    if values.device.type != "cuda":
        return values.cpu(), None
    on_host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
    on_host.copy_(values, non_blocking=True)
    arrived = torch.cuda.Event()
    arrived.record()
    return on_host, arrived


def sent_to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """`tensor` on `device`, from pinned memory to a GPU: from any other the host waits until all before it is done."""
    if device.type != "cuda" or tensor.is_cuda:
        return tensor.to(device)
    return tensor.pin_memory().to(device, non_blocking=True)
