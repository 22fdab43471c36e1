"""KD shards that were damaged where it counts: in the footer, the metadata, the names and types of columns."""

import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from bitnet_core.errors import CoreError
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.show_position import show_position
from bitnet_core.traces.stats import trace_stats
from bitnet_core.traces.validate_shards import validate_traces
from training_fixtures import VOCABULARY, write_shard

READERS: tuple[Callable[[Path], Any], ...] = (
    validate_traces,
    trace_stats,
    lambda folder: show_position(folder, 3),
    lambda folder: KDTraceDataset(folder)[0],
)


@pytest.fixture
def shard(tmp_path: Path) -> Path:
    write_shard(tmp_path / "data", ("0" * 64, VOCABULARY))
    return tmp_path / "data" / "kd_shard_000.parquet"


def read_all(shard: Path) -> int:
    """How many of the readers refuse it; what they raise is a CoreError that names the file or folder, or nothing."""
    whys = []
    for read in READERS:
        try:
            read(shard.parent)
        except CoreError as error:
            whys.append(error.why)
    assert all(str(shard.parent) in why and "\n" not in why for why in whys)
    return len(whys)


def footer(content: bytes) -> range:
    return range(len(content) - 8 - int.from_bytes(content[-8:-4], "little"), len(content) - 8)


def renamed(content: bytes) -> Iterator[bytes]:
    """With another last letter in each word of the footer, one at a time: columns, types, keys."""
    place = footer(content)
    for word in re.finditer(rb"[a-z_]{4,}", content[place.start : place.stop]):
        at = place.start + word.end() - 1
        yield content[:at] + b"q" + content[at + 1 :]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_word_of_the_footer_renamed(shard: Path) -> None:
    whole, tried, refused = shard.read_bytes(), 0, 0
    for content in renamed(whole):
        shard.write_bytes(content)
        refused += read_all(shard) > 0
        tried += 1
    assert tried > 50
    assert refused > tried / 4


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_flipped_bits_in_the_footer(shard: Path) -> None:
    """Some make records that contradict the schema: pyarrow ends the process where it is asked for those."""
    whole, chance = shard.read_bytes(), random.Random(1)
    for _ in range(100):
        content = bytearray(whole)
        content[chance.choice(footer(whole))] ^= 1 << chance.randrange(8)
        shard.write_bytes(content)
        read_all(shard)


def odd_columns(table: pa.Table) -> Iterator[pa.Table]:
    for place, name in enumerate(table.column_names):
        kept = table.schema.field(name).type
        for column in (
            pa.array(["x"] * len(table)),
            pa.nulls(len(table)),
            pa.array([[1]] * len(table)),
            pa.array([None, *table[name].to_pylist()[1:]], kept),
        ):
            yield table.set_column(place, name, column)
        yield table.drop_columns([name])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_columns_that_are_missing_empty_or_of_another_type(shard: Path) -> None:
    table, refused, tried = pq.read_table(shard), 0, 0
    for odd in odd_columns(table):
        pq.write_table(odd, shard)
        refused += read_all(shard) > 0
        tried += 1
    assert tried > 60
    assert refused > tried / 2


@pytest.mark.filterwarnings("ignore")
def test_metadata_of_other_types(shard: Path) -> None:
    table = pq.read_table(shard)
    record = json.loads(table.schema.metadata[b"bitnet_kd"])
    texts = [json.dumps(record | {"k": odd}) for odd in (None, "x", {}, 10**30)]
    texts += [json.dumps(record | {name: 7}) for name in ("tokenizer_sha256", "projection", "target", "raw")]
    for text in (*texts, "7", "null", "{", "[" * 100_000):
        pq.write_table(table.replace_schema_metadata({b"bitnet_kd": text.encode()}), shard)
        assert read_all(shard) == len(READERS) or validate_traces(shard.parent).problems
