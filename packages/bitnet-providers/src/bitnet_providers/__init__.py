"""Teachers for distillation: the contract, the plugin seam, the collector, and the local teacher."""

from typing import TYPE_CHECKING

from bitnet_providers.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_providers.baseline.run_baseline import run_baseline
    from bitnet_providers.config import BaselineConfig, CollectConfig
    from bitnet_providers.contract import (
        Capabilities,
        Completion,
        GenerateRequest,
        ProviderError,
        RequestRefusedError,
        RetryableError,
        Sampling,
        ScoreRequest,
        Teacher,
        TeacherPlugin,
    )
    from bitnet_providers.hookspecs import hookimpl
    from bitnet_providers.prompts.load_prompts import Prompt, Text, load_prompts, load_texts
    from bitnet_providers.raw.write_shard import RAW_SCHEMA, write_raw_shard
    from bitnet_providers.teachers.local.options import LocalTeacherConfig

# `collect` is not here: the module of that name would take its place on import.
__all__ = [
    "RAW_SCHEMA",
    "BaselineConfig",
    "Capabilities",
    "CollectConfig",
    "Completion",
    "GenerateRequest",
    "LocalTeacherConfig",
    "Prompt",
    "ProviderError",
    "RequestRefusedError",
    "RetryableError",
    "Sampling",
    "ScoreRequest",
    "Teacher",
    "TeacherPlugin",
    "Text",
    "hookimpl",
    "load_prompts",
    "load_texts",
    "run_baseline",
    "write_raw_shard",
]

lazy_names(
    globals(),
    {
        "baseline.run_baseline": ("run_baseline",),
        "config": (
            "BaselineConfig",
            "CollectConfig",
        ),
        "contract": (
            "Capabilities",
            "Completion",
            "GenerateRequest",
            "ProviderError",
            "RequestRefusedError",
            "RetryableError",
            "Sampling",
            "ScoreRequest",
            "Teacher",
            "TeacherPlugin",
        ),
        "hookspecs": ("hookimpl",),
        "prompts.load_prompts": (
            "Prompt",
            "Text",
            "load_prompts",
            "load_texts",
        ),
        "raw.write_shard": (
            "RAW_SCHEMA",
            "write_raw_shard",
        ),
        "teachers.local.options": ("LocalTeacherConfig",),
    },
)
