import itertools
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.project import project
from bitnet_core.traces.collate import collate_fn
from bitnet_core.traces.dataset import KDTraceDataset, clip_topk
from bitnet_core.traces.schema import SCHEMA, SEED_COLUMNS, KDMetadata, read_metadata
from bitnet_core.traces.validate_shards import validate_traces
from bitnet_core.traces.write_shards import kd_table, write_kd_shard

RawFixture = tuple[Path, list[dict[str, Any]]]
METADATA = KDMetadata(k=3, vocab_size=320, tokenizer_sha256="0" * 64, raw={}, projection={"path": "identity"})
SHAPES = {
    "input_ids": torch.int64,
    "attention_mask": torch.bool,
    "teacher_sample_id": torch.int64,
    "topk_ids": torch.int64,
    "topk_logprobs": torch.float32,
    "other_logprob": torch.float32,
    "is_struct_token": torch.bool,
    "has_kd": torch.bool,
    "is_prompt": torch.bool,
    "sample_logprob": torch.float32,
}


@pytest.fixture
def data(random_raw: RawFixture, tokenizer_folder: Path) -> Path:
    """Ten documents in several shards."""
    folder = random_raw[0].parent / "data"
    project(random_raw[0], folder, tokenizer_folder, ProjectConfig(rows_per_shard=300, holdout_fraction=0.3), seed=0)
    assert len(list(folder.iterdir())) > 1
    return folder


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.parquet"))


def all_rows(folder: Path) -> pa.Table:
    return pa.concat_tables([pq.read_table(str(file)) for file in files(folder)])


def rewrite(file: Path, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pq.read_table(str(file))
    metadata = table.schema.metadata
    pq.write_table(change(table).replace_schema_metadata(metadata), str(file))


def put(table: pa.Table, name: str, values: Any) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), name, values)


def test_items_hold_what_the_files_hold(data: Path, tokenizer_folder: Path) -> None:
    dataset = KDTraceDataset(data, tokenizer_folder=tokenizer_folder)
    rows = all_rows(data).to_pylist()
    documents: dict[tuple[int, int], list[dict[str, Any]]] = {}
    for row in rows:
        documents.setdefault((row["prompt_idx"], row["sample_idx"]), []).append(row)
    assert len(dataset) == len(documents) == 10
    assert (dataset.k, dataset.vocab_size, dataset.lacking) == (3, 320, ())
    for number, (key, expected) in enumerate(documents.items()):
        item = dataset[number]
        assert {name: tensor.dtype for name, tensor in item.items()} == SHAPES
        assert dataset.lengths[number] == len(expected) == len(item["input_ids"])
        assert dataset.prompt_idx[number] == key[0]
        assert item["attention_mask"].all()
        for name in set(SHAPES) - {"input_ids", "attention_mask"}:
            wanted = torch.tensor([row[name] for row in expected]).to(SHAPES[name])
            torch.testing.assert_close(item[name], wanted, rtol=0, atol=0, equal_nan=True)
        assert torch.equal(item["input_ids"], item["teacher_sample_id"])
    assert torch.equal(dataset[-1]["input_ids"], dataset[len(dataset) - 1]["input_ids"])
    with pytest.raises(IndexError):
        dataset[10]


def test_items_are_the_callers_own(data: Path) -> None:
    dataset = KDTraceDataset(data)
    for tensor in dataset[0].values():
        tensor.zero_()
    assert dataset[0]["input_ids"].any()


