"""Every fault that `validate_traces` knows, put into good shards; and what `trace_stats` and `show_position` say."""

import itertools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from bitnet_core.config.project import ProjectConfig
from bitnet_core.errors import CoreError
from bitnet_core.model.configuration import BitNetKDEConfig
from bitnet_core.model.modeling import BitNetKDEForCausalLM
from bitnet_core.projection.project import project
from bitnet_core.traces.checks_on_reading import repeated
from bitnet_core.traces.dataset import KDTraceDataset
from bitnet_core.traces.schema import read_metadata
from bitnet_core.traces.show_position import show_position
from bitnet_core.traces.stats import OTHER_EDGES, trace_stats
from bitnet_core.traces.validate_shards import Validation, validate_traces
from bitnet_core.traces.write_shards import write_kd_shard

RawFixture = tuple[Path, list[dict[str, Any]]]
Change = Callable[[pa.Table], pa.Table]
GROUP = 64


@pytest.fixture
def run(random_raw: RawFixture, tokenizer_folder: Path) -> Path:
    """A run folder with two shards, in row groups of 64 rows."""
    folder = random_raw[0].parent
    project(random_raw[0], folder / "data", tokenizer_folder, ProjectConfig(rows_per_shard=500), seed=0)
    for file in files(folder):
        rewrite(file, lambda table: table)
    assert len(files(folder)) > 1
    return folder


def files(run: Path) -> list[Path]:
    return sorted((run / "data").glob("*.parquet"))


def rewrite(file: Path, change: Change) -> None:
    table = pq.read_table(str(file))
    metadata = table.schema.metadata
    pq.write_table(
        change(table).replace_schema_metadata(metadata), str(file), row_group_size=GROUP, write_page_checksum=True
    )


def put(name: str, rows: dict[int, Any]) -> Change:
    """Set values of a column."""

    def change(table: pa.Table) -> pa.Table:
        values = table[name].to_pylist()
        for row, value in rows.items():
            values[row] = value
        type_ = table.schema.field(name).type
        kind = type_.value_type if pa.types.is_dictionary(type_) else type_
        return table.set_column(table.schema.get_field_index(name), name, pa.array(values, kind))

    return change


def put_list(name: str, row: int, values: list[float]) -> Change:
    return put(name, {row: np.array(values, np.float16) if name == "topk_logprobs" else values})


def taken(order: Callable[[int], list[int]]) -> Change:
    return lambda table: table.take(order(table.num_rows))


def kd_row(file: Path, after: int) -> int:
    kd = pq.read_table(str(file), columns=["has_kd"])["has_kd"].to_numpy()
    return int(np.flatnonzero(kd[after:])[0]) + after


def test_good_traces_have_no_problem(run: Path, tokenizer_folder: Path) -> None:
    rows = sum(pq.read_metadata(str(file)).num_rows for file in files(run))
    assert validate_traces(run, tokenizer_folder) == Validation(len(files(run)), rows, ())
    assert validate_traces(run / "data").rows == rows
    assert validate_traces(files(run)[1]).files == 1


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (put("teacher_sample_id", {70: 320}), "a token id outside the vocabulary of 320 in teacher_sample_id"),
        (put_list("topk_ids", 70, [1, 2, -1]), "1 row with a token id outside the vocabulary of 320 in topk_ids"),
        (put_list("topk_ids", 70, [1, 2]), "topk_ids and topk_logprobs of different length"),
        (
            lambda t: put_list("topk_logprobs", 70, [-1.0])(put_list("topk_ids", 70, [1])(t)),
            "1 row with 1 candidates, a number of candidates other than K = 3",
        ),
        (put_list("topk_logprobs", 70, [np.nan, -1, -2]), "NaN in topk_logprobs"),
        (put_list("topk_logprobs", 70, [0.5, -1, -2]), "a topk_logprobs above 0"),
        (put_list("topk_logprobs", 70, [-2, -1, -3]), "candidates not by falling log-probability"),
        (put("other_logprob", {70: float("nan")}), "NaN in other_logprob"),
        (put("other_logprob", {70: 0.1}), "other_logprob above 0"),
        (put("other_logprob", {70: None}), "empty values in other_logprob"),
        (put("topk_logprobs", {70: [None, None, None]}), "empty values in the lists of topk_logprobs"),
        (put("sample_logprob", {70: 0.5}), "sample_logprob above 0"),
        (put("split", {70: "dev"}), "a split that is not one of: train, heldout"),
        (taken(lambda n: [*range(70), 70, *range(70, n)]), "the same prompt_idx, sample_idx and step_idx as the row"),
        (taken(lambda n: [*range(69), 71, 70, 69, *range(72, n)]), "an earlier place than the row before it"),
        (taken(lambda n: [*range(70), *range(71, n)]), "a step that doesn't follow the one before (rows are missing)"),
    ],
)  # fmt: skip
def test_faults_are_told_with_file_group_and_fix(run: Path, change: Change, what: str) -> None:
    rewrite(files(run)[0], change)
    problems = validate_traces(run).problems
    told = [problem for problem in problems if what in problem.what]
    assert told, problems
    assert told[0].file == str(files(run)[0])
    assert told[0].row_group == 1
    assert "run the project stage (bitnet run MANIFEST --from project) again" in told[0].fix
    assert str(told[0]).startswith(f"{files(run)[0]}: row group 1: ")


