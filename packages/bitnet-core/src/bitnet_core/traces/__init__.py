"""KD traces: raw shards in, K candidates + other for every token position out, and the dataset that trains on them."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitnet_core.traces.collate import pack_items, packed_attention_mask
    from bitnet_core.traces.config import ProjectConfig
    from bitnet_core.traces.dataset import KDBatch, KDPositions, KDTraceDataset, collate_fn
    from bitnet_core.traces.schema import KDMetadata, write_kd_shard
    from bitnet_core.traces.stats import trace_stats
    from bitnet_core.traces.stream import StreamConfig, TraceBatches
    from bitnet_core.traces.tokenizer import load_tokenizer, tokenizer_sha256
    from bitnet_core.traces.validate import validate_traces

__all__ = [
    "KDBatch",
    "KDMetadata",
    "KDPositions",
    "KDTraceDataset",
    "ProjectConfig",
    "StreamConfig",
    "TraceBatches",
    "collate_fn",
    "load_tokenizer",
    "pack_items",
    "packed_attention_mask",
    "tokenizer_sha256",
    "trace_stats",
    "validate_traces",
    "write_kd_shard",
]

_HOMES = {
    "KDBatch": "dataset",
    "KDMetadata": "schema",
    "KDPositions": "dataset",
    "KDTraceDataset": "dataset",
    "ProjectConfig": "config",
    "StreamConfig": "stream",
    "TraceBatches": "stream",
    "collate_fn": "collate",
    "load_tokenizer": "tokenizer",
    "pack_items": "collate",
    "packed_attention_mask": "collate",
    "tokenizer_sha256": "tokenizer",
    "trace_stats": "stats",
    "validate_traces": "validate",
    "write_kd_shard": "schema",
}


def __getattr__(name: str) -> Any:
    # Lazy, so that reading a configuration never loads pyarrow or torch (PEP 562).
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from importlib import import_module

    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)