def test_splits_part_the_documents(data: Path) -> None:
    both, train, heldout = (KDTraceDataset(data, split=split) for split in (None, "train", "heldout"))
    assert len(train) + len(heldout) == len(both)
    assert len(heldout) > 0
    assert set(train.prompt_idx) | set(heldout.prompt_idx) == set(range(9))
    assert not set(train.prompt_idx) & set(heldout.prompt_idx)
    for split, alone in (("train", train), ("heldout", heldout)):
        of_both, of_one = both.positions(split), alone.positions()
        np.testing.assert_array_equal(of_both.topk_ids, of_one.topk_ids)
        np.testing.assert_array_equal(of_both.sample_id, of_one.sample_id)
    with pytest.raises(CoreError, match='positions\\("train"\\) of a dataset with split "heldout"'):
        heldout.positions("train")
    with pytest.raises(CoreError, match='no split "dev"  → choose one of: train, heldout, test'):
        KDTraceDataset(data, split="dev")


@pytest.mark.parametrize("side", ["right", "left"])
def test_collate_pads_on_a_side(data: Path, side: Any) -> None:
    dataset = KDTraceDataset(data)
    items = [dataset[i] for i in range(len(dataset))]
    batch = collate_fn(items, pad_token_id=7, side=side)
    longest = int(dataset.lengths.max())
    assert {name: tensor.dtype for name, tensor in batch.items()} == SHAPES
    assert batch["topk_ids"].shape == (10, longest, 3)
    for row, item in enumerate(items):
        length = len(item["input_ids"])
        held = slice(0, length) if side == "right" else slice(longest - length, longest)
        for name, tensor in item.items():
            torch.testing.assert_close(batch[name][row, held], tensor, rtol=0, atol=0, equal_nan=True)
    padding = ~batch["attention_mask"]
    assert padding.sum() == 10 * longest - dataset.lengths.sum() > 0
    assert (batch["input_ids"][padding] == 7).all()
    assert (batch["teacher_sample_id"][padding] == 7).all()
    assert (batch["other_logprob"][padding] == 0).all()
    assert torch.isneginf(batch["topk_logprobs"][padding]).all()
    assert batch["sample_logprob"][padding].isnan().all()
    assert batch["is_prompt"][padding].all()
    assert not (batch["has_kd"] | batch["is_struct_token"])[padding].any()


def test_collate_refuses_what_makes_no_batch(data: Path) -> None:
    item, narrower = KDTraceDataset(data)[0], KDTraceDataset(data, max_topk=1)[0]
    with pytest.raises(CoreError, match="no items"):
        collate_fn([])
    with pytest.raises(CoreError, match="items with 1 and 3 candidates"):
        collate_fn([item, narrower])
    with pytest.raises(CoreError, match='padding side "middle"'):
        collate_fn([item], side="middle")  # type: ignore[arg-type]


def test_a_data_loader_takes_them(data: Path) -> None:
    loader = torch.utils.data.DataLoader(KDTraceDataset(data), batch_size=4, collate_fn=collate_fn)
    assert [len(batch["input_ids"]) for batch in loader] == [4, 4, 2]


def test_truncation(data: Path) -> None:
    whole, cut = KDTraceDataset(data), KDTraceDataset(data, max_seq_len=40)
    np.testing.assert_array_equal(cut.lengths, np.minimum(whole.lengths, 40))
    np.testing.assert_array_equal(cut.full_lengths, whole.lengths)
    assert (whole.lengths > 40).any()
    for index in range(len(whole)):
        for name, tensor in cut[index].items():
            torch.testing.assert_close(tensor, whole[index][name][:40], rtol=0, atol=0, equal_nan=True)
    assert len(cut.positions().prev_token) == sum(int(cut[i]["has_kd"].sum()) for i in range(len(cut)))
    with pytest.raises(CoreError, match="max_seq_len = 0 is too low"):
        KDTraceDataset(data, max_seq_len=0)