@pytest.mark.parametrize(
    ("name", "values", "what"),
    [
        ("topk_logprobs", [-0.1, -0.2, -0.3], "1 row with a mass over 1 (up to "),
        ("topk_logprobs", [-8.0, -9.0, -10.0], "1 row with a mass under 1 (down to "),
        ("topk_ids", [5, 7, 5], "1 row with one id twice among the candidates (the first: row "),
        ("topk_logprobs", [-np.inf] * 3, "has_kd but no candidate"),
    ],
)
def test_faults_of_kd_rows(run: Path, name: str, values: list[float], what: str) -> None:
    file = files(run)[0]
    row = kd_row(file, 70)
    other = -20.0 if "over" in what else -3.0
    rewrite(file, lambda t: put_list(name, row, values)(put("other_logprob", {row: other})(t) if "mass" in what else t))
    told = [problem for problem in validate_traces(run).problems if what in problem.what]
    assert [problem.row_group for problem in told] == [row // GROUP]


def test_a_kd_row_at_step_0(run: Path) -> None:
    rewrite(files(run)[0], put("has_kd", {0: True}))
    assert {problem.what.split(" (")[0] for problem in validate_traces(run).problems} == {
        "1 row with has_kd but no candidate",
        "1 row with has_kd at step 0, before which nothing stands",
    }


def test_a_document_in_both_splits(run: Path) -> None:
    table = pq.read_table(str(files(run)[0]))
    split = "heldout" if table["split"][70].as_py() == "train" else "train"
    rewrite(files(run)[0], put("split", {70: split}))
    assert [problem.what for problem in validate_traces(run).problems] == [
        "2 rows with another split than the rest of their document (the first: row 6 of the row group)"
    ]


def test_order_is_checked_across_files(run: Path) -> None:
    first, second = files(run)[:2]
    spare = first.with_name("spare")
    first.rename(spare)
    second.rename(first)
    spare.rename(second)
    (problem,) = validate_traces(run).problems[:1]
    assert (problem.file, problem.row_group) == (str(second), 0)
    assert problem.what.startswith("1 row with an earlier place than the row before it")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.97])
def test_truncated_files(run: Path, part: float) -> None:
    broken = files(run)[0]
    broken.write_bytes(broken.read_bytes()[: int(broken.stat().st_size * part)])
    problems = validate_traces(run).problems
    assert len(problems) == 1, problems
    assert (problems[0].file, problems[0].row_group) == (str(broken), None)
    assert "cannot be read as Parquet" in problems[0].what


