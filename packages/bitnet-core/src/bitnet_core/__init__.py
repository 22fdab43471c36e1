"""Models, losses, KD traces, training and evaluation for 1.58-bit students.

The names below load what they need when they are first used, so that `import bitnet_core` costs nothing.
"""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_core.bitlinear import BitLinear
    from bitnet_core.chunked_loss import chunked_combined_loss
    from bitnet_core.config import EvaluateConfig, ProjectConfig, StudentConfig, TopKOtherConfig, TrainConfig
    from bitnet_core.errors import CoreError
    from bitnet_core.loss_batch import batch_from_topk
    from bitnet_core.losses import combined_loss, format_loss, kd_cross_entropy_loss
    from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM, build_student
    from bitnet_core.quantisers import FakeQuantActivation
    from bitnet_core.traces.dataset import KDTraceDataset, collate_fn


__all__ = [
    "BitLinear",
    "BitNetKDEConfig",
    "BitNetKDEForCausalLM",
    "CoreError",
    "EvaluateConfig",
    "FakeQuantActivation",
    "KDTraceDataset",
    "ProjectConfig",
    "StudentConfig",
    "TopKOtherConfig",
    "TrainConfig",
    "batch_from_topk",
    "build_student",
    "chunked_combined_loss",
    "collate_fn",
    "combined_loss",
    "format_loss",
    "kd_cross_entropy_loss",
]

lazy_names(
    globals(),
    {
        "bitlinear": ("BitLinear",),
        "chunked_loss": ("chunked_combined_loss",),
        "config": ("EvaluateConfig", "ProjectConfig", "StudentConfig", "TopKOtherConfig", "TrainConfig"),
        "errors": ("CoreError",),
        "loss_batch": ("batch_from_topk",),
        "losses": ("combined_loss", "format_loss", "kd_cross_entropy_loss"),
        "model": ("BitNetKDEConfig", "BitNetKDEForCausalLM", "build_student"),
        "quantisers": ("FakeQuantActivation",),
        "traces.dataset": ("KDTraceDataset", "collate_fn"),
    },
)
