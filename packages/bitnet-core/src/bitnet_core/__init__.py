"""Models, losses, KD traces, training and evaluation for 1.58-bit students.

The names below load what they need when they are first used, so that `import bitnet_core` costs nothing.
"""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_core.config.evaluate import EvaluateConfig
    from bitnet_core.config.export import GGUFOptions, HFOptions, PackedOptions
    from bitnet_core.config.loss import TopKOtherConfig
    from bitnet_core.config.project import ProjectConfig
    from bitnet_core.config.student import StudentConfig
    from bitnet_core.config.train import TrainConfig
    from bitnet_core.errors import CoreError
    from bitnet_core.export.gguf.write import gguf_exporter
    from bitnet_core.export.hf import hf_exporter
    from bitnet_core.export.packed import packed_exporter
    from bitnet_core.losses.batch_from_teacher import batch_from_logits, batch_from_topk
    from bitnet_core.losses.chunked import chunked_combined_loss
    from bitnet_core.losses.reference import combined_loss, format_loss, kd_cross_entropy_loss
    from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM, build_student, restore_dense, ternarise
    from bitnet_core.runtime.open import open_runtime
    from bitnet_core.ternary.activation_quantiser import FakeQuantActivation
    from bitnet_core.ternary.bitlinear import BitLinear
    from bitnet_core.traces.collate import collate_fn
    from bitnet_core.traces.dataset import KDTraceDataset
    from bitnet_core.training.optimizer import optimizer_groups

# `export` is not here: the folder of that name would take its place on import (bitnet_core.export.folder has it).
__all__ = [
    "BitLinear",
    "BitNetKDEConfig",
    "BitNetKDEForCausalLM",
    "CoreError",
    "EvaluateConfig",
    "FakeQuantActivation",
    "GGUFOptions",
    "HFOptions",
    "KDTraceDataset",
    "PackedOptions",
    "ProjectConfig",
    "StudentConfig",
    "TopKOtherConfig",
    "TrainConfig",
    "batch_from_logits",
    "batch_from_topk",
    "build_student",
    "chunked_combined_loss",
    "collate_fn",
    "combined_loss",
    "format_loss",
    "gguf_exporter",
    "hf_exporter",
    "kd_cross_entropy_loss",
    "open_runtime",
    "optimizer_groups",
    "packed_exporter",
    "restore_dense",
    "ternarise",
]

lazy_names(
    globals(),
    {
        "config.evaluate": ("EvaluateConfig",),
        "config.export": ("GGUFOptions", "HFOptions", "PackedOptions"),
        "config.loss": ("TopKOtherConfig",),
        "config.project": ("ProjectConfig",),
        "config.student": ("StudentConfig",),
        "config.train": ("TrainConfig",),
        "errors": ("CoreError",),
        "export.gguf.write": ("gguf_exporter",),
        "export.hf": ("hf_exporter",),
        "export.packed": ("packed_exporter",),
        "losses.chunked": ("chunked_combined_loss",),
        "losses.reference": (
            "combined_loss",
            "format_loss",
            "kd_cross_entropy_loss",
        ),
        "losses.batch_from_teacher": ("batch_from_logits", "batch_from_topk"),
        "model": (
            "BitNetKDEConfig",
            "BitNetKDEForCausalLM",
            "build_student",
            "restore_dense",
            "ternarise",
        ),
        "runtime.open": ("open_runtime",),
        "ternary.bitlinear": ("BitLinear",),
        "ternary.activation_quantiser": ("FakeQuantActivation",),
        "traces.collate": ("collate_fn",),
        "traces.dataset": ("KDTraceDataset",),
        "training.optimizer": ("optimizer_groups",),
    },
)
