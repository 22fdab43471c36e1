"""KD folders into one: the projection's own files again, however they were spread; never two projections."""

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.merge_kd_shards import merge_kd
from bitnet_core.projection.project import project, split_documents
from bitnet_core.projection.raw_folder import open_raw_folder
from bitnet_core.projection.read_raw_shards import RawReader
from bitnet_core.projection.validate_raw import raw_files, raw_stats, validate_raw
from bitnet_core.traces.schema import KDMetadata
from bitnet_core.traces.stats import trace_stats
from bitnet_core.traces.validate_shards import validate_traces
from bitnet_core.traces.write_shards import kd_table, write_kd_shard

RawFixture = tuple[Path, list[dict[str, Any]]]
ROWS = 200


@pytest.fixture
def projected(random_raw: RawFixture, tokenizer_folder: Path, tmp_path: Path) -> Path:
    project(random_raw[0], tmp_path / "data", tokenizer_folder, ProjectConfig(rows_per_shard=ROWS), seed=0)
    return tmp_path / "data"


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("kd_shard_*.parquet"))}


def test_spread_over_folders_twice_and_cut_otherwise(projected: Path, tmp_path: Path) -> None:
    files = sorted(projected.glob("*.parquet"))
    assert len(files) > 2
    for number, file in enumerate(files):  # every second file on another machine, the first on both
        for name in {f"machine-{number % 2}", "machine-1" if number == 0 else f"machine-{number % 2}"}:
            (tmp_path / name).mkdir(exist_ok=True)
            shutil.copy(file, tmp_path / name)
    out = tmp_path / "out"
    told = merge_kd([tmp_path / "machine-0", tmp_path / "machine-1"], out, ROWS)
    assert shards(out) == shards(projected)
    assert (told["documents"], told["positions"]) == (10, sum(pq.read_metadata(file).num_rows for file in files))
    twice = pq.read_table(files[0], columns=["prompt_idx", "sample_idx"]).group_by(["prompt_idx", "sample_idx"])
    assert told["duplicates"] == twice.aggregate([]).num_rows

    merge_kd([projected], tmp_path / "whole")  # another cut: one file, whose documents lie among the others'
    assert len(shards(tmp_path / "whole")) == 1
    told = merge_kd([tmp_path / "whole", tmp_path / "machine-1"], tmp_path / "again", ROWS)
    assert shards(tmp_path / "again") == shards(projected)
    assert validate_traces(tmp_path / "again").problems == ()


def test_documents_longer_than_a_row_group(projected: Path, tmp_path: Path) -> None:
    (tmp_path / "small").mkdir()
    for file in projected.glob("*.parquet"):
        pq.write_table(pq.read_table(file), tmp_path / "small" / file.name, row_group_size=7)
    merge_kd([tmp_path / "small"], tmp_path / "out", ROWS)
    assert shards(tmp_path / "out") == shards(projected)


def test_two_projections_are_never_put_into_one(
    projected: Path, random_raw: RawFixture, tokenizer_folder: Path, tmp_path: Path
) -> None:
    project(random_raw[0], tmp_path / "other", tokenizer_folder, ProjectConfig(rows_per_shard=ROWS), seed=1)
    with pytest.raises(CoreError, match="come from different projections") as error:
        merge_kd([projected, tmp_path / "other"], tmp_path / "out")
    assert "merge the raw folders" in error.value.fix
    assert not (tmp_path / "out").exists()
    with pytest.raises(CoreError, match="holds KD shards already"):
        merge_kd([projected], projected)


def test_a_document_that_stands_twice_with_other_rows(projected: Path, tmp_path: Path) -> None:
    shutil.copytree(projected, tmp_path / "damaged")
    file = tmp_path / "damaged" / "kd_shard_001.parquet"
    table = pq.read_table(file)
    place = table.schema.get_field_index("other_logprob")
    changed = table["other_logprob"].to_numpy().copy()
    changed[-1] -= 0.5
    pq.write_table(table.set_column(place, table.schema.field(place), pa.array(changed, pa.float32())), file)
    with pytest.raises(CoreError, match="stands in both with different rows"):
        merge_kd([projected, tmp_path / "damaged"], tmp_path / "out")
    assert shards(tmp_path / "out") == {}


POOLS: list[pa.MemoryPool] = []
"""Buffers that are freed later still ask for the pool they came from."""


def peak_of(work: Callable[[], object]) -> int:
    """Bytes of Python's objects and of Arrow's buffers at most, counted as they are allocated.

    The less of two tries: now and then one of them loads something for good.
    """
    return min(_peak_of(work) for _ in range(2))


def _peak_of(work: Callable[[], object]) -> int:
    before = pa.default_memory_pool()
    pool = pa.proxy_memory_pool(before)
    POOLS.append(pool)
    pa.set_memory_pool(pool)
    tracemalloc.start()
    try:
        work()
        return tracemalloc.get_traced_memory()[1] + int(pool.max_memory())
    finally:
        tracemalloc.stop()
        pa.set_memory_pool(before)


