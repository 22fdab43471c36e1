"""Teachers for distillation: the contract, the plugin seam, the collector, and the local teacher."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_providers.baseline import run_baseline
    from bitnet_providers.config import BaselineConfig, CollectConfig, LocalTeacherConfig
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
    from bitnet_providers.prompts import Prompt, Text, load_prompts, load_texts
    from bitnet_providers.raw_shard import RAW_SCHEMA, write_raw_shard

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

_HOMES = {
    "RAW_SCHEMA": "raw_shard",
    "BaselineConfig": "config",
    "Capabilities": "contract",
    "CollectConfig": "config",
    "Completion": "contract",
    "GenerateRequest": "contract",
    "LocalTeacherConfig": "config",
    "Prompt": "prompts",
    "ProviderError": "contract",
    "RequestRefusedError": "contract",
    "RetryableError": "contract",
    "Sampling": "contract",
    "ScoreRequest": "contract",
    "Teacher": "contract",
    "TeacherPlugin": "contract",
    "Text": "prompts",
    "hookimpl": "hookspecs",
    "load_prompts": "prompts",
    "load_texts": "prompts",
    "run_baseline": "baseline",
    "write_raw_shard": "raw_shard",
}


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f"bitnet_providers.{_HOMES[name]}"), name)
    raise AttributeError(f"module 'bitnet_providers' has no attribute '{name}'")


def __dir__() -> list[str]:
    return __all__
