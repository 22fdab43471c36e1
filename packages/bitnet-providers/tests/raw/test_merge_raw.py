"""Raw folders of several machines into one: what a single machine would have written, byte for byte."""

import asyncio
import json
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.merge_raw import merge_raw
from bitnet_providers.raw.write_shard import METADATA_KEY

Teachers = Callable[..., Any]
Change = Callable[[pa.Table], pa.Table]


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"question {n}" for n in range(20)))
    return CollectConfig(prompts=prompts, samples_per_prompt=2, top_k=3, concurrency=4, completions_per_shard=6)


def run(teacher: Any, config: CollectConfig, folder: Path, seed: int = 0) -> dict[str, Any]:
    return asyncio.run(collect(teacher, config, folder, "counting", seed))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.glob("shard_*.parquet"))}


def rewrite(file: Path, change: Change) -> None:
    table = pq.read_table(file)
    pq.write_table(change(table), file, write_page_checksum=True)


def test_parts_become_what_one_machine_writes(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "one" / "raw")
    machines = [tmp_path / f"machine-{n}" for n in (1, 2, 3)]
    for number, folder in enumerate(machines, start=1):
        run(counting_teacher(), attrs.evolve(config, shard=f"{number}/3"), folder / "raw")
    out = tmp_path / "merged"
    told = merge_raw(machines[::-1], out, per_shard=6)  # the order of the folders plays no part
    assert shards(out) == shards(tmp_path / "one" / "raw")
    assert (told["completions"], told["duplicates"], told["shards"]) == (40, 0, 7)
    assert not list(out.glob(".merge-*"))

    teacher = counting_teacher()  # the journals came too: the collection goes on there, with nothing to ask
    assert run(teacher, config, out)["spent"]["requests"] == 40
    assert teacher.calls == []
    assert shards(out) == shards(tmp_path / "one" / "raw")


def test_what_stands_twice_is_told_and_kept_once(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "first")
    run(counting_teacher(), config, tmp_path / "second")
    for path in (tmp_path / "second").glob("*-*"):  # another machine's answers, one of them other words
        path.unlink()
    other = tmp_path / "second" / "shard_000.parquet"
    texts = [*pq.read_table(other)["text"].to_pylist()[:-1], b"other"]
    rewrite(other, lambda table: table.set_column(7, table.schema.field("text"), pa.array(texts, pa.binary())))
    for folders, first in ((("first", "second"), "first"), (("second", "first"), "second")):
        out = tmp_path / f"of-{first}"
        told = merge_raw([tmp_path / name for name in folders], out, per_shard=6)
        assert (told["completions"], told["duplicates"], told["differing"]) == (40, 40, 1)
        merged = pq.read_table(out / "shard_000.parquet")["text"].to_pylist()
        assert merged == pq.read_table(tmp_path / first / "shard_000.parquet")["text"].to_pylist()


def test_rows_in_any_order_and_shards_of_older_columns(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "one")
    before = shards(tmp_path / "one")
    run(counting_teacher(), config, tmp_path / "mixed")
    for path in (tmp_path / "mixed").glob("shard_*.parquet"):
        rewrite(path, lambda table: table.take(list(range(len(table)))[::-1]).drop_columns(["log_z", "entropy"]))
    merge_raw([tmp_path / "mixed"], tmp_path / "merged", per_shard=6)
    assert shards(tmp_path / "merged") == before


def with_metadata(**changed: Any) -> Change:
    def change(table: pa.Table) -> pa.Table:
        record = json.loads(table.schema.metadata[METADATA_KEY])
        return table.replace_schema_metadata({METADATA_KEY: json.dumps(record | changed)})

    return change


def put(name: str, value: Any) -> Change:
    def change(table: pa.Table) -> pa.Table:
        place = table.schema.get_field_index(name)
        values = pa.array([value] * len(table), table.schema.field(name).type)
        return table.set_column(place, table.schema.field(name), values)

    return change


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (with_metadata(kind="openai"), "kind 'counting' and 'openai'"),
        (with_metadata(sampling={"seed": 9}), "sampling"),
        (with_metadata(teacher={"model": "another"}), "teacher model"),
        (with_metadata(top_k=2), "top_k 3 and 2"),
        (put("request_sha256", "0" * 64), "prompt_idx 0 has two requests"),
        (put("messages", "[]"), "prompt_idx 0 has two conversations"),
        (lambda table: table.drop_columns(["text"]), "can't be read as a raw shard (it lacks text)"),
    ],
)
def test_two_manifests_are_never_mixed(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, change: Change, told: str
) -> None:
    for name in ("first", "second"):
        run(counting_teacher(), config, tmp_path / name)
    rewrite(tmp_path / "second" / "shard_000.parquet", change)
    with pytest.raises(ProviderError) as error:
        merge_raw([tmp_path / "first", tmp_path / "second"], tmp_path / "out")
    assert told in str(error.value)
    assert error.value.fix
    assert list((tmp_path / "out").glob("*")) == []


def test_bad_folders(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    (journal,) = (tmp_path / "raw").glob("journal-*.bin")
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / journal.name).write_bytes(newer := journal.read_bytes() + b"more")
    for out in ("raw", "begun"):  # what is paid for there is not overwritten by an older copy
        with pytest.raises(ProviderError, match="holds raw shards or journals already"):
            merge_raw([tmp_path / "raw"], tmp_path / out)
    assert (tmp_path / "begun" / journal.name).read_bytes() == newer
    with pytest.raises(ProviderError, match=r"no shard_\*.parquet in it"):
        merge_raw([tmp_path / "raw", tmp_path / "nothing"], tmp_path / "out")
    damaged = tmp_path / "raw" / "shard_001.parquet"
    damaged.write_bytes(damaged.read_bytes()[:-100])
    with pytest.raises(ProviderError, match=r"shard_001.parquet: can't be read as a raw shard"):
        merge_raw([tmp_path / "raw"], tmp_path / "out")


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


def test_memory_does_not_grow_with_the_folder(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    run(counting_teacher(), config, tmp_path / "raw")
    template = pq.read_table(tmp_path / "raw" / "shard_000.parquet").slice(0, 1)
    rows = 64
    for name, count in (("small", 4), ("large", 40)):
        for number in range(count):
            table = pa.concat_tables([template] * rows).combine_chunks()
            texts = pa.array([b"%03d " % number * 1_000] * rows, pa.binary())
            places = pa.array([number * rows + row for row in range(rows)], pa.int64())
            table = table.set_column(0, table.schema.field(0), places).set_column(7, table.schema.field("text"), texts)
            (tmp_path / name).mkdir(exist_ok=True)
            pq.write_table(table, tmp_path / name / f"shard_{number:03d}.parquet")
    merge_raw([tmp_path / "small"], tmp_path / "warm", per_shard=rows)
    small, large = (
        peak_of(lambda name=name: merge_raw([tmp_path / name], Path(tempfile.mkdtemp(dir=tmp_path)), per_shard=rows))
        for name in ("small", "large")
    )
    one_shard = rows * 4_000
    assert small > one_shard  # what is counted is there
    assert large - small < one_shard / 4, f"{large - small:,} bytes more for 36 shards more"
