import json
import math
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.projection.project import cut, project
from bitnet_core.projection.structure_tokens import is_struct_token
from bitnet_core.traces.schema import SCHEMA, read_metadata
from bitnet_core.traces.stats import TraceSums, trace_stats
from bitnet_core.traces.tokenizer import id_to_bytes, load_tokenizer, tokenizer_sha256

RawFixture = tuple[Path, list[dict[str, Any]]]
Build = Callable[..., dict[str, Any]]
Write = Callable[..., Path]


def project_to(raw: Path, tokenizer_folder: Path, **config: Any) -> tuple[Path, dict[str, Any]]:
    data = raw.parent / "data"
    return data, project(raw, data, tokenizer_folder, ProjectConfig(**config), seed=3)


def kd_rows(data: Path) -> list[dict[str, Any]]:
    return [row for file in sorted(data.glob("kd_shard_*.parquet")) for row in pq.read_table(str(file)).to_pylist()]


def expected_rows(completions: list[dict[str, Any]], table: list[bytes], k: int) -> list[dict[str, Any]]:
    """The projection, token by token, from the definition."""
    struct = is_struct_token(table, [0, 1])
    rows = []
    for done in sorted(completions, key=lambda c: (c["prompt_idx"], c["sample_idx"])):
        prompt, answer = done["prompt_ids"], done["token_ids"]
        start = 0
        for step, token in enumerate([*prompt, *answer]):
            position = step - len(prompt)
            offered: list[tuple[float, int]] = []
            if position >= 0:
                count = done["candidate_counts"][position]
                part = slice(start, start + count)
                offered = sorted(zip(done["candidate_logprobs"][part], done["candidate_ids"][part], strict=True))[::-1]
                start += count
            kept = offered[:k] if step > 0 else []
            rows.append(
                {
                    "prompt_idx": done["prompt_idx"],
                    "sample_idx": done["sample_idx"],
                    "step_idx": step,
                    "teacher_sample_id": token,
                    "teacher_sample_text": table[token],
                    "is_struct_token": bool(struct[token]),
                    "is_prompt": position < 0 or step == 0,
                    "has_kd": bool(kept),
                    "topk_ids": [id_ for _, id_ in kept] + [0] * (k - len(kept)),
                    "topk_logprobs": [value for value, _ in kept] + [-math.inf] * (k - len(kept)),
                    "other_logprob": math.log(1 - sum(math.exp(value) for value, _ in kept)),
                    "sample_logprob": done["token_logprobs"][position] if position >= 0 and step else math.nan,
                }
            )
    return rows


@pytest.mark.parametrize("rows_per_shard", [1, 60, 10_000])
def test_agrees_with_a_projection_token_by_token(
    random_raw: RawFixture, tokenizer_folder: Path, tokenizer: Any, rows_per_shard: int
) -> None:
    raw, completions = random_raw
    data, summary = project_to(raw, tokenizer_folder, rows_per_shard=rows_per_shard)
    rows = kd_rows(data)
    expected = expected_rows(completions, id_to_bytes(tokenizer), k=3)
    assert len(rows) == len(expected) == summary["rows"]
    close = {"topk_logprobs": 2e-3, "other_logprob": 1e-5, "sample_logprob": 1e-6}
    for ours, theirs in zip(rows, expected, strict=True):
        for name, value in theirs.items():
            assert ours[name] == (
                pytest.approx(value, rel=close[name], abs=1e-4, nan_ok=True) if name in close else value
            )
    sizes = [pq.read_metadata(str(data / name)).num_rows for name in summary["shards"]]
    longest = max(len(c["prompt_ids"]) + len(c["token_ids"]) for c in completions)
    assert max(sizes) <= max(rows_per_shard, longest)
    assert len(sizes) == {1: len(completions), 60: len(sizes), 10_000: 1}[rows_per_shard]


