"""The quality-efficiency index, what is absent from it, and its intervals."""

import attrs
import numpy as np
import pytest

from bitnet_core.evaluation.bootstrap import bootstrap_interval
from bitnet_core.evaluation.qei import Measured, QEIInputs, missing, qei, qei_interval, qei_speed, quality_efficiency

INPUTS = QEIInputs(
    student_quality=Measured(0.04, "test"),
    teacher_quality=Measured(0.1, "test"),
    student_memory_bytes=Measured(20e6, "test"),
    teacher_memory_bytes=Measured(270e6, "test"),
    student_tokens_per_second=Measured(60.0, "test"),
    teacher_tokens_per_second=Measured(30.0, "test"),
)


def test_by_hand() -> None:
    assert qei(INPUTS) == pytest.approx(0.4 / (20 / 270))
    assert qei_speed(INPUTS) == pytest.approx(2 * 0.4 / (20 / 270))
    assert missing(INPUTS) == {}


def test_an_unknown_memory_leaves_the_figures_out_and_says_why() -> None:
    inputs = attrs.evolve(INPUTS, teacher_memory_bytes=Measured(None, "a hosted teacher"))
    assert qei(inputs) is None
    assert qei_speed(inputs) is None
    assert missing(inputs) == {"teacher_memory_bytes": "a hosted teacher"}


def test_an_unknown_speed_leaves_only_the_speed_index_out() -> None:
    inputs = attrs.evolve(INPUTS, teacher_tokens_per_second=Measured(0.0, "broken clock"))
    assert qei(inputs) is not None
    assert qei_speed(inputs) is None
    assert "no positive finite number" in missing(inputs)["teacher_tokens_per_second"]


def test_from_a_report() -> None:
    report = {
        "perplexity": 25.0,
        "teacher_perplexity": 10.0,
        "memory_bytes": 20_000_000,
        "teacher_memory_bytes": 270_000_000,
        "tokens_per_second": 60.0,
        "teacher_tokens_per_second": 30.0,
    }
    record = quality_efficiency(report)
    assert record["qei"] == pytest.approx(0.4 / (20 / 270))
    assert record["qei_speed"] == pytest.approx(2 * record["qei"])
    assert record["qei_inputs"]["student_quality"]["value"] == pytest.approx(1 / 25)
    assert record["qei_missing"] == {}
    hosted = quality_efficiency(report | {"teacher_memory_bytes": None})
    assert hosted["qei"] is None
    assert "hosted" in hosted["qei_missing"]["teacher_memory_bytes"]
    assert "perplexity was not measured" in quality_efficiency({})["qei_missing"]["student_quality"]


def test_interval_covers_as_often_as_it_says() -> None:
    rng = np.random.default_rng(0)
    hits = 0
    for trial in range(200):
        tokens = rng.integers(20, 60, 40)
        low, high = bootstrap_interval(tokens * rng.normal(2.0, 0.5, 40), tokens, samples=300, seed=trial)
        hits += low <= 2.0 <= high
    assert 0.86 <= hits / 200 <= 0.99


def test_interval_is_repeatable_and_sees_documents() -> None:
    sums, counts = np.array([1.0, 5.0, 2.0]), np.array([1.0, 2.0, 2.0])
    assert bootstrap_interval(sums, counts, seed=3) == bootstrap_interval(sums, counts, seed=3)
    assert bootstrap_interval([4.0], [2.0]) == (2.0, 2.0)
    low, high = bootstrap_interval([1.0, 0.0], [1.0, 0.0], samples=50)
    assert (low, high) == (1.0, 1.0)  # draws of the empty document alone say nothing


def test_interval_refuses_what_it_cannot_mean() -> None:
    with pytest.raises(ValueError, match="one number per document"):
        bootstrap_interval([1.0, 2.0], [1.0])
    with pytest.raises(ValueError, match="between 0 and 1"):
        bootstrap_interval([1.0], [1.0], level=95)


def test_qei_interval_surrounds_the_index() -> None:
    rng = np.random.default_rng(1)
    tokens = rng.integers(20, 60, 50).astype(float)
    student, teacher = tokens * rng.normal(3.2, 0.3, 50), tokens * rng.normal(2.3, 0.3, 50)
    index = np.exp((teacher.sum() - student.sum()) / tokens.sum()) / 0.1
    low, high = qei_interval(student, teacher, tokens, memory_ratio=0.1)
    assert low < index < high
