"""The table "what fits where": training with other batches, contexts, optimizers and numbers of GPUs, by formula."""

from typing import Any, Final

import attrs

from bitnet_core.config.dry_run import DryRunConfig
from bitnet_core.dry_run.formulas import decode_bytes, prefill_bytes, train_bytes

CAPACITIES_GB: Final = (8, 16, 24, 80, 141)
"""Memory of common GPUs, in 10⁹ bytes."""


_SHAPES: Final = ((1, 2048), (4, 2048), (1, 8192))
"""Batch and context of the table's rows, beside the manifest's own."""


USABLE: Final = 0.95
"""What the driver, the context and the allocator's gaps leave of it."""


def what_fits(config: DryRunConfig, compute_bytes: int) -> list[dict[str, Any]]:
    """A row a setting: bytes on each GPU, and the capacities (GB) that hold them."""
    rows = []
    for batch, context in dict.fromkeys(((config.batch_size, config.context), *_SHAPES)):
        shape = attrs.evolve(config, batch_size=batch, context=context, devices=1, optimizer="adamw", measure="never")
        needed = max(prefill_bytes(shape, compute_bytes), decode_bytes(shape, compute_bytes))
        rows.append(_row(shape, "generate", needed))
        for devices, optimizer in ((1, "adamw"), (1, "adamw8bit"), (2, "adamw"), (4, "adamw"), (8, "adamw")):
            for checkpointing in (True, False):
                setting = attrs.evolve(
                    shape, devices=devices, optimizer=optimizer, gradient_checkpointing=checkpointing
                )
                rows.append(_row(setting, "train", max(train_bytes(setting, compute_bytes, on_cpu=False))))
    return rows


def _row(config: DryRunConfig, use: str, needed: int) -> dict[str, Any]:
    training = use == "train"
    return {
        "use": use,
        "batch_size": config.batch_size,
        "context": config.context,
        "gradient_checkpointing": config.gradient_checkpointing if training else None,
        "optimizer": config.optimizer if training else None,
        "devices": config.devices,
        "bytes_per_device": needed,
        "fits_gb": [size for size in CAPACITIES_GB if needed <= USABLE * size * 1e9],
    }