def test_max_topk_moves_mass_to_other(data: Path) -> None:
    whole, clipped = KDTraceDataset(data), KDTraceDataset(data, max_topk=1)
    assert (clipped.k, KDTraceDataset(data, max_topk=9).k) == (1, 3)
    for index in range(len(whole)):
        before, after = whole[index], clipped[index]
        assert torch.equal(after["topk_ids"], before["topk_ids"][:, :1])
        expected = before["other_logprob"].double().exp() + before["topk_logprobs"][:, 1:].double().exp().sum(1)
        torch.testing.assert_close(after["other_logprob"].double().exp(), expected, rtol=1e-6, atol=1e-7)
        assert (after["other_logprob"][~after["has_kd"]] == 0).all()
    flat = clipped.positions()
    assert flat.topk_ids.shape[1] == 1
    np.testing.assert_allclose(
        flat.other_logprob,
        np.concatenate([clipped[i]["other_logprob"][clipped[i]["has_kd"]].numpy() for i in range(len(clipped))]),
        rtol=1e-6,
    )


@given(
    logits=hnp.arrays(np.float64, st.tuples(st.integers(1, 6), st.integers(2, 9)), elements=st.floats(-20, 20)),
    k=st.integers(1, 9),
)
def test_clipping_conserves_mass(logits: np.ndarray, k: int) -> None:
    logprobs = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    other, topk = logprobs[:, -1], np.sort(logprobs[:, :-1], axis=1)[:, ::-1]
    ids = np.tile(np.arange(topk.shape[1], dtype=np.int32), (len(topk), 1))
    _, kept, rest = clip_topk(ids, topk, other, k)
    np.testing.assert_allclose(np.exp(kept).sum(axis=1) + np.exp(rest), 1.0, atol=1e-6)
    assert kept.shape[1] == min(k, topk.shape[1])


def test_positions_pair_each_kd_row_with_the_token_before(data: Path) -> None:
    dataset = KDTraceDataset(data)
    flat = dataset.positions()
    items = [dataset[i] for i in range(len(dataset))]
    kd = [item["has_kd"] for item in items]
    np.testing.assert_array_equal(
        flat.prev_token, np.concatenate([i["input_ids"][:-1][m[1:]] for i, m in zip(items, kd, strict=True)])
    )
    for name, column in (
        ("sample_id", "teacher_sample_id"),
        ("topk_ids", "topk_ids"),
        ("topk_logprobs", "topk_logprobs"),
    ):
        wanted = np.concatenate([i[column][m] for i, m in zip(items, kd, strict=True)])
        np.testing.assert_array_equal(getattr(flat, name), wanted)
    np.testing.assert_array_equal(flat.document, np.repeat(np.arange(10), [int(m.sum()) for m in kd]))
    assert {field.name for field in attrs.fields(type(flat))} >= {"prev_token", "other_logprob", "document"}


# --- the seed's seven columns ----------------------------------------------------------------------------------------


def test_seven_columns_load_and_say_what_they_lack(data: Path, tokenizer_folder: Path, tmp_path: Path) -> None:
    full = KDTraceDataset(data)
    # As another program may have written them: no metadata, wider types, candidates not sorted.
    table = all_rows(data).filter(pa.compute.field("sample_idx") == 0).select(list(SEED_COLUMNS))
    logprobs = table["topk_logprobs"].cast(pa.list_(pa.float64()))
    turned = [pa.array([each[::-1] for each in column.to_pylist()]) for column in (table["topk_ids"], logprobs)]
    table = put(put(table, "topk_ids", turned[0]), "topk_logprobs", turned[1])
    table = table.replace_schema_metadata({})
    seven = tmp_path / "seven"
    seven.mkdir()
    pq.write_table(table, str(seven / "kd_shard_000.parquet"))
    with pytest.warns(UserWarning, match=r"the traces lack .*has_kd \(positions with a candidate have KD\)"):
        dataset = KDTraceDataset(seven, tokenizer_folder=tokenizer_folder)
    assert set(dataset.lacking) == set(SCHEMA.names) - set(SEED_COLUMNS) - {"teacher_sample_text", "in_ce"} | {
        "bitnet_kd metadata"
    }
    assert len(dataset) == 9
    of_prompt = {int(prompt): i for i, prompt in reversed(list(enumerate(full.prompt_idx)))}
    for index in range(9):
        ours, theirs = dataset[index], full[of_prompt[index]]
        assert torch.equal(ours["has_kd"], theirs["has_kd"])
        assert ours["sample_logprob"].isnan().all()
        assert ours["is_prompt"].tolist() == [True] + [False] * (len(ours["is_prompt"]) - 1)
        for name in ("input_ids", "topk_logprobs", "other_logprob", "is_struct_token"):
            assert torch.equal(ours[name], theirs[name])
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert KDTraceDataset(seven).vocab_size <= 320
        train, heldout = (KDTraceDataset(seven, split=split) for split in ("train", "heldout"))
        assert (len(train) + len(heldout), len(heldout) > 0) == (9, True)
        assert len(KDTraceDataset(seven / "kd_shard_000.parquet")) == 9


