"""Sampled and tempered targets from the raw shard to the batch, and what is refused on the way."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bitnet_core.config.loss import TopKOtherConfig
from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.ngram_baselines import unigram_bucket_kl
from bitnet_core.hookspecs import LossPlugin
from bitnet_core.losses.reference import sampled_by_position, tempered_buckets, tempered_by_position
from bitnet_core.projection.project import project
from bitnet_core.traces.collate import collate_fn
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.show_position import show_position
from bitnet_core.traces.stats import trace_stats
from bitnet_core.traces.validate_shards import validate_traces
from bitnet_core.training.data_checks import check_loss_fits

SAMPLED = {"kind": "sampled", "draws": 8, "draw_temperature": 0.7}
TEMPERED = {"kind": "tempered", "tau": 2.0}
TAU = 2.0
Raw = tuple[Path, dict[tuple[int, int], np.ndarray]]


@pytest.fixture
def make_raw(
    tmp_path: Path, completion: Callable[..., dict[str, Any]], write_raw: Callable[..., Path], tokenizer: Any
) -> Callable[..., Raw]:
    """Raw shards of a teacher that is known whole: folder, and log p [V] by (prompt_idx, step of the answer)."""

    def make(target: dict[str, Any], *, without: tuple[str, ...] = (), break_: str = "") -> Raw:
        rng = np.random.default_rng(0)
        known: dict[tuple[int, int], np.ndarray] = {}
        rows = []
        for document in range(6):
            log_z: list[float] = []
            entropy: list[float] = []

            def offered(step: int, token_id: int, document: int = document) -> list[tuple[int, float]]:
                p = rng.dirichlet(np.full(len(tokenizer), 0.05)) + 1e-9
                p /= p.sum()
                known[document, step] = np.log(p)
                entropy.append(float(-(p * np.log(p)).sum()))  # noqa: B023 -- called at once
                if target["kind"] == "tempered":
                    log_z.append(float(np.log((p ** (1 / TAU)).sum())))  # noqa: B023
                    best = np.argsort(-p)[:3]
                    return [(int(v), float(np.log(p[v]))) for v in best]
                q = p**0.7 / (p**0.7).sum()
                drawn, counts = np.unique(rng.choice(len(p), size=8, p=q), return_counts=True)
                weights = counts / 8 * p[drawn] / q[drawn]
                log_z.append(float(np.log(weights.sum())))  # noqa: B023
                if break_ == "draw":
                    weights[0] = np.nan
                return [(int(v), float(np.log(w / weights.sum()))) for v, w in zip(drawn, weights, strict=True)]

            row = completion(document, f"Question {document}?", "The sea was calm, and the ship lay still.", offered)
            row["log_z"] = [float("nan"), *log_z[1:]] if break_ == "log_z" else log_z
            row["entropy"] = entropy if target["kind"] == "sampled" else None
            rows.append(row)
        file = write_raw(
            tmp_path / "raw" / "shard_000.parquet", rows, top_k=8 if target["kind"] == "sampled" else 3, target=target
        )
        if without:
            table = pq.read_table(str(file))
            pq.write_table(table.drop_columns(list(without)), str(file))
        return tmp_path / "raw", known

    return make


def projected(raw: Path, tokenizer_folder: Path, **config: Any) -> Path:
    project(raw, raw.parent / "data", tokenizer_folder, ProjectConfig(**config), seed=0)
    return raw.parent / "data"


def kd_rows(data: Path, tokenizer_folder: Path, known: dict[tuple[int, int], np.ndarray]) -> Any:
    """(columns of all KD positions, log p [N, V] of each)."""
    dataset = KDTraceDataset(data, tokenizer_folder=tokenizer_folder)
    columns: dict[str, list[torch.Tensor]] = {}
    whole = []
    for index in range(len(dataset)):
        item = dataset[index]
        first = int((~item["is_prompt"]).nonzero()[0])
        for position in item["has_kd"].nonzero()[:, 0].tolist():
            whole.append(known[int(dataset.prompt_idx[index]), position - first])
            for name in item.keys() & {"topk_ids", "topk_logprobs", "other_logprob", "log_z", "entropy"}:
                columns.setdefault(name, []).append(item[name][position])
    return {name: torch.stack(each) for name, each in columns.items()}, torch.from_numpy(np.stack(whole))


def test_draws_keep_their_weights(make_raw: Callable[..., Raw], tokenizer_folder: Path) -> None:
    raw, known = make_raw(SAMPLED)
    data = projected(raw, tokenizer_folder)
    rows, log_p = kd_rows(data, tokenizer_folder, known)
    used = torch.isfinite(rows["topk_logprobs"])
    p = log_p.exp()
    torch.testing.assert_close(rows["entropy"].double(), -(p * log_p).sum(-1), rtol=1e-5, atol=1e-5)
    assert torch.isneginf(rows["other_logprob"]).all()
    weights = torch.where(used, (rows["topk_logprobs"] + rows["log_z"][:, None]).double().exp(), 0.0)
    per_draw = p.gather(-1, rows["topk_ids"]) ** 0.3 * (p**0.7).sum(-1, keepdim=True) / 8
    counts = weights / per_draw
    torch.testing.assert_close(counts, counts.round(), rtol=0, atol=1e-3)  # float16 would be off by up to 0.03
    torch.testing.assert_close(counts.sum(-1), torch.full_like(counts[:, 0], 8.0), rtol=0, atol=1e-2)
    assert pq.read_schema(str(data / "kd_shard_000.parquet")).field("topk_logprobs").type.value_type == pa.float32()


def test_the_rest_of_tempered_targets_survives_halves(make_raw: Callable[..., Raw], tokenizer_folder: Path) -> None:
    """KL between the exact tempered buckets and the stored ones is under 1e-6 nats."""
    raw, known = make_raw(TEMPERED)
    rows, log_p = kd_rows(projected(raw, tokenizer_folder), tokenizer_folder, known)
    stored = tempered_buckets(rows["topk_logprobs"], rows["log_z"], TAU, torch.float64)
    log_z = (log_p / TAU).logsumexp(-1)
    exact = tempered_buckets(log_p.gather(-1, rows["topk_ids"]), log_z, TAU, torch.float64)
    assert float((exact.exp() * (exact - stored)).sum(-1).max()) < 1e-6
    loss = tempered_by_position(log_p, rows["topk_ids"], rows["topk_logprobs"].double(), rows["log_z"].double(), TAU)
    assert float(loss.abs().max()) < 1e-5
    assert float((rows["log_z"].double() - log_z).abs().max()) < 0.002


def test_the_estimated_kl_of_a_model(make_raw: Callable[..., Raw], tokenizer_folder: Path) -> None:
    """numpy's way for n-grams and torch's for students give the same numbers."""
    raw, _ = make_raw(SAMPLED)
    positions = KDTraceDataset(projected(raw, tokenizer_folder)).positions()
    model = np.random.default_rng(1).dirichlet(np.ones(KDTraceDataset(raw.parent / "data").vocab_size))
    expected = sampled_by_position(
        torch.from_numpy(np.log(model))[None].expand(len(positions.prev_token), -1),
        *(torch.from_numpy(getattr(positions, name)).long() for name in ("topk_ids",)),
        *(torch.from_numpy(getattr(positions, name)).double() for name in ("topk_logprobs", "log_z", "entropy")),
    )
    np.testing.assert_allclose(unigram_bucket_kl(model, positions), expected, rtol=1e-6)


@pytest.mark.parametrize("target", [SAMPLED, TEMPERED])
@pytest.mark.parametrize("side", ["right", "left"])
def test_batches_are_what_collate_makes_of_items(
    make_raw: Callable[..., Raw], tokenizer_folder: Path, target: dict[str, Any], side: Any
) -> None:
    raw, _ = make_raw(target)
    dataset = pickle.loads(pickle.dumps(KDTraceDataset(projected(raw, tokenizer_folder), max_seq_len=17)))
    assert dataset.target == target
    batch, collated = dataset.batch([1, 0, 2], 5, side), collate_fn([dataset[i] for i in (1, 0, 2)], 5, side)
    assert batch.keys() == collated.keys() >= {"log_z"}
    assert ("entropy" in batch) == (target is SAMPLED)
    for name, column in collated.items():
        torch.testing.assert_close(batch[name], column, equal_nan=True)


def test_sampled_targets_are_never_cut(make_raw: Callable[..., Raw], tokenizer_folder: Path) -> None:
    raw, _ = make_raw(SAMPLED)
    data = projected(raw, tokenizer_folder)
    assert KDTraceDataset(data, max_topk=8).k == 8
    with pytest.raises(CoreError, match=r"can't be cut to max_topk = 4: .* lower collect\.draws"):
        KDTraceDataset(data, max_topk=4)


@pytest.mark.parametrize("target", [SAMPLED, TEMPERED])
def test_another_tokenizer_is_refused(
    make_raw: Callable[..., Raw], tokenizer_folder: Path, other_tokenizer_folder: Path, target: dict[str, Any]
) -> None:
    raw, _ = make_raw(target)
    with pytest.raises(CoreError, match=r'set project\.alignment = "auto"'):
        projected(raw, tokenizer_folder, alignment="bytes")
    table = pq.read_table(str(raw / "shard_000.parquet"))
    record = json.loads(table.schema.metadata[b"bitnet_raw"])
    record["teacher"]["model_folder"] = str(tokenizer_folder)
    pq.write_table(table.replace_schema_metadata({"bitnet_raw": json.dumps(record)}), str(raw / "shard_000.parquet"))
    with pytest.raises(CoreError, match=r'set project\.tokenizer = "teacher", or collect\.targets = "topk"'):
        projected(raw, other_tokenizer_folder)


@pytest.mark.parametrize(
    ("break_", "says"), [("draw", "draws without a weight"), ("log_z", "without log_z or entropy")]
)
def test_an_estimate_that_is_not_whole_is_refused(
    make_raw: Callable[..., Raw], tokenizer_folder: Path, break_: str, says: str
) -> None:
    raw, _ = make_raw(SAMPLED, break_=break_)
    with pytest.raises(CoreError, match=says):
        projected(raw, tokenizer_folder)


def test_shards_without_their_columns_or_of_an_unknown_kind_are_refused(
    make_raw: Callable[..., Raw], tokenizer_folder: Path
) -> None:
    raw, _ = make_raw(SAMPLED, without=("entropy",))
    with pytest.raises(CoreError, match="lacks the columns entropy"):
        projected(raw, tokenizer_folder)
    raw, _ = make_raw(SAMPLED)
    (file,) = projected(raw, tokenizer_folder).glob("*.parquet")
    table = pq.read_table(str(file))
    pq.write_table(table.drop_columns(["log_z"]), str(file))
    with pytest.raises(CoreError, match="targets of kind sampled without the columns log_z"):
        KDTraceDataset(file)
    metadata = table.schema.metadata[b"bitnet_kd"].replace(b'"kind": "sampled"', b'"kind": "dreamt"')
    pq.write_table(table.replace_schema_metadata({b"bitnet_kd": metadata}), str(file))
    with pytest.raises(CoreError, match="its target is of kind 'dreamt'"):
        KDTraceDataset(file)
    metadata = table.schema.metadata[b"bitnet_kd"].replace(b'"draw_temperature"', b'"temperature"')
    pq.write_table(table.replace_schema_metadata({b"bitnet_kd": metadata}), str(file))
    with pytest.raises(CoreError, match="doesn't say draw_temperature"):
        KDTraceDataset(file)


@pytest.mark.parametrize("target", [SAMPLED, TEMPERED])
def test_good_shards_are_valid_and_counted(
    make_raw: Callable[..., Raw], tokenizer_folder: Path, target: dict[str, Any]
) -> None:
    raw, _ = make_raw(target)
    data = projected(raw, tokenizer_folder)
    assert validate_traces(data, tokenizer_folder).problems == ()
    stats = trace_stats(data)
    assert stats["target"] == target
    assert 1 < stats["mean_candidates"] <= 8
    assert (stats["other_mass_histogram"] is None) == (stats["mean_topk_mass"] is None) == (target is SAMPLED)
    shown = show_position(data, 3, tokenizer_folder=tokenizer_folder)
    assert shown.target == target["kind"]
    assert (shown.other is None) == (target is SAMPLED)


@pytest.mark.parametrize(
    ("target", "column", "value", "says"),
    [
        (SAMPLED, "log_z", np.inf, "log_z that is no finite number"),
        (SAMPLED, "entropy", -1.0, "an entropy below 0"),
        (SAMPLED, "other_logprob", -20.0, "an other_logprob beside them"),
        (SAMPLED | {"draw_temperature": 1.0}, "log_z", 0.5, "a log_z other than 0"),
        (TEMPERED, "log_z", -3.0, "tempered masses over 1"),
    ],
)
def test_faults_of_a_kind_are_told(
    make_raw: Callable[..., Raw], tokenizer_folder: Path, target: dict[str, Any], column: str, value: float, says: str
) -> None:
    raw, _ = make_raw(target)
    (file,) = projected(raw, tokenizer_folder).glob("*.parquet")
    table = pq.read_table(str(file))
    values = np.where(table["has_kd"].to_numpy(zero_copy_only=False), np.float32(value), table[column].to_numpy())
    place = table.schema.get_field_index(column)
    pq.write_table(table.set_column(place, column, pa.array(values, pa.float32())), str(file))
    assert any(says in problem.what for problem in validate_traces(file).problems)


def test_a_loss_that_does_not_fit_is_refused_before_training(
    make_raw: Callable[..., Raw], tokenizer_folder: Path
) -> None:
    raw, _ = make_raw(SAMPLED)
    data = projected(raw, tokenizer_folder)
    plugin = LossPlugin(name="topk_other", options=TopKOtherConfig, load=lambda options: print)
    with pytest.raises(CoreError, match=r'loss\.kind = "topk_other" does not fit .* set loss\.kind = "sampled"'):
        check_loss_fits(data, plugin, TopKOtherConfig())
