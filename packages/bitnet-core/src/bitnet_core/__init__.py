"""Models, losses, KD traces, training and evaluation for 1.58-bit students.

The names below load what they need when they are first used, so that `import bitnet_core` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_HOME = {
    "BitLinear": "bitlinear",
    "BitNetKDEConfig": "model",
    "BitNetKDEForCausalLM": "model",
    "CoreError": "errors",
    "EvaluateConfig": "config",
    "FakeQuantActivation": "quantisers",
    "KDTraceDataset": "traces.dataset",
    "ProjectConfig": "config",
    "StudentConfig": "config",
    "TopKOtherConfig": "config",
    "TrainConfig": "config",
    "batch_from_topk": "loss_batch",
    "build_student": "model",
    "chunked_combined_loss": "chunked_loss",
    "collate_fn": "traces.dataset",
    "combined_loss": "losses",
    "format_loss": "losses",
    "kd_cross_entropy_loss": "losses",
}

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


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
