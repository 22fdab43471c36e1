"""KD traces: raw shards in, K candidates + other for every token position out, and the dataset that trains on them."""

from typing import TYPE_CHECKING

from bitnet_core.lazy import lazy_names

if TYPE_CHECKING:
    from bitnet_core.config.project import ProjectConfig
    from bitnet_core.traces.batch_order import StreamConfig, TraceBatches
    from bitnet_core.traces.collate import KDBatch, collate_fn, pack_items, packed_attention_mask
    from bitnet_core.traces.dataset import KDPositions, KDTraceDataset
    from bitnet_core.traces.schema import KDMetadata
    from bitnet_core.traces.stats import trace_stats
    from bitnet_core.traces.tokenizer import load_tokenizer, tokenizer_sha256
    from bitnet_core.traces.validate_shards import validate_traces
    from bitnet_core.traces.write_shards import write_kd_shard

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

# So that reading a configuration never loads pyarrow or torch.
lazy_names(
    globals(),
    {
        "batch_order": (
            "StreamConfig",
            "TraceBatches",
        ),
        "bitnet_core.config.project": ("ProjectConfig",),
        "collate": (
            "collate_fn",
            "KDBatch",
            "pack_items",
            "packed_attention_mask",
        ),
        "dataset": (
            "KDPositions",
            "KDTraceDataset",
        ),
        "schema": ("KDMetadata",),
        "write_shards": ("write_kd_shard",),
        "stats": ("trace_stats",),
        "tokenizer": (
            "load_tokenizer",
            "tokenizer_sha256",
        ),
        "validate_shards": ("validate_traces",),
    },
)
