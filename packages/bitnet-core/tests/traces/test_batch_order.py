"""Which documents make which batch: streaming, sharding, resuming and packing; most data are the projection of nine
documents (conftest).
"""

import itertools
import pickle
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.projection.project import project
from bitnet_core.traces.batch_order import StreamConfig, TraceBatches, batches_from, epoch_batches
from bitnet_core.traces.collate import collate_fn, pack_items, packed_attention_mask
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.schema import SCHEMA

lengths_of_documents = st.lists(st.integers(1, 500), min_size=1, max_size=200)


@given(lengths=lengths_of_documents, batch_size=st.integers(1, 17), seed=st.integers(0, 5), epoch=st.integers(0, 3))
def test_every_document_once_an_epoch(lengths: list[int], batch_size: int, seed: int, epoch: int) -> None:
    batches = epoch_batches(lengths, batch_size, seed, epoch)
    assert sorted(np.concatenate(batches)) == list(range(len(lengths)))
    assert max(map(len, batches)) <= batch_size


@given(lengths=lengths_of_documents, batch_size=st.integers(1, 17), position=st.integers(0, 60))
def test_going_on_from_a_position_gives_the_same_batches(lengths: list[int], batch_size: int, position: int) -> None:
    whole = list(islice(batches_from(lengths, batch_size, 7, 0), position + 5))
    resumed = list(islice(batches_from(lengths, batch_size, 7, position), 5))
    for expected, batch in zip(whole[position:], resumed, strict=True):
        np.testing.assert_array_equal(expected, batch)


def test_epochs_differ() -> None:
    lengths = list(range(1, 100))
    first, second = (np.concatenate(epoch_batches(lengths, 4, 0, epoch)) for epoch in (0, 1))
    assert not np.array_equal(first, second)


def test_sorting_within_windows_saves_padding() -> None:
    lengths = np.random.default_rng(0).integers(10, 500, 512)

    def padded(batches: list[np.ndarray]) -> int:
        return sum(int(lengths[batch].max()) * len(batch) for batch in batches)

    random_order = np.random.default_rng(1).permutation(512).reshape(-1, 8)
    assert padded(epoch_batches(lengths, 8, 0, 0)) < 0.75 * padded(list(random_order))


RawFixture = tuple[Path, list[dict[str, Any]]]


@pytest.fixture
def data(random_raw: RawFixture, tokenizer_folder: Path) -> Path:
    folder = random_raw[0].parent / "data"
    project(random_raw[0], folder, tokenizer_folder, ProjectConfig(rows_per_shard=300, holdout_fraction=0.3), seed=0)
    return folder


def same(ours: dict[str, torch.Tensor], theirs: dict[str, torch.Tensor]) -> None:
    assert set(ours) == set(theirs)
    for name, tensor in ours.items():
        torch.testing.assert_close(tensor, theirs[name], rtol=0, atol=0, equal_nan=True)


def regrouped(data: Path, folder: Path, rows_per_group: int, order: Any = None) -> Path:
    """The same rows in one file whose row groups cut documents anywhere."""
    table = pa.concat_tables([pq.read_table(str(file)) for file in sorted(data.glob("*.parquet"))])
    metadata = pq.read_schema(str(next(data.glob("*.parquet")))).metadata
    folder.mkdir()
    table = (table if order is None else table.take(order)).cast(SCHEMA).replace_schema_metadata(metadata)
    pq.write_table(table, str(folder / "kd_shard_000.parquet"), row_group_size=rows_per_group)
    return folder


@pytest.mark.parametrize("rows_per_group", [7, 50, 100_000])
@pytest.mark.parametrize("split", [None, "train", "heldout"])
def test_items_do_not_depend_on_row_groups_or_the_cache(
    data: Path, tmp_path: Path, rows_per_group: int, split: Any
) -> None:
    expected = KDTraceDataset(data, split)
    dataset = KDTraceDataset(regrouped(data, tmp_path / "other", rows_per_group), split, cache_bytes=1)
    np.testing.assert_array_equal(dataset.lengths, expected.lengths)
    for index in np.random.default_rng(0).permutation(len(expected)).tolist():
        same(dataset[index], expected[index])
        assert len(dataset._cache) == 1
    for ours, theirs in zip(vars_of(dataset), vars_of(expected), strict=True):
        np.testing.assert_array_equal(ours, theirs)


def vars_of(dataset: KDTraceDataset) -> list[Any]:
    flat = dataset.positions()
    return [flat.prev_token, flat.topk_ids, flat.topk_logprobs, flat.other_logprob, flat.sample_id, flat.document]


