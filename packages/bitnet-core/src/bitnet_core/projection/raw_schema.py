"""What a raw shard v1 must be (docs/raw-shard.md): its version, its columns, and metadata that fit the others'."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from bitnet_core.errors import CoreError
from bitnet_core.traces.target_kinds import TOPK

RAW_VERSION = 1


METADATA_KEY = b"bitnet_raw"


SHARDS = "shard_*.parquet"


MADE_BY = "the collect stage (bitnet run MANIFEST --from collect)"


INDEX_COLUMNS = ["prompt_idx", "sample_idx", "source_id", "kind", "messages", "prompt_ids", "token_ids"]


BATCH_COLUMNS = [
    *("text", "prompt_ids", "token_ids", "token_logprobs"),
    *("candidate_counts", "candidate_ids", "candidate_logprobs"),
]


# Candidates repeat: Parquet stores a dictionary, and it is read as one: what is done for a string is done once.
AS_DICTIONARY = ("token_bytes.list.element", "candidate_bytes.list.element")


CROSS_TOKENIZER = (
    "bring back the teacher's folder (teacher.model_folder in the raw metadata), or collect with a teacher that gives "
    "bytes, which traces for another tokenizer need; for a student with the teacher's own tokenizer set "
    "project.tokenizer to that tokenizer's folder"
)
"""The end of errors about ids whose tokenizer is not at hand."""


def raw_metadata(schema: pa.Schema, path: Path) -> dict[str, Any]:
    text = (schema.metadata or {}).get(METADATA_KEY)
    if text is None:
        raise CoreError(f"{path}: not a raw shard (no bitnet_raw metadata)", f"remove the file, or run {MADE_BY} again")
    try:
        metadata: dict[str, Any] = json.loads(text)
        version = metadata["version"]
        int(metadata["top_k"])
        _ = (metadata.get("teacher") or {}).get("model"), (metadata.get("target") or {}).get("kind")
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CoreError(f"{path}: its bitnet_raw metadata is malformed ({error!r})", f"run {MADE_BY} again") from error
    if version != RAW_VERSION:
        raise CoreError(
            f"{path}: raw shard version {version}, but this bitnet-core reads version {RAW_VERSION}",
            "install the bitnet-core that fits the bitnet-providers that wrote it",
        )
    return metadata


def check_same_teacher(first: Mapping[str, Any], first_path: Path, other: Mapping[str, Any], path: Path) -> None:
    def identity(metadata: Mapping[str, Any]) -> dict[str, Any]:
        teacher = metadata.get("teacher") or {}
        return {
            "teacher kind": metadata.get("kind"),
            "model": teacher.get("model"),
            "vocab_size": teacher.get("vocab_size"),
            "top_k": metadata["top_k"],
            "target": metadata.get("target") or TOPK,
            "test_from": metadata.get("test_from"),
        }

    ours, theirs = identity(first), identity(other)
    differing = [f"{name} {ours[name]!r} and {theirs[name]!r}" for name in ours if ours[name] != theirs[name]]
    if differing:
        raise CoreError(
            f"{first_path} and {path.name} do not belong together ({'; '.join(differing)})",
            "keep the shards of one teacher and one K in a raw folder",
        )


def check_raw_columns(schema: pa.Schema, path: Path, extra: Sequence[str]) -> None:
    missing = sorted({*INDEX_COLUMNS, *BATCH_COLUMNS, *extra} - set(schema.names))
    if missing:
        raise CoreError(f"{path}: not a raw shard, it lacks the columns {', '.join(missing)}", f"run {MADE_BY} again")
