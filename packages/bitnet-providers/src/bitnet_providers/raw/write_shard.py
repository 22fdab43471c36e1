"""The raw shard, as it is written (docs/raw-shard.md): its columns, versions and file metadata."""

import json
import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from bitnet_providers.config import TOPK
from bitnet_providers.contract import Completion, RequestRefusedError


@contextmanager
def atomic_file(file: Path) -> Iterator[Path]:
    """A path beside `file` to write to: it becomes `file` once all of it is on disk, and is gone if anything is raised.

    Raises OSError. Several processes may write the same file: the last one's stays.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    partial = file.with_name(f".{file.name}.{secrets.token_hex(4)}.partial")
    try:
        yield partial
        with partial.open("r+b") as handle:
            os.fsync(handle.fileno())
        partial.replace(file)
    finally:
        partial.unlink(missing_ok=True)


_REPORT = "report this to the authors of the teacher's plugin"


VERSION = 1


METADATA_KEY = b"bitnet_raw"


RAW_SCHEMA = pa.schema(
    [
        pa.field("prompt_idx", pa.int64(), nullable=False),
        pa.field("sample_idx", pa.int32(), nullable=False),
        pa.field("request_sha256", pa.string(), nullable=False),
        pa.field("source_id", pa.string(), nullable=False),
        pa.field("kind", pa.string(), nullable=False),
        pa.field("format", pa.string()),
        pa.field("messages", pa.string(), nullable=False),
        pa.field("text", pa.binary(), nullable=False),
        pa.field("prompt_ids", pa.list_(pa.int32())),
        pa.field("token_ids", pa.list_(pa.int32())),
        pa.field("token_bytes", pa.list_(pa.binary())),
        pa.field("token_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("candidate_counts", pa.list_(pa.int32()), nullable=False),
        pa.field("candidate_ids", pa.list_(pa.int32())),
        pa.field("candidate_bytes", pa.list_(pa.binary())),
        pa.field("candidate_logprobs", pa.list_(pa.float32()), nullable=False),
        pa.field("log_z", pa.list_(pa.float32())),
        pa.field("entropy", pa.list_(pa.float32())),
        pa.field("finish_reason", pa.string(), nullable=False),
        pa.field("model", pa.string(), nullable=False),
        pa.field("prompt_tokens", pa.int32(), nullable=False),
        pa.field("latency_s", pa.float64(), nullable=False),
        pa.field("usage", pa.string()),
        pa.field("repairs", pa.string()),
    ]
)
"""Columns of a raw shard, and of the journal that it is made from."""


def completion_columns(completion: Completion) -> dict[str, Any]:
    """A completion's part of a row: every column but those that say what was asked.

    Raises RequestRefusedError where the columns don't fit each other or the shard: the provider's fault, told before it
    reaches the disk.
    """
    positions = len(completion.token_logprobs)
    candidates = int(np.sum(completion.candidate_counts))
    lengths = {
        "candidate_counts": (len(completion.candidate_counts), positions),
        "token_ids": (_length(completion.token_ids), positions),
        "token_bytes": (_length(completion.token_bytes), positions),
        "candidate_logprobs": (len(completion.candidate_logprobs), candidates),
        "candidate_ids": (_length(completion.candidate_ids), candidates),
        "candidate_bytes": (_length(completion.candidate_bytes), candidates),
        "log_z": (_length(completion.log_z), positions),
        "entropy": (_length(completion.entropy), positions),
    }
    for name, (found, expected) in lengths.items():
        if found is not None and found != expected:
            raise RequestRefusedError(
                f"{completion.model} returned a completion whose {name} has {found} entries instead of {expected}",
                _REPORT,
            )
    if completion.token_ids is None and completion.token_bytes is None:
        raise RequestRefusedError(
            f"{completion.model} returned a completion with neither token ids nor token bytes", _REPORT
        )
    return {
        "text": completion.text,
        "prompt_ids": _array(completion.prompt_ids, np.int32),
        "token_ids": _array(completion.token_ids, np.int32),
        "token_bytes": None if completion.token_bytes is None else list(completion.token_bytes),
        "token_logprobs": _array(completion.token_logprobs, np.float32),
        "candidate_counts": _array(completion.candidate_counts, np.int32),
        "candidate_ids": _array(completion.candidate_ids, np.int32),
        "candidate_bytes": None if completion.candidate_bytes is None else list(completion.candidate_bytes),
        "candidate_logprobs": _array(completion.candidate_logprobs, np.float32),
        "log_z": _array(completion.log_z, np.float32),
        "entropy": _array(completion.entropy, np.float32),
        "finish_reason": completion.finish_reason,
        "model": completion.model,
        "prompt_tokens": completion.prompt_tokens,
        "latency_s": completion.latency_s,
        "usage": _json(completion.usage),
        "repairs": _json(completion.repairs),
    }


def raw_metadata(
    *,
    teacher: Mapping[str, Any],
    kind: str,
    sampling: Mapping[str, Any],
    top_k: int,
    capabilities: Mapping[str, Any],
    probe: Mapping[str, Any] | None = None,
    target: Mapping[str, Any] = TOPK,
    template: str | None = None,
    test_from: int | None = None,
) -> dict[str, Any]:
    """The JSON under the metadata key ``bitnet_raw``. No time is in it: one journal gives one shard, byte for byte.

    `template`: the text of the teacher's chat template, where it is known. `test_from`: the first prompt_idx of the
    test documents, where there are any.
    """
    metadata = {
        "version": VERSION,
        "teacher": dict(teacher),
        "kind": kind,
        "sampling": dict(sampling),
        "top_k": top_k,
        "capabilities": dict(capabilities),
        "probe": None if probe is None else dict(probe),
        "target": dict(target),
    }
    known = {"template": template, "test_from": test_from}
    return metadata | {name: value for name, value in known.items() if value is not None}


def shard_path(folder: Path, number: int, part: str | None = None) -> Path:
    """``shard_NNN.parquet``; ``shard_2of4_NNN.parquet`` for the part "2/4" that one of four machines gathers."""
    own = "" if part is None else part.replace("/", "of") + "_"
    return folder / f"shard_{own}{number:03d}.parquet"


def write_raw_shard(path: Path, table: pa.Table, metadata: Mapping[str, Any]) -> None:
    """Write rows of `RAW_SCHEMA` to `path`, which appears whole or not at all; its pages carry checksums."""
    described = table.cast(RAW_SCHEMA).replace_schema_metadata({METADATA_KEY: json.dumps(metadata, sort_keys=True)})
    with atomic_file(path) as partial, partial.open("wb") as file:
        pq.write_table(described, file, compression="zstd", write_page_checksum=True)


def _json(record: Mapping[str, float]) -> str | None:
    return json.dumps(dict(record), sort_keys=True) if record else None


def _length(values: Any) -> int | None:
    return None if values is None else len(values)


def _array(values: NDArray[Any] | None, dtype: Any) -> NDArray[Any] | None:
    """Raises RequestRefusedError for whole numbers beyond `dtype`, which would become others."""
    if values is None:
        return None
    made = np.ascontiguousarray(values, dtype)
    if np.issubdtype(dtype, np.integer) and not np.array_equal(made, values):
        raise RequestRefusedError("its answer holds ids or counts that are no 32-bit whole numbers", _REPORT)
    return made


def row_batch(row: Mapping[str, Any]) -> pa.RecordBatch:
    """One row in the columns of RAW_SCHEMA. Raises RequestRefusedError, naming the column, for what it can't hold."""
    arrays = []
    for field in RAW_SCHEMA:
        try:
            arrays.append(pa.array([row[field.name]], field.type))
        except (pa.ArrowException, ValueError, TypeError, OverflowError) as error:
            raise RequestRefusedError(
                f"its answer can't be kept: column {field.name} of the raw shard does not take it ({error})", _REPORT
            ) from error
        if not field.nullable and arrays[-1].null_count:
            raise RequestRefusedError(f"its answer can't be kept: it has no {field.name}", _REPORT)
    return pa.RecordBatch.from_arrays(arrays, schema=RAW_SCHEMA)
