"""Values and intervals from items, and what becomes of a benchmark that can't or won't."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_core.benchmarks.contract import AggregateScore, NotMeasured, Result, Score, Subject
from bitnet_core.benchmarks.json_validity import asks, check, load_json_validity
from bitnet_core.config.evaluate import JSONValidityOptions
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.benchmark_scores import measure, run_benchmarks
from bitnet_core.evaluation.bootstrap import bootstrap_interval
from bitnet_core.evaluation.qei import quality_efficiency


class Model:
    """A subject that says what it was told to."""

    def __init__(self, role: str, said: Sequence[str] | None = None) -> None:
        self.role, self.name, self.said = role, role, said
        self.asked: list[Any] = []

    def answers(self, conversations: Sequence[Any], max_new_tokens: int) -> list[str]:
        if self.said is None:
            raise NotMeasured("it costs money")
        self.asked.append((conversations, max_new_tokens))
        return list(self.said)


def run(benchmark: Any, *subjects: Any) -> dict[str, Any]:
    found = run_benchmarks(
        {"mine": benchmark}, subjects, samples=200, seed=1, on_progress=lambda done, total, note: None
    )
    return found["mine"]


def test_a_mean_has_the_present_bootstraps_interval() -> None:
    sums = [1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    found = measure(Score(sums=sums), 300, 5)
    assert found["value"] == pytest.approx(4 / 6)
    assert found["items"] == 6
    assert tuple(found["interval_95"]) == bootstrap_interval(sums, np.ones(6), samples=300, seed=5)


def test_a_perplexity_is_the_exponential_of_a_ratio() -> None:
    found = measure(Score(sums=[3.0, 1.0, 0.0], counts=[2, 2, 0], exp=True), 200, 0)
    assert found["value"] == pytest.approx(math.exp(1.0))
    assert found["items"] == 2
    assert found["interval_95"][0] <= found["value"] <= found["interval_95"][1]


def test_nothing_counted_is_no_figure() -> None:
    assert measure(Score(sums=[0.0], counts=[0]), 10, 0) == {"value": None, "interval_95": None, "items": 0}
    assert measure(AggregateScore(items=[], aggregate=max), 10, 0)["value"] is None
    with pytest.raises(CoreError, match="one count for each sum"):
        Score(sums=[1.0], counts=[1.0, 2.0])


def test_a_function_of_all_items_is_resampled() -> None:
    items = list(range(100))
    found = measure(AggregateScore(items=items, aggregate=lambda drawn: float(np.median(drawn))), 400, 0)
    assert found["value"] == 49.5
    assert 30 < found["interval_95"][0] < 49.5 < found["interval_95"][1] < 70


def test_both_sides_go_one_way_and_a_reason_stands_for_a_figure() -> None:
    def length(subject: Subject) -> Result:
        texts = subject.answers([[{"role": "user", "content": "Hi"}]], 7)
        return Result(scores={"letters": Score(sums=[len(text) for text in texts])}, details={"of": subject.role})

    student = Model("student", ["four"])
    found = run(length, student, Model("teacher"))
    assert student.asked[0][1] == 7
    assert found["scores"]["letters"]["student"] == {"value": 4.0, "interval_95": [4.0, 4.0], "items": 1}
    assert "teacher" not in found["scores"]["letters"]
    assert found["absent"] == {"teacher": "it costs money"}
    assert found["details"] == {"student": {"of": "student"}}
    json.dumps(found)


def test_two_models_are_compared_over_the_same_items() -> None:
    """Items differ from each other far more than the models do: only in pairs can that be seen."""
    hard = np.random.default_rng(0).normal(0.0, 10.0, 40)
    sums = {"student": hard + 0.5, "teacher": hard, "guess": hard[:39]}

    def score(subject: Subject) -> Result:
        of = sums[subject.role]
        return Result(scores={"mean": Score(sums=of), "middle": AggregateScore(items=list(of), aggregate=np.median)})

    found = run(score, Model("student"), Model("teacher"))["scores"]
    assert found["mean"]["difference_95"] == pytest.approx([0.5, 0.5])
    assert found["middle"]["difference_95"] == pytest.approx([0.5, 0.5])
    low, high = found["mean"]["student"]["interval_95"]
    assert low < found["mean"]["teacher"]["value"] < high
    assert "difference_95" not in run(score, Model("student"), Model("guess"))["scores"]["mean"], "other items"


def test_a_benchmark_that_breaks_is_named() -> None:
    def broken(subject: Subject) -> Result:
        raise ZeroDivisionError("by zero")

    def refuses(subject: Subject) -> Result:
        raise CoreError("no such file", "correct the path")

    with pytest.raises(CoreError, match=r"benchmark mine failed on the student \(ZeroDivisionError: by zero\)"):
        run(broken, Model("student"))
    with pytest.raises(CoreError, match=r"^mine: no such file  → correct the path$"):
        run(refuses, Model("student"))


PROMPTS = [
    {"id": "a", "prompt": "A name as JSON.", "schema": {"type": "object", "required": ["name"]}},
    {"messages": [{"role": "user", "content": "Two numbers."}], "schema": {"type": "array", "minItems": 2}},
    {"id": "c", "prompt": "True or false?", "schema": {"type": "boolean"}},
]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    file = tmp_path / "prompts.jsonl"
    file.write_text("\n".join(json.dumps(each) for each in PROMPTS) + "\n")
    return file


def test_json_validity_counts_what_parses_and_what_is_of_the_schema(prompts: Path) -> None:
    options = JSONValidityOptions(prompts=prompts, max_new_tokens=9)
    student = Model("student", ['{"name": "tea"}', "[1]", "maybe"])
    teacher = Model("teacher", ['```json\n{"name": 1}\n```', "[1, 2]", "true"])
    found = run(load_json_validity(options), student, teacher)
    values = {
        (score, role): found["scores"][score][role]["value"]
        for score in ("parsed", "valid")
        for role in ("student", "teacher")
    }
    assert values == {
        ("parsed", "student"): pytest.approx(2 / 3), ("valid", "student"): pytest.approx(1 / 3),
        ("parsed", "teacher"): 1.0, ("valid", "teacher"): 1.0,
    }  # fmt: skip
    assert student.asked[0][0][0] == ({"role": "user", "content": "A name as JSON."},)
    assert [row["valid"] for row in found["details"]["student"]["answers"]] == [True, False, False]
    assert asks(options) == (3, 9)
    assert check(options) == []


def test_a_named_score_is_the_quality_of_the_index(prompts: Path) -> None:
    found = run(
        load_json_validity(JSONValidityOptions(prompts=prompts)),
        Model("student", ['{"name": "tea"}', "[1]", "maybe"]),
        Model("teacher", ['{"name": "tea"}', "[1, 2]", "true"]),
    )
    report = {"benchmarks": {"json_validity": found}, "memory_bytes": 10, "teacher_memory_bytes": 100}
    record = quality_efficiency(report, "json_validity.valid")
    assert record["qei"] == pytest.approx((1 / 3) / (10 / 100))
    assert "json_validity.valid over 3 items" in record["qei_inputs"]["student_quality"]["source"]
    missing = quality_efficiency(report, "json_validity.nice")["qei_missing"]["student_quality"]
    assert missing == "json_validity has no score nice, but parsed, valid"
    assert "did not run" in quality_efficiency(report, "other.score")["qei_missing"]["teacher_quality"]


def test_a_perplexity_of_a_benchmark_is_inverted_and_a_kl_is_no_quality() -> None:
    def side(value: float) -> dict[str, Any]:
        return {"value": value, "interval_95": [value, value], "items": 4}

    scores = {
        "perplexity": {"quality": "inverse", "student": side(8.0), "teacher": side(4.0)},
        "kl": {"quality": "none", "student": side(1.0), "teacher": side(0.0)},
    }
    where = {"student": "llama.cpp", "teacher": "its traces"}
    report = {
        "benchmarks": {"heldout": {"scores": scores, "absent": {}, "ran_in": where}},
        "perplexity": 99.0, "teacher_perplexity": 1.0, "memory_bytes": 1, "teacher_memory_bytes": 4,
    }  # fmt: skip
    record = quality_efficiency(report)
    assert record["qei"] == pytest.approx((4 / 8) / (1 / 4))
    assert "llama.cpp" in record["qei_inputs"]["student_quality"]["source"]
    assert "no quality" in quality_efficiency(report, "heldout.kl")["qei_missing"]["student_quality"]


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("{", ":1: no JSON"),
        ("[]", ":1: not an object"),
        ('{"prompt": "x"}', '"schema" is missing'),
        ('{"prompt": "x", "schema": {"type": 3}}', '"schema": no JSON Schema'),
        ('{"schema": {}}', 'either "prompt"'),
        ('{"prompt": "x", "messages": [], "schema": {}}', "not both"),
        ('{"messages": [{"role": "judge", "content": "x"}], "schema": {}}', 'either "prompt"'),
        ("", "there is no prompt"),
    ],
)
def test_a_bad_prompts_file_is_told_before_anything_runs(tmp_path: Path, line: str, said: str) -> None:
    file = tmp_path / "prompts.jsonl"
    file.write_text(line + "\n")
    (problem,) = check(JSONValidityOptions(prompts=file))
    assert said in problem
    assert str(file) in problem
    (gone,) = check(JSONValidityOptions(prompts=tmp_path / "gone.jsonl"))
    assert "correct the path" in gone
