"""The raw shard's format: what docs/raw-shard.md promises is what lies on the disk."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from bitnet_providers.contract import Completion, ProviderError
from bitnet_providers.raw.write_shard import (
    RAW_SCHEMA,
    completion_columns,
    raw_metadata,
    row_batch,
    shard_path,
    write_raw_shard,
)

COLUMNS = {
    "prompt_idx": "int64",
    "sample_idx": "int32",
    "request_sha256": "string",
    "source_id": "string",
    "kind": "string",
    "format": "string",
    "messages": "string",
    "text": "binary",
    "prompt_ids": "list<element: int32>",
    "token_ids": "list<element: int32>",
    "token_bytes": "list<element: binary>",
    "token_logprobs": "list<element: float>",
    "candidate_counts": "list<element: int32>",
    "candidate_ids": "list<element: int32>",
    "candidate_bytes": "list<element: binary>",
    "candidate_logprobs": "list<element: float>",
    "log_z": "list<element: float>",
    "entropy": "list<element: float>",
    "finish_reason": "string",
    "model": "string",
    "prompt_tokens": "int32",
    "latency_s": "double",
    "usage": "string",
    "repairs": "string",
}
ASKED = {
    "prompt_idx": 3,
    "sample_idx": 1,
    "request_sha256": "ab" * 32,
    "source_id": "p3",
    "kind": "score",
    "format": None,
    "messages": "[]",
}


def completion(**changes: object) -> Completion:
    columns: dict[str, object] = {
        "text": b"ab\xf0",
        "token_logprobs": np.array([np.nan, -0.5], np.float32),
        "candidate_counts": np.array([0, 2], np.int32),
        "candidate_logprobs": np.array([-0.5, -1.5], np.float32),
        "finish_reason": "scored",
        "model": "m",
        "prompt_tokens": 0,
        "latency_s": 0.5,
        "token_ids": np.array([7, 8], np.int32),
        "prompt_ids": np.array([], np.int32),
        "candidate_ids": np.array([8, 9], np.int32),
        "usage": {"completion_tokens": 2},
    }
    return Completion(**(columns | changes))  # type: ignore[arg-type]


def test_a_shard_comes_back_as_it_went(tmp_path: Path) -> None:
    import pyarrow as pa

    table = pa.Table.from_batches([row_batch(ASKED | completion_columns(completion()))])
    metadata = raw_metadata(
        teacher={"model": "m"}, kind="local", sampling={}, top_k=2, capabilities={}, probe={"trusted": True}
    )
    path = shard_path(tmp_path / "raw", 0)
    write_raw_shard(path, table, metadata)

    assert path.name == "shard_000.parquet"
    assert [file.name for file in path.parent.iterdir()] == [path.name]
    read = pq.read_table(path)
    assert {field.name: str(field.type) for field in read.schema} == COLUMNS
    assert pq.ParquetFile(path).metadata.row_group(0).column(0).compression == "ZSTD"
    assert json.loads(read.schema.metadata[b"bitnet_raw"]) == {
        "version": 1,
        "teacher": {"model": "m"},
        "kind": "local",
        "sampling": {},
        "top_k": 2,
        "capabilities": {},
        "probe": {"trusted": True},
        "target": {"kind": "topk"},
    }
    row = read.to_pylist()[0]
    assert np.isnan(row["token_logprobs"][0])
    del row["token_logprobs"]
    assert row == ASKED | {
        "text": b"ab\xf0",
        "prompt_ids": [],
        "token_ids": [7, 8],
        "token_bytes": None,
        "candidate_counts": [0, 2],
        "candidate_ids": [8, 9],
        "candidate_bytes": None,
        "candidate_logprobs": [-0.5, -1.5],
        "log_z": None,
        "entropy": None,
        "finish_reason": "scored",
        "model": "m",
        "prompt_tokens": 0,
        "latency_s": 0.5,
        "usage": '{"completion_tokens": 2}',
        "repairs": None,
    }


def test_a_flipped_byte_is_found_by_the_page_checksums(tmp_path: Path) -> None:
    import pyarrow as pa

    path = shard_path(tmp_path, 0)
    text = np.random.default_rng(0).bytes(4000)  # does not compress: its bytes stand in the file as they are
    row = ASKED | completion_columns(completion(text=text))
    write_raw_shard(path, pa.Table.from_batches([row_batch(row)]), {})
    content = bytearray(path.read_bytes())
    content[content.index(text[:100]) + 500] ^= 1
    path.write_bytes(content)
    with pytest.raises(OSError, match=r"checksum|CRC"):
        pq.read_table(path, page_checksum_verification=True)


def test_a_failed_write_leaves_the_old_shard(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "shard_000.parquet"
    path.write_bytes(b"old")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pyarrow.parquet.write_table", full)
    with pytest.raises(OSError, match="No space left"):
        write_raw_shard(path, RAW_SCHEMA.empty_table(), {})
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"token_ids": np.array([7], np.int32)}, "whose token_ids has 1 entries instead of 2"),
        ({"candidate_logprobs": np.array([-0.5], np.float32)}, "whose candidate_logprobs has 1 entries instead of 2"),
        ({"log_z": np.zeros(5, np.float32)}, "whose log_z has 5 entries instead of"),
        ({"candidate_counts": np.array([2], np.int32)}, "whose candidate_counts has 1 entries instead of 2"),
        ({"token_ids": None}, "with neither token ids nor token bytes"),
    ],
)
def test_columns_that_do_not_fit_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ProviderError, match=message):
        completion_columns(completion(**changes))