def test_schema_metadata_and_encodings(random_raw: RawFixture, tokenizer_folder: Path) -> None:
    raw, _ = random_raw
    data, summary = project_to(raw, tokenizer_folder)
    file = pq.ParquetFile(str(data / "kd_shard_000.parquet"))
    assert file.schema_arrow.names == SCHEMA.names
    assert [f.type for f in file.schema_arrow if f.name.startswith("topk")] == [
        SCHEMA.field(name).type for name in ("topk_ids", "topk_logprobs")
    ]
    metadata = read_metadata(file.schema_arrow, data)
    assert metadata is not None
    assert metadata.k == 3
    assert metadata.raw["teacher"] == {"model": "small"}
    assert metadata.projection["path"] == "identity"
    assert (
        metadata.tokenizer_sha256 == tokenizer_sha256(load_tokenizer(tokenizer_folder)) == summary["tokenizer_sha256"]
    )
    encodings = {
        file.metadata.row_group(0).column(i).path_in_schema: file.metadata.row_group(0).column(i).encodings
        for i in range(file.metadata.num_columns)
    }
    assert "BYTE_STREAM_SPLIT" in encodings["topk_logprobs.list.element"]
    assert "BYTE_STREAM_SPLIT" in encodings["topk_ids.list.element"]


def test_counts(completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path, tokenizer: Any) -> None:
    comma = tokenizer(",", add_special_tokens=False)["input_ids"][0]

    def candidates(step: int, token_id: int) -> list[tuple[int, float]]:
        other = comma + 1 if token_id != comma + 1 else comma + 2
        return {
            0: [(token_id, -0.5), (token_id, -3.0), (other, -2.0)],  # merged
            1: [(token_id, float("nan")), (other, -1.0)],  # missing; the sampled token is not among them
            2: [(i, -2.5) for i in range(5)],  # beyond K
            3: [(token_id, 0.0)],  # the whole mass
            4: [(token_id, -0.1), (other, -0.1)],  # far above 1
        }.get(step, [])

    write_raw(tmp_path / "raw" / "shard_000.parquet", [completion(0, "Say", ",,,,,,,", candidates)])
    _, summary = project_to(tmp_path / "raw", tokenizer_folder)
    wanted = {
        "merged_candidates": 1,
        "missing_candidates": 1,
        "positions_beyond_k": 1,
        "mass_clamped_positions": 2,
        "mass_above_one_positions": 1,
        "sampled_outside_top_k": 2,
        "texts_differing": 0,
        "kd_positions": 5,
        "response_positions": 7,
        "kd_coverage": 5 / 7,
        "completions_by_kind": {"sample": 1},
        "struct_share": 1.0,
    }
    assert {name: summary[name] for name in wanted} == wanted
    json.dumps(summary)


def test_the_mass_survives_storage(random_raw: RawFixture, tokenizer_folder: Path) -> None:
    """fp16 log-probabilities move the mass by at most 1 part in 500; other is kept in fp32 from unrounded values."""
    data, _ = project_to(random_raw[0], tokenizer_folder)
    rows = [row for row in kd_rows(data) if row["has_kd"]]
    mass = np.exp(np.array([row["topk_logprobs"] for row in rows], dtype=np.float64)).sum(axis=1)
    other = np.exp(np.array([row["other_logprob"] for row in rows]))
    np.testing.assert_allclose(mass + other, 1.0, atol=2e-3)
    assert len(rows) > 100


def test_all_samples_of_a_document_share_a_split_and_summary_agrees_with_the_files(
    random_raw: RawFixture, tokenizer_folder: Path
) -> None:
    raw, _ = random_raw
    data, summary = project_to(raw, tokenizer_folder, holdout_fraction=0.3)
    split_of: dict[int, set[str]] = {}
    for row in kd_rows(data):
        split_of.setdefault(row["prompt_idx"], set()).add(row["split"])
    assert all(len(splits) == 1 for splits in split_of.values())
    assert set.union(*split_of.values()) == {"train", "heldout"}
    stats = trace_stats(data)
    of_the_files = {
        *("file_bytes", "file_bytes_per_kd_position", "projection"),
        *("target", "mean_candidates"),
    }
    assert of_the_files <= stats.keys()
    assert {name: value for name, value in stats.items() if name not in of_the_files} == {
        name: value for name, value in summary.items() if name in TraceSums().summary()
    }
    assert stats["mean_topk_mass"] + stats["mean_other_mass"] == pytest.approx(1.0)
    assert sum(split["rows"] for split in stats["splits"].values()) == stats["rows"] == len(kd_rows(data))
    assert stats["documents"] == 10


