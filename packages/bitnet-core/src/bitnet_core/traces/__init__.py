"""KD traces: raw shards in, K candidates + other for every token position out, and the dataset that trains on them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_core.traces.config import ProjectConfig
    from bitnet_core.traces.dataset import KDBatch, KDPositions, KDTraceDataset, collate_fn
    from bitnet_core.traces.schema import KDMetadata, write_kd_shard
    from bitnet_core.traces.stats import trace_stats
    from bitnet_core.traces.tokenizer import load_tokenizer, tokenizer_sha256

__all__ = [
    "KDBatch",
    "KDMetadata",
    "KDPositions",
    "KDTraceDataset",
    "ProjectConfig",
    "collate_fn",
    "load_tokenizer",
    "tokenizer_sha256",
    "trace_stats",
    "write_kd_shard",
]

_HOMES = {
    "KDBatch": "dataset",
    "KDMetadata": "schema",
    "KDPositions": "dataset",
    "KDTraceDataset": "dataset",
    "ProjectConfig": "config",
    "collate_fn": "dataset",
    "load_tokenizer": "tokenizer",
    "tokenizer_sha256": "tokenizer",
    "trace_stats": "stats",
    "write_kd_shard": "schema",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a configuration never loads pyarrow or torch (PEP 562).
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