def test_rows_out_of_order_are_refused(data: Path, tmp_path: Path) -> None:
    rows = int(KDTraceDataset(data).lengths.sum())
    shuffled = regrouped(data, tmp_path / "other", 50, np.random.default_rng(1).permutation(rows))
    with pytest.raises(CoreError, match="an earlier place than the row before it  → run the project stage"):
        KDTraceDataset(shuffled, "train")


def test_a_document_in_two_splits_is_refused(data: Path, tmp_path: Path) -> None:
    other = regrouped(data, tmp_path / "other", 50)
    file = other / "kd_shard_000.parquet"
    table = pq.read_table(str(file))
    split = ["heldout" if row == 3 else "train" for row in range(table.num_rows)]
    metadata = table.schema.metadata
    table = table.set_column(table.schema.get_field_index("split"), "split", pa.array(split))
    pq.write_table(table.replace_schema_metadata(metadata), str(file), row_group_size=50)
    with pytest.raises(CoreError, match=r"row group 0: a document lies in two splits \(row 3\)"):
        KDTraceDataset(other)


def test_damaged_candidates_are_told_when_they_are_read(data: Path) -> None:
    file = sorted(data.glob("*.parquet"))[0]
    column = pq.read_metadata(str(file)).row_group(0).column(4)
    assert column.path_in_schema.startswith("topk_ids")
    whole = bytearray(file.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size // 2] ^= 0x40
    file.write_bytes(whole)
    with pytest.raises(CoreError, match=r"kd_shard_000\.parquet: cannot be read as Parquet"):
        KDTraceDataset(data)[0]


def test_nan_candidates_are_refused_when_they_are_read(data: Path) -> None:
    # Parquet's statistics leave NaN out, so opening can't see it.
    file = sorted(data.glob("*.parquet"))[0]
    table = pq.read_table(str(file))
    nan = pa.array([np.array([np.nan] * 3, np.float16)] * table.num_rows, pa.list_(pa.float16()))
    metadata = table.schema.metadata
    table = table.set_column(table.schema.get_field_index("topk_logprobs"), "topk_logprobs", nan)
    pq.write_table(table.replace_schema_metadata(metadata), str(file))
    with pytest.raises(CoreError, match=r"kd_shard_000\.parquet: row group 0: topk_logprobs holds nan"):
        KDTraceDataset(data)[0]


@pytest.mark.parametrize("side", ["right", "left"])
@pytest.mark.parametrize("options", [{}, {"max_topk": 2, "max_seq_len": 30}])
def test_batch_is_what_collate_makes(data: Path, side: Any, options: dict[str, int]) -> None:
    dataset = KDTraceDataset(data, **options)
    indices = [3, 0, 7]
    same(dataset.batch(indices, 5, side), collate_fn([dataset[i] for i in indices], 5, side))
    with pytest.raises(CoreError, match="a batch of no documents"):
        dataset.batch([])


def test_windows_fit_the_cache_and_cover_all(data: Path, tmp_path: Path) -> None:
    folder = regrouped(data, tmp_path / "other", 60)
    assert set(KDTraceDataset(folder).windows.tolist()) == {0}
    dataset = KDTraceDataset(folder, cache_bytes=12_000)
    assert len(set(dataset.windows.tolist())) > 1
    batches = epoch_batches(dataset.lengths, 2, 0, 0, dataset.windows)
    assert sorted(np.concatenate(batches).tolist()) == list(range(10))
    for batch in batches:
        assert len(set(dataset.windows[batch].tolist())) == 1
    of_batch = [int(dataset.windows[batch[0]]) for batch in batches]
    assert len(list(itertools.groupby(of_batch))) == len(set(of_batch)), "a window comes back after another one"


def take(stream: Any, count: int) -> list[list[int]]:
    """Each batch as the sorted first response tokens, enough to know it by."""
    return [batch["input_ids"].tolist() for batch in itertools.islice(iter(stream), count)]


@given(world=st.integers(1, 4), workers=st.integers(0, 3), start=st.integers(0, 9), size=st.integers(1, 4))
def test_order_is_one_whatever_the_ranks(world: int, workers: int, start: int, size: int) -> None:
    """Ranks interleave to the one order (workers are simulated by the index arithmetic in the test below)."""

    class Fake:
        lengths = np.arange(1, 12)
        windows = np.zeros(11, dtype=np.int64)

        @staticmethod
        def batch(documents: Any, *_: Any) -> list[int]:
            return list(documents.tolist())

    whole = list(itertools.islice(TraceBatches(Fake(), StreamConfig(batch_size=size)), 64))  # type: ignore[arg-type]
    for rank in range(world):
        config = StreamConfig(batch_size=size, rank=rank, world_size=world)
        own = list(itertools.islice(TraceBatches(Fake(), config, start), 3))  # type: ignore[arg-type]
        assert own == whole[start * world + rank :: world][:3]


def test_workers_keep_the_order_and_share_nothing(data: Path) -> None:
    dataset = KDTraceDataset(data)
    config = StreamConfig(batch_size=3, seed=4, rank=1, world_size=2)
    alone = take(TraceBatches(dataset, config), 6)
    with_workers = take(DataLoader(TraceBatches(dataset, config), batch_size=None, num_workers=2), 6)
    assert with_workers == alone
    resumed = take(DataLoader(TraceBatches(dataset, config, start=2), batch_size=None, num_workers=2), 4)
    assert resumed == alone[2:]


def test_a_pickled_dataset_is_light_and_the_same(data: Path) -> None:
    dataset = KDTraceDataset(data)
    first = dataset[0]
    copy = pickle.loads(pickle.dumps(dataset))
    assert not copy._cache
    same(copy[0], first)


def test_ranks_and_sizes_are_checked() -> None:
    with pytest.raises(CoreError, match="no rank 2 in a world of 2"):
        StreamConfig(batch_size=1, rank=2, world_size=2)
    with pytest.raises(CoreError, match="batch_size = 0 is too low"):
        StreamConfig(batch_size=0)


# --- packing ---------------------------------------------------------------------------------------------------------


def tiny_model() -> BitNetKDEForCausalLM:
    torch.manual_seed(0)
    config = BitNetKDEConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    return BitNetKDEForCausalLM(config).eval()


@pytest.mark.parametrize("side", ["right", "left"])
def test_packed_documents_are_seen_as_if_alone(data: Path, side: Any) -> None:
    dataset, model = KDTraceDataset(data, max_seq_len=60), tiny_model()
    items = [dataset[i] for i in range(len(dataset))]
    rows = pack_items(items, 150)
    assert 1 < len(rows) < len(items)
    batch = collate_fn(rows, side=side)
    assert (batch["document_ids"][~batch["attention_mask"]] == -1).all()
    with torch.inference_mode():
        packed = model.model(
            batch["input_ids"],
            packed_attention_mask(batch["document_ids"]),
            position_ids=batch["position_ids"],
            use_cache=False,
        ).last_hidden_state
    assert packed.isfinite().all()
    seen = []
    for row, hidden in enumerate(packed):
        for document in range(int(batch["document_ids"][row].max()) + 1):
            where = batch["document_ids"][row] == document
            ids = batch["input_ids"][row][where]
            seen.append(ids.tolist())
            with torch.inference_mode():
                alone = model.model(ids[None], use_cache=False).last_hidden_state[0]
            torch.testing.assert_close(hidden[where], alone, rtol=1e-4, atol=1e-4)
            assert not batch["has_kd"][row][where][0]
            assert batch["is_prompt"][row][where][0], "a loss would cross the border"
    assert sorted(seen) == sorted(item["input_ids"].tolist() for item in items)


@given(sizes=st.lists(st.integers(1, 20), min_size=1, max_size=30), length=st.integers(20, 40))
def test_packing_keeps_every_position(sizes: list[int], length: int) -> None:
    items = [{"input_ids": torch.full((size,), number)} for number, size in enumerate(sizes)]
    rows = pack_items(items, length)
    assert max(len(row["input_ids"]) for row in rows) <= length
    counted = torch.cat([row["input_ids"] for row in rows]).bincount(minlength=len(sizes)).tolist()
    assert counted == sizes
    for row in rows:
        starts = torch.nonzero(row["position_ids"] == 0).flatten().tolist()
        assert len(starts) == int(row["document_ids"].max()) + 1
        for document, start in enumerate(starts):
            own = row["document_ids"] == document
            assert row["position_ids"][own].tolist() == list(range(int(own.sum())))
            assert int(own.nonzero()[0]) == start


def test_a_document_longer_than_the_row_is_refused() -> None:
    with pytest.raises(CoreError, match="a document of 5 positions doesn't fit into rows of 4  → set max_seq_len"):
        pack_items([{"input_ids": torch.zeros(5)}], 4)


def test_packed_streams(data: Path) -> None:
    dataset = KDTraceDataset(data, max_seq_len=60)
    batch = next(iter(TraceBatches(dataset, StreamConfig(batch_size=5, packed_length=150))))
    assert batch["input_ids"].shape[0] < 5
    assert int(batch["attention_mask"].sum()) == int((batch["document_ids"] >= 0).sum())