def test_again_is_bit_identical_and_stale_shards_go(random_raw: RawFixture, tokenizer_folder: Path) -> None:
    raw, _ = random_raw
    data, first = project_to(raw, tokenizer_folder, rows_per_shard=40)
    assert len(first["shards"]) > 2
    (data / ".kd_shard_099.parquet.partial").write_bytes(b"of a killed run")
    (data / "mine.txt").write_text("not ours")
    _, second = project_to(raw, tokenizer_folder)
    assert sorted(path.name for path in data.iterdir()) == ["kd_shard_000.parquet", "mine.txt"]
    before = (data / "kd_shard_000.parquet").read_bytes()
    assert project_to(raw, tokenizer_folder)[1] == second
    assert (data / "kd_shard_000.parquet").read_bytes() == before


def test_a_failure_leaves_the_earlier_traces(random_raw: RawFixture, tokenizer_folder: Path) -> None:
    raw, _ = random_raw
    data, _ = project_to(raw, tokenizer_folder)
    before = (data / "kd_shard_000.parquet").read_bytes()

    def interrupt(done: int, total: int, note: str) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        project(raw, data, tokenizer_folder, ProjectConfig(holdout_fraction=0.5), 3, interrupt)
    assert [path.name for path in data.iterdir()] == ["kd_shard_000.parquet"]
    assert (data / "kd_shard_000.parquet").read_bytes() == before


def test_repeated_and_empty_completions(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    rows = [completion(0, "a", "once"), completion(0, "a", "twice"), completion(1, "b", ""), completion(2, "", "text")]
    write_raw(tmp_path / "raw" / "shard_000.parquet", rows)
    data, summary = project_to(tmp_path / "raw", tokenizer_folder)
    assert (summary["completions"], summary["repeated_completions"], summary["empty_completions"]) == (2, 1, 1)
    assert {row["prompt_idx"] for row in kd_rows(data)} == {0, 2}
    assert b"".join(r["teacher_sample_text"] for r in kd_rows(data) if r["prompt_idx"] == 0) == b"aonce"
    assert (summary["kd_positions"], summary["kd_coverage"], summary["mean_topk_mass"]) == (0, 0.0, None)
    write_raw(tmp_path / "raw" / "shard_000.parquet", [completion(1, "b", "")])
    with pytest.raises(CoreError, match="no completion has a token"):
        project_to(tmp_path / "raw", tokenizer_folder)


def test_special_tokens_may_be_missing_from_the_text(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    row = completion(0, "a", "The end.<|im_end|>", text=b"The end.")
    write_raw(tmp_path / "raw" / "shard_000.parquet", [row])
    data, summary = project_to(tmp_path / "raw", tokenizer_folder)
    assert summary["texts_differing"] == 0
    assert not kd_rows(data)[-1]["is_struct_token"]


# --- refusals --------------------------------------------------------------------------------------------------------


def test_another_tokenizer_by_digest_needs_the_teachers_folder(
    random_raw: RawFixture, write_raw: Write, tokenizer_folder: Path, other_tokenizer_folder: Path
) -> None:
    raw, rows = random_raw
    for path in raw.iterdir():
        path.unlink()
    teacher = {"model": "small", "vocab_size": 320, "model_folder": str(tokenizer_folder)}
    write_raw(raw / "shard_000.parquet", rows, teacher=teacher)
    with pytest.raises(CoreError, match=r"no chat template, .* set project\.chat_template to a file"):
        project_to(raw, other_tokenizer_folder)
    assert project_to(raw, tokenizer_folder)[1]["projection"]["path"] == "identity"
    digest = tokenizer_sha256(load_tokenizer(tokenizer_folder))
    gone = {"model": "small", "tokenizer_sha256": digest, "model_folder": str(raw / "gone")}
    write_raw(raw / "shard_000.parquet", rows, teacher=gone)
    with pytest.raises(CoreError, match=r"token ids but no bytes, its tokenizer .*gone is not there.*bring back"):
        project_to(raw, other_tokenizer_folder)


def test_another_tokenizer_by_its_bytes(random_raw: RawFixture, other_tokenizer_folder: Path) -> None:
    """No digest, no folder, the same size: only the texts tell."""
    with pytest.raises(CoreError, match=r"bytes for the teacher's ids are not the teacher's text.*bring back"):
        project_to(random_raw[0], other_tokenizer_folder)
    assert not (random_raw[0].parent / "data").exists() or not list((random_raw[0].parent / "data").iterdir())


def test_another_vocabulary_size(random_raw: RawFixture, write_raw: Write, tokenizer_folder: Path) -> None:
    raw, rows = random_raw
    (raw / "shard_001.parquet").unlink()
    write_raw(raw / "shard_000.parquet", rows, teacher={"model": "small", "vocab_size": 100})
    with pytest.raises(CoreError, match="has 320 ids, the teacher only 100"):
        project_to(raw, tokenizer_folder)
    write_raw(raw / "shard_000.parquet", rows, teacher={"model": "small", "vocab_size": 384})
    assert project_to(raw, tokenizer_folder)[1]["vocab_size"] == 384  # the model's output is padded


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"token_ids": None}, "there are tokens with neither ids nor bytes"),
        ({"candidate_ids": None}, "there are candidates with neither ids nor bytes"),
    ],
)
def test_absent_ids(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path, columns: Any, message: str
) -> None:
    row = completion(0, "a", "b c", lambda step, id_: [(id_, -0.1)], **columns)
    write_raw(tmp_path / "raw" / "shard_000.parquet", [row])
    with pytest.raises(CoreError, match=rf"shard_000\.parquet: {message}.*collect again"):
        project_to(tmp_path / "raw", tokenizer_folder)