def test_how_documents_lie_in_files_decides_no_split(data: Path, tmp_path: Path) -> None:
    """A prompt's samples lie in two files, and files hold two documents each: 10 % of all prompts are held out."""
    table = all_rows(data).drop_columns(["split"]).replace_schema_metadata({})
    prompts = table["prompt_idx"].to_numpy()
    starts = np.flatnonzero(np.diff(prompts, prepend=-1) | np.diff(table["sample_idx"].to_numpy(), prepend=-1))
    whole, parted = tmp_path / "whole", tmp_path / "parted"
    for folder, cuts in ((whole, [0]), (parted, starts[1::2].tolist())):
        folder.mkdir()
        for number, (start, stop) in enumerate(itertools.pairwise([0, *cuts[1:], len(table)])):
            pq.write_table(table.slice(start, stop - start), str(folder / f"kd_shard_{number:03d}.parquet"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for split in ("train", "heldout"):
            ours, theirs = (KDTraceDataset(folder, split=split).prompt_idx.tolist() for folder in (whole, parted))
            assert ours == theirs
        assert len(files(parted)) > 4
        assert len({int(prompt) for prompt in theirs}) == 1


def test_the_thousandth_shard_comes_behind_the_one_before(data: Path) -> None:
    """By their names' letters ``kd_shard_1000`` stands before ``kd_shard_999``, and its documents out of order."""
    before = KDTraceDataset(data, split="train").prompt_idx.tolist()
    for number, file in reversed(list(enumerate(files(data), 999))):
        file.rename(data / f"kd_shard_{number}.parquet")
    assert KDTraceDataset(data, split="train").prompt_idx.tolist() == before
    assert not validate_traces(data).problems


# --- refusals --------------------------------------------------------------------------------------------------------


def test_wrong_tokenizer(data: Path, tokenizer_folder: Path, other_tokenizer_folder: Path) -> None:
    digest = KDTraceDataset(data).metadata
    assert digest is not None
    with pytest.raises(
        CoreError,
        match=rf"made for the tokenizer with sha256 {digest.tokenizer_sha256}, but .* has [0-9a-f]{{64}}  → set",
    ):
        KDTraceDataset(data, tokenizer_folder=other_tokenizer_folder)


@pytest.mark.parametrize("part", [0.0, 0.3, 0.97])
def test_truncated_file(data: Path, part: float) -> None:
    broken = files(data)[1]
    whole = broken.read_bytes()
    broken.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(CoreError, match=r"kd_shard_001\.parquet: cannot be read as Parquet.*--from project"):
        KDTraceDataset(data)


def test_a_flipped_byte_is_noticed(data: Path) -> None:
    broken = files(data)[0]
    column = pq.read_metadata(str(broken)).row_group(0).column(6)  # other_logprob
    whole = bytearray(broken.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size // 2] ^= 0x40
    broken.write_bytes(whole)
    with pytest.raises(CoreError, match=r"kd_shard_000\.parquet: cannot be read as Parquet"):
        KDTraceDataset(data)


def test_empty_and_missing_folders(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match=r"no file kd_shard_\*\.parquet in it  → run the project stage .* first"):
        KDTraceDataset(tmp_path)
    with pytest.raises(CoreError, match="no such folder  → run the project stage"):
        KDTraceDataset(tmp_path / "nowhere")


def test_a_split_without_documents(data: Path, tmp_path: Path) -> None:
    for file in files(data):
        rewrite(file, lambda t: put(t, "split", pa.array(["train"] * t.num_rows)))
    with pytest.raises(CoreError, match='no document in split "heldout"'):
        KDTraceDataset(data, split="heldout")
    rewrite(files(data)[0], lambda t: put(t, "split", pa.array(["dev"] * t.num_rows)))
    with pytest.raises(CoreError, match='split "dev" is not one of'):
        KDTraceDataset(data)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop_columns(["topk_ids"]), "lacks the columns topk_ids"),
        (
            lambda t: put(t, "topk_ids", pa.array([["a"]] * t.num_rows)),
            "column topk_ids is list<.*not a list of integers",
        ),
        (lambda t: put(t, "topk_ids", pa.array([[1]] * t.num_rows)), "differ in length"),
        (
            lambda t: put(t, "topk_ids", pa.array([[1, 2, 3]] * (t.num_rows - 1) + [[1]], pa.list_(pa.int32()))),
            "positions with 1 to 3 candidates, and K must be one number",
        ),
        (lambda t: put(t, "topk_ids", pa.array([[1, 2, 320]] * t.num_rows)), "token ids outside the vocabulary of 320"),
        (lambda t: put(t, "teacher_sample_id", pa.array([-1] * t.num_rows)), "token ids outside the vocabulary of 320"),
        (
            lambda t: put(t, "topk_logprobs", pa.array([np.array([0.5, -1, -2], np.float16)] * t.num_rows)),
            "topk_logprobs holds 0.5, which is no log-probability",
        ),
        (lambda t: put(t, "other_logprob", pa.array([float("nan")] * t.num_rows)), "other_logprob holds nan"),
        (lambda t: put(t, "other_logprob", pa.nulls(t.num_rows, pa.float32())), "empty values in other_logprob"),
    ],
)
def test_columns_that_cannot_be_used(data: Path, change: Callable[[pa.Table], pa.Table], message: str) -> None:
    rewrite(files(data)[0], change)
    with pytest.raises(CoreError, match=rf"kd_shard_000\.parquet: .*{message}"):
        KDTraceDataset(data)