DOCUMENT, DOCUMENTS, K = 50, 40, 8
"""Rows of a document, documents of a shard."""


def write_kd(folder: Path, count: int) -> Path:
    metadata = KDMetadata(
        k=K, vocab_size=999, tokenizer_sha256="0" * 64, raw={}, projection={"path": "identity", "id": "one"}
    )
    rows = DOCUMENT * DOCUMENTS
    rng = np.random.default_rng(0)
    for number in range(count):
        steps = np.tile(np.arange(DOCUMENT, dtype=np.int32), DOCUMENTS)
        columns = {
            "prompt_idx": np.repeat(np.arange(DOCUMENTS) + number * DOCUMENTS, DOCUMENT),
            "sample_idx": np.zeros(rows, np.int32),
            "step_idx": steps,
            "teacher_sample_id": rng.integers(0, 999, rows, dtype=np.int32),
            "other_logprob": np.where(steps > 0, np.log(np.float32(0.2)), 0).astype(np.float32),
            "is_struct_token": np.zeros(rows, bool),
            "teacher_sample_text": pa.array([b"word "] * rows),
            "is_prompt": steps == 0,
            "has_kd": steps > 0,
            "sample_logprob": np.full(rows, -1.0, np.float32),
            "split": pa.array(["train"] * rows).dictionary_encode(),
        }
        ids = ((rng.integers(0, 999, (rows, 1)) + 7 * np.arange(K)) % 999).astype(np.int32)
        logprobs = np.where(steps[:, None] > 0, np.log(0.8 / K), -np.inf).repeat(K, axis=1).astype(np.float16)
        write_kd_shard(folder / f"kd_shard_{number:03d}.parquet", kd_table(columns, ids, logprobs), metadata)
    return folder


@pytest.mark.parametrize("command", ["merge", "validate", "stats"])
def test_kd_memory_does_not_grow_with_the_traces(tmp_path: Path, command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_core.projection.merge_kd_shards.ROW_GROUP_ROWS", DOCUMENT * DOCUMENTS)

    def work(folder: Path) -> None:
        if command == "merge":
            merge_kd([folder], folder.with_name(f"{folder.name}-out-{len(list(tmp_path.iterdir()))}"), 2_000)
        elif command == "validate":
            assert validate_traces(folder).problems == ()
        else:
            trace_stats(folder)

    small, large = write_kd(tmp_path / "small", 4), write_kd(tmp_path / "large", 14)
    work(small)  # what is loaded and kept once
    growth = peak_of(lambda: work(large)) - peak_of(lambda: work(small))
    assert growth < DOCUMENT * DOCUMENTS * (K * 6 + 40) / 2, f"{growth:,} bytes more for 10 shards more"


def write_many(folder: Path, write_raw: Callable[..., Path], row: dict[str, Any], count: int) -> Path:
    for number in range(count):
        rows = [row | {"prompt_idx": number * 64 + place, "source_id": f"d{number}-{place}"} for place in range(64)]
        write_raw(folder / f"shard_{number:03d}.parquet", rows)
    return folder


@pytest.mark.parametrize("read", [validate_raw, raw_stats])
def test_raw_memory_does_not_grow_with_the_shards(
    tmp_path: Path, random_raw: RawFixture, write_raw: Callable[..., Path], read: Callable[[list[Path]], Any]
) -> None:
    row = random_raw[1][0]
    folders = [write_many(tmp_path / f"of-{count}", write_raw, row, count) for count in (3, 30)]
    read(raw_files(folders[0]))
    small, large = (peak_of(lambda folder=folder: read(raw_files(folder))) for folder in folders)
    assert large - small < 27 * 1_000, f"{large - small:,} bytes more for the paths of 27 shards more"


def test_the_projections_index_takes_few_bytes_a_completion(
    tmp_path: Path, random_raw: RawFixture, write_raw: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_core.projection.read_raw_shards._AT_ONCE", 64)

    def index(folder: Path) -> None:
        raw = open_raw_folder(folder)
        split_documents(raw, np.arange(len(raw.prompt_idx)), 0.1, seed=0)

    folders = [write_many(tmp_path / f"of-{count}", write_raw, random_raw[1][0], count) for count in (3, 30)]
    index(folders[0])
    small, large = (peak_of(lambda folder=folder: index(folder)) for folder in folders)
    assert large - small < 27 * 64 * 900, f"{(large - small) / (27 * 64):.0f} bytes a completion"


@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="Linux counts a process's open files there")
def test_the_projection_keeps_no_shard_open(
    tmp_path: Path, random_raw: RawFixture, write_raw: Callable[..., Path]
) -> None:
    """100 GB are some thousand shards, more than a process may have open."""
    folder = write_many(tmp_path / "many", write_raw, random_raw[1][0], 40)
    before = len(os.listdir("/proc/self/fd"))
    raw = open_raw_folder(folder)
    reader = RawReader(raw)
    for completion in range(0, len(raw.prompt_idx), 64):
        reader.read(np.array([completion]))
    assert len(os.listdir("/proc/self/fd")) - before < 10
