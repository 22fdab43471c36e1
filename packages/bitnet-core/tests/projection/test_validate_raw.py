"""Every fault that `validate_raw` knows, put into good raw shards; and what `raw_stats` counts."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_core.projection.validate_raw import raw_files, raw_stats, validate_raw
from bitnet_core.traces.schema import has_traces

RawFixture = tuple[Path, list[dict[str, Any]]]
Write = Callable[..., Path]


def test_good_shards(random_raw: RawFixture) -> None:
    folder, rows = random_raw
    for where in (folder, folder.parent):  # a folder of shards, a run folder
        found = validate_raw(raw_files(where))
        assert (found.files, found.rows, found.problems) == (2, len(rows), ())
    assert raw_files(folder / "shard_001.parquet") == [folder / "shard_001.parquet"]
    assert not has_traces(folder)
    stats = raw_stats(raw_files(folder))
    assert stats["completions"] == len(rows)
    assert stats["prompts"] == len({row["prompt_idx"] for row in rows})
    assert stats["tokens"] == sum(len(row["token_ids"]) for row in rows)
    assert stats["candidates"] == sum(sum(row["candidate_counts"]) for row in rows)
    assert stats["kinds"] == {"sample": 8, "score": 2}
    assert stats["finish_reasons"] == {"stop": 10}
    assert 0 < stats["mean_topk_mass"] < 1
    json.dumps(stats)


FAULTS: dict[str, tuple[Callable[[dict[str, Any]], dict[str, Any]], str]] = {
    "length": (lambda row: {"token_ids": row["token_ids"][:-1]}, "another number of values in token_ids than tokens"),
    "logprobs": (
        lambda row: {"candidate_logprobs": [*row["candidate_logprobs"], -1.0]},
        "another number of values in candidate_logprobs than candidates",
    ),
    "negative": (
        lambda row: {"candidate_counts": [-1, *row["candidate_counts"][1:]]},
        "a candidate count below 0",
    ),
    "nothing": (lambda row: {"token_ids": None, "token_bytes": None}, "tokens that have neither ids nor bytes"),
    "outside": (
        lambda row: {"token_ids": [320, *row["token_ids"][1:]]},
        "an id outside the teacher's vocabulary of 320 in token_ids",
    ),
    "json": (lambda row: {"messages": "[{"}, "messages that are no JSON list of roles and contents"),
    "turns": (lambda row: {"messages": '[{"role": "user"}]'}, "messages that are no JSON list of roles and contents"),
    "kind": (lambda row: {"kind": "guess"}, "a kind that is not one of: sample, score"),
    "text": (lambda row: {"text": None}, "empty values in text"),
    "twice": (
        lambda row: {"prompt_idx": 0, "sample_idx": 0} if row["prompt_idx"] else {"prompt_idx": 1},
        "the prompt_idx and sample_idx of another completion",
    ),
}


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(name=st.sampled_from(sorted(FAULTS)), place=st.integers(0, 9))
def test_a_fault_anywhere_is_told(
    random_raw: RawFixture, write_raw: Write, tmp_path: Path, name: str, place: int
) -> None:
    change, what = FAULTS[name]
    rows = sorted((dict(row) for row in random_raw[1]), key=lambda row: (row["prompt_idx"], row["sample_idx"]))
    rows[place] |= change(rows[place])
    write_raw(tmp_path / "other" / "shard_000.parquet", rows, teacher={"model": "small", "vocab_size": 320})
    problems = validate_raw(raw_files(tmp_path / "other")).problems
    told = [problem for problem in problems if what in problem.what]
    assert told, problems
    assert told[0].file == str(tmp_path / "other" / "shard_000.parquet")
    assert told[0].row_group is not None
    assert told[0].fix


def test_damage_and_mixtures(random_raw: RawFixture, write_raw: Write) -> None:
    folder, rows = random_raw
    write_raw(folder / "shard_002.parquet", rows[:1], teacher={"model": "another"})
    (problem,) = (each for each in validate_raw(raw_files(folder)).problems if each.row_group is None)
    assert "do not belong together (model 'small' and 'another')" in problem.what
    write_raw(folder / "shard_002.parquet", rows[:1], version=9)
    assert "raw shard version 9" in validate_raw(raw_files(folder)).problems[0].what
    (folder / "shard_002.parquet").write_bytes((folder / "shard_001.parquet").read_bytes()[:-50])
    (problem,) = validate_raw(raw_files(folder)).problems
    assert (problem.file, "cannot be read as Parquet" in problem.what) == (str(folder / "shard_002.parquet"), True)
    table = pq.read_table(str(folder / "shard_000.parquet")).drop_columns(["candidate_logprobs"])
    pq.write_table(table, str(folder / "shard_002.parquet"))
    assert "lacks the columns candidate_logprobs" in validate_raw(raw_files(folder)).problems[0].what


def test_where_there_is_nothing(tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    assert raw_files(tmp_path) == []