@pytest.mark.slow
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data_=st.data(), rows_per_group=st.integers(20, 400))
def test_what_validate_refuses_is_refused(data: Path, tmp_path: Path, data_: Any, rows_per_group: int) -> None:
    """Rows twice, missing or out of order, masses that are not 1, candidates twice or none: wherever they stand, and
    across row groups and files."""
    metadata = KDTraceDataset(data).metadata
    assert metadata is not None
    table = all_rows(data)
    fault = data_.draw(
        st.sampled_from(["none", "twice", "swapped", "moved", "missing", "mass", "light", "repeated", "empty"])
    )
    row = data_.draw(st.integers(1, table.num_rows - 2))
    order = list(range(table.num_rows))
    if fault == "twice":
        order.insert(row, row)
    elif fault == "swapped":
        order[row - 1], order[row] = row, row - 1
    elif fault == "moved":
        order.insert(0, order.pop(row))
    elif fault == "missing":
        step = table["step_idx"].to_numpy()
        within = np.flatnonzero((step[1:-1] > 0) & (step[2:] > step[1:-1])) + 1
        order.remove(int(within[row % len(within)]))
    elif fault in ("light", "repeated", "empty"):
        logprobs = np.array(table["topk_logprobs"].to_pylist(), dtype=np.float16)
        ids = np.array(table["topk_ids"].to_pylist(), dtype=np.int32)
        kd = np.flatnonzero((np.isfinite(logprobs).sum(axis=1) > 1) & (logprobs[:, 0] > np.log(0.02)))
        chosen = kd[row % len(kd)]
        if fault == "repeated":
            ids[chosen, 1] = ids[chosen, 0]
        elif fault == "light":
            logprobs[chosen, 0] -= 1
            logprobs[chosen] = -np.sort(-logprobs[chosen])
        else:
            logprobs[chosen] = -np.inf
            other = table["other_logprob"].to_numpy().copy()
            other[chosen] = 0.0
            table = put(table, "other_logprob", pa.array(other))
        table = put(table, "topk_logprobs", pa.array(list(logprobs)))
        table = put(table, "topk_ids", pa.array(list(ids)))
    elif fault == "mass":
        kd = np.flatnonzero(table["has_kd"].to_numpy() & (table["other_logprob"].to_numpy() < np.log(0.98)))
        other = table["other_logprob"].to_numpy().copy()
        other[kd[row % len(kd)]] = 0.0
        table = put(table, "other_logprob", pa.array(other))
    table = table.take(order)
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    cut = data_.draw(st.integers(1, table.num_rows - 1))
    for number, part in enumerate((table.slice(0, cut), table.slice(cut))):
        whole = part.replace_schema_metadata({"bitnet_kd": metadata.to_json()})
        pq.write_table(whole, str(folder / f"kd_shard_{number:03d}.parquet"), row_group_size=rows_per_group)
    problems = [each for each in validate_traces(folder).problems if "split" not in each.what]
    assert bool(problems) == (fault != "none")
    refused = None
    try:
        dataset = KDTraceDataset(folder)
        dataset.positions()
    except CoreError as error:
        refused = error
    if fault == "none":
        assert refused is None
    else:
        assert refused is not None
        assert "run the project stage" in refused.fix