def test_a_flipped_byte_costs_one_row_group(run: Path) -> None:
    broken = files(run)[0]
    column = pq.read_metadata(str(broken)).row_group(1).column(4)
    whole = bytearray(broken.read_bytes())
    whole[column.data_page_offset + column.total_compressed_size // 2] ^= 0x40
    broken.write_bytes(whole)
    problems = validate_traces(run).problems
    assert [(problem.file, problem.row_group) for problem in problems] == [(str(broken), 1)]


def test_shards_of_two_projections_and_another_tokenizer(run: Path, other_tokenizer_folder: Path) -> None:
    second = files(run)[1]
    metadata = read_metadata(pq.read_schema(str(second)), second)
    assert metadata is not None
    table = pq.read_table(str(second))
    write_kd_shard(second, table, attrs.evolve(metadata, projection={**metadata.projection, "id": "another"}))
    problems = [str(problem) for problem in validate_traces(run).problems]
    assert len(problems) == 1
    assert "come from different projections (projection" in problems[0]
    told = [str(problem) for problem in validate_traces(files(run)[0], other_tokenizer_folder).problems]
    assert len(told) == 1
    assert "the traces were made for the tokenizer with sha256" in told[0]


def test_nothing_to_validate(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match=r"no file kd_shard_\*\.parquet in it"):
        validate_traces(tmp_path)


# --- stats -----------------------------------------------------------------------------------------------------------


def test_stats_histogram_and_sizes(run: Path) -> None:
    stats = trace_stats(run)
    other = np.exp(KDTraceDataset(run / "data").positions().other_logprob.astype(np.float64))
    expected = [int(((other >= low) & (other < high)).sum()) for low, high in itertools.pairwise(OTHER_EDGES)]
    assert stats["other_mass_histogram"] == {"edges": list(OTHER_EDGES), "counts": expected}
    assert sum(expected) == stats["kd_positions"] == len(other) > 0
    assert stats["file_bytes"] == sum(file.stat().st_size for file in files(run))
    assert stats["projection"] is None
    record = run / "stages" / "project" / "done.json"
    record.parent.mkdir(parents=True)
    record.write_text(json.dumps({"summary": {"merged_candidates": 7, "k": 3}}))
    assert trace_stats(run)["projection"] == {"merged_candidates": 7}
    assert trace_stats(run / "data")["projection"] is None


# --- show ------------------------------------------------------------------------------------------------------------


def test_show_gives_the_teachers_candidates(run: Path, tokenizer_folder: Path, tokenizer: Any) -> None:
    dataset = KDTraceDataset(run / "data")
    flat = dataset.positions()
    for number in (0, 17, len(flat.prev_token) - 1):
        shown = show_position(run, number, tokenizer_folder=tokenizer_folder)
        assert [each.token_id for each in shown.candidates] == [
            i for i, lp in zip(flat.topk_ids[number].tolist(), flat.topk_logprobs[number], strict=True) if lp > -np.inf
        ]
        assert shown.other == pytest.approx(float(np.exp(flat.other_logprob[number])), rel=1e-5)
        assert shown.token_id == flat.sample_id[number]
        assert shown.token == tokenizer.decode([shown.token_id])
        before = dataset[int(flat.document[number])]["input_ids"][: shown.step_idx]
        assert tokenizer.decode(before).endswith(shown.context)
        assert (shown.kl, shown.student_other) == (None, None)
    with pytest.raises(CoreError, match=rf"position {len(flat.prev_token)}: the traces have {len(flat.prev_token)} KD"):
        show_position(run, len(flat.prev_token), tokenizer_folder=tokenizer_folder)
    with pytest.raises(CoreError, match="count from 0"):
        show_position(run, -1, tokenizer_folder=tokenizer_folder)


def test_show_puts_the_student_beside(run: Path, tokenizer_folder: Path) -> None:
    torch.manual_seed(0)
    config = BitNetKDEConfig(
        vocab_size=320, hidden_size=32, intermediate_size=48, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, max_position_embeddings=512,
    )  # fmt: skip
    model = BitNetKDEForCausalLM(config).eval()
    checkpoint = run / "checkpoints" / "step_1"
    model.save_pretrained(checkpoint)
    shutil.copy(tokenizer_folder / "tokenizer.json", checkpoint)
    shown = show_position(run, 17, checkpoint)
    dataset = KDTraceDataset(run / "data")
    flat = dataset.positions()
    before = dataset[int(flat.document[17])]["input_ids"][: shown.step_idx]
    with torch.inference_mode():
        expected = model(before[None]).logits[0, -1].double().softmax(-1)
    for each in shown.candidates:
        assert each.student == pytest.approx(float(expected[each.token_id]), rel=1e-4)
    assert shown.student_other is not None
    assert shown.student_other + sum(each.student or 0 for each in shown.candidates) == pytest.approx(1.0)
    assert shown.kl is not None
    assert shown.kl > 0
    with pytest.raises(CoreError, match=r"step_2: no such folder  → name one with a tokenizer\.json"):
        show_position(run, 17, run / "checkpoints" / "step_2")


def test_show_wants_the_traces_tokenizer(run: Path, other_tokenizer_folder: Path) -> None:
    with pytest.raises(CoreError, match="no tokenizer is known for these traces  → name its folder with --tokenizer"):
        show_position(run, 0)
    with pytest.raises(CoreError, match="the traces were made for the tokenizer"):
        show_position(run, 0, tokenizer_folder=other_tokenizer_folder)


@pytest.mark.parametrize("kind", [np.uint16, np.int32, np.uint32, np.int64])
def test_an_id_twice_is_seen_in_ids_of_every_type(kind: type[np.integer[Any]]) -> None:
    ids = np.array([[5, 7, 0], [5, 5, 0], [5, 0, 0]], dtype=kind)
    used = np.array([[True, True, False], [True, True, False], [True, False, False]])
    assert repeated(ids, used).tolist() == [False, True, False]