def test_ids_outside_the_vocabulary(
    completion: Build, write_raw: Write, tokenizer_folder: Path, tmp_path: Path
) -> None:
    row = completion(0, "a", "b c", lambda step, id_: [(id_, -0.1), (99_999, -3.0)])
    write_raw(tmp_path / "raw" / "shard_000.parquet", [row])
    with pytest.raises(CoreError, match=r"candidate_ids holds ids from .* to 99999, but the tokenizer has 320"):
        project_to(tmp_path / "raw", tokenizer_folder)


def test_damaged_and_foreign_raw_shards(
    random_raw: RawFixture, completion: Build, write_raw: Write, tokenizer_folder: Path
) -> None:
    raw, rows = random_raw
    shard = raw / "shard_001.parquet"
    whole = shard.read_bytes()
    shard.write_bytes(whole[: len(whole) // 2])
    with pytest.raises(CoreError, match=r"shard_001\.parquet: cannot be read as Parquet"):
        project_to(raw, tokenizer_folder)
    write_raw(shard, rows[:2], version=9)
    with pytest.raises(
        CoreError, match=r"shard_001\.parquet: raw shard version 9, but this bitnet-core reads version 1"
    ):
        project_to(raw, tokenizer_folder)
    write_raw(shard, rows[:2], top_k=5)
    with pytest.raises(CoreError, match=r"do not belong together \(top_k 3 and 5\)"):
        project_to(raw, tokenizer_folder)
    pq.write_table(pq.read_table(str(shard)).replace_schema_metadata({}), str(shard))
    with pytest.raises(CoreError, match="not a raw shard"):
        project_to(raw, tokenizer_folder)
    write_raw(shard, [rows[0] | {"candidate_counts": [1] * len(rows[0]["token_ids"])}])
    with pytest.raises(CoreError, match="values in candidate_ids where"):
        project_to(raw, tokenizer_folder)
    for path in raw.iterdir():
        path.unlink()
    with pytest.raises(CoreError, match=r"no file shard_\*\.parquet in it  → run the collect stage"):
        project_to(raw, tokenizer_folder)


def test_a_disk_that_refuses(random_raw: RawFixture, tokenizer_folder: Path) -> None:
    (random_raw[0].parent / "data").write_text("a file where the folder should be")
    with pytest.raises(CoreError, match=r"kd_shard_000\.parquet: cannot be written .*free space"):
        project_to(random_raw[0], tokenizer_folder)


@pytest.mark.parametrize("rows", [1, 5, 10, 100])
def test_cut(rows: int) -> None:
    lengths = np.random.default_rng(0).integers(1, 9, 50)
    parts = list(cut(lengths, rows))
    assert [i for part in parts for i in range(part.start, part.stop)] == list(range(50))
    for part, following in pairwise(parts):
        assert lengths[part].sum() <= rows or part.stop - part.start == 1
        assert lengths[part].sum() + lengths[following.start] > rows