def test_shards_that_do_not_belong_together(data: Path) -> None:
    first, second = files(data)[:2]
    metadata = read_metadata(pq.read_schema(str(second)), second)
    assert metadata is not None
    table = pq.read_table(str(second))
    write_kd_shard(second, table, attrs.evolve(metadata, projection={**metadata.projection, "id": "another"}))
    with pytest.raises(CoreError, match=r"kd_shard_001\.parquet come from different projections \(projection "):
        KDTraceDataset(data)
    pq.write_table(table.replace_schema_metadata({}), str(second))
    with pytest.raises(CoreError, match="one has bitnet_kd metadata, one has none"):
        KDTraceDataset(data)
    write_kd_shard(first, table, attrs.evolve(metadata, k=5))
    second.unlink()
    for other in files(data)[1:]:
        other.unlink()
    with pytest.raises(CoreError, match="the shards have 3 and 5 candidates a position"):
        KDTraceDataset(data)


def test_other_versions_and_malformed_metadata(tmp_path: Path) -> None:
    columns = {
        name: pa.array([0, 1 if name == "step_idx" else 0]).cast(field.type)
        for name, field in ((f.name, f) for f in SCHEMA)
        if not (pa.types.is_list(field.type) or name in ("split", "teacher_sample_text"))
    } | {"split": pa.array(["train"] * 2).dictionary_encode(), "teacher_sample_text": pa.array([b"a", b"b"])}
    table = kd_table(columns, np.zeros((2, 3), np.int32), np.full((2, 3), -np.inf, np.float16))
    file = tmp_path / "kd_shard_000.parquet"
    write_kd_shard(file, table, attrs.evolve(METADATA, version=3))
    with pytest.raises(
        CoreError, match=r"kd_shard_000\.parquet: KD shard version 3, but this bitnet-core reads versions 1 to 2"
    ):
        KDTraceDataset(tmp_path)
    for text in (b"not json", b"{}", b'{"version": 1}'):
        pq.write_table(table.replace_schema_metadata({b"bitnet_kd": text}), str(file))
        with pytest.raises(CoreError, match="bitnet_kd metadata is malformed"):
            KDTraceDataset(tmp_path)
    write_kd_shard(file, table, METADATA)
    assert KDTraceDataset(tmp_path).lengths.tolist() == [2]
