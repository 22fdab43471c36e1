"""The losses: `chunked` is what training runs, `reference` what tests hold it to."""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_core.losses.batch_from_teacher import batch_from_topk
    from bitnet_core.losses.chunked import chunked_combined_loss
    from bitnet_core.losses.reference import combined_loss, format_loss, kd_cross_entropy_loss

__all__ = ["batch_from_topk", "chunked_combined_loss", "combined_loss", "format_loss", "kd_cross_entropy_loss"]

lazy_names(
    globals(),
    {
        "chunked": ("chunked_combined_loss",),
        "reference": (
            "combined_loss",
            "format_loss",
            "kd_cross_entropy_loss",
        ),
        "batch_from_teacher": ("batch_from_topk",),
    },
)
