"""The quality-efficiency index: what a student keeps of its teacher's quality, per byte it needs.

QEI = (Q_s/Q_t) / (M_s/M_t) and QEI_speed = QEI · TPS_s/TPS_t, with Q = 1/perplexity of the same held-out text (or the
score of a named benchmark), M = memory of the weights in bytes, TPS = decode speed in tokens per second; s is the
student, t the teacher. Above 1 the student gives more quality per byte. A figure whose inputs are not known is absent
(None), and the record says why: nothing is guessed.
"""

import math
from collections.abc import Mapping
from typing import Any, cast

import attrs
import numpy as np
from numpy.typing import ArrayLike

from bitnet_core.evaluation.bootstrap import bootstrap_interval


@attrs.frozen
class Measured:
    """One input of the index."""

    value: float | None
    """None: not known."""
    source: str
    """Where the figure comes from, or, where it is None, why it isn't known."""


@attrs.frozen(kw_only=True)
class QEIInputs:
    student_quality: Measured
    teacher_quality: Measured
    student_memory_bytes: Measured
    teacher_memory_bytes: Measured
    student_tokens_per_second: Measured
    teacher_tokens_per_second: Measured


def quality_from_perplexity(perplexity: float | None, source: str) -> Measured:
    """Q = 1/perplexity (dimensionless, at most 1)."""
    return Measured(None if perplexity is None else 1.0 / perplexity, f"1 / perplexity, {source}")


def qei(inputs: QEIInputs) -> float | None:
    """(Q_s/Q_t) / (M_s/M_t), or None where an input is unknown (see `missing`)."""
    quality = _ratio(inputs.student_quality, inputs.teacher_quality)
    memory = _ratio(inputs.student_memory_bytes, inputs.teacher_memory_bytes)
    return None if quality is None or memory is None else quality / memory


def qei_speed(inputs: QEIInputs) -> float | None:
    """QEI · TPS_s/TPS_t, or None where an input is unknown."""
    index, speed = qei(inputs), _ratio(inputs.student_tokens_per_second, inputs.teacher_tokens_per_second)
    return None if index is None or speed is None else index * speed


def missing(inputs: QEIInputs) -> dict[str, str]:
    """Why figures are absent: the name of each unusable input, and its reason."""
    return {
        field.name: measured.source if measured.value is None else f"{measured.value} is no positive finite number"
        for field in attrs.fields(QEIInputs)
        if not _usable(measured := getattr(inputs, field.name))
    }


def quality_efficiency(report: Mapping[str, Any], quality: str = "perplexity") -> dict[str, Any]:
    """``qei``, ``qei_speed`` and ``qei_inputs`` from the evaluation report's own figures.

    Reads benchmarks (else perplexity, teacher_perplexity), memory_bytes, teacher_memory_bytes, tokens_per_second and
    teacher_tokens_per_second; each may be absent or None, then the index is None and ``qei_missing`` says why.
    ``teacher_clock`` (by whose clock the teacher was timed), ``memory_source`` and ``runtime`` go into the inputs'
    source. `quality` is "perplexity" or "benchmark.score".
    """

    def figure(name: str, source: str, reason: str) -> Measured:
        value = report.get(name)
        return Measured(value, source if value is not None else reason)

    inputs = QEIInputs(
        student_quality=benchmark_quality(report, quality, "student"),
        teacher_quality=benchmark_quality(report, quality, "teacher"),
        student_memory_bytes=figure(
            "memory_bytes",
            report.get("memory_source", "packed weights, computed"),
            "the student's memory was not measured",
        ),
        teacher_memory_bytes=figure(
            "teacher_memory_bytes",
            "reported by the teacher's baseline",
            "the teacher's memory is not known (a hosted teacher doesn't tell)",
        ),
        student_tokens_per_second=figure(
            "tokens_per_second",
            f"greedy decoding in {report.get('runtime', 'torch, fake quantisation')}",
            "the student's speed was not measured",
        ),
        teacher_tokens_per_second=figure(
            "teacher_tokens_per_second",
            "; ".join(filter(None, ("greedy decoding, the teacher's baseline", report.get("teacher_clock")))),
            "the teacher's speed was not measured",
        ),
    )
    return {
        "qei": qei(inputs),
        "qei_speed": qei_speed(inputs),
        "qei_quality": quality,
        "qei_inputs": attrs.asdict(inputs),
        "qei_missing": missing(inputs),
    }


def benchmark_quality(report: Mapping[str, Any], quality: str, role: str) -> Measured:
    """Q of the student or the teacher: of the score that `quality` names, or 1/perplexity of the held-out text."""
    benchmark, _, score = ("heldout.perplexity" if quality == "perplexity" else quality).partition(".")
    entry = (report.get("benchmarks") or {}).get(benchmark)
    if entry is None and quality == "perplexity":
        value = report.get("perplexity" if role == "student" else "teacher_perplexity")
        if value is None:
            return Measured(None, f"the {role}'s perplexity was not measured")
        return quality_from_perplexity(value, "on the same held-out tokens, by the same code")
    if entry is None:
        return Measured(None, f"the benchmark {benchmark} did not run")
    if role in entry["absent"]:
        return Measured(None, f"{benchmark} of the {role}: {entry['absent'][role]}")
    if score not in entry["scores"]:
        return Measured(None, f"{benchmark} has no score {score}, but {', '.join(entry['scores']) or 'none at all'}")
    kind, found = entry["scores"][score]["quality"], entry["scores"][score].get(role) or {}
    value = found.get("value")
    if value is None:
        return Measured(None, f"{benchmark}.{score} of the {role} has no items")
    if kind == "none":
        return Measured(None, f"{benchmark}.{score} is no quality: name a score that is higher where a model is better")
    chance, interval = entry["scores"][score].get("chance"), found.get("interval_95")
    if chance is not None and (interval is None or interval[0] <= chance):
        return Measured(None, f"{benchmark}.{score} of the {role} is not above chance ({chance:.3g})")
    source = f"{benchmark}.{score} over {found['items']:,} items, {entry['ran_in'].get(role, '')}".rstrip(", ")
    return quality_from_perplexity(value, source) if kind == "inverse" and value else Measured(value, source)


def qei_interval(
    student_nll_D: ArrayLike,
    teacher_nll_D: ArrayLike,
    tokens_D: ArrayLike,
    memory_ratio: float,
    *,
    samples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """Interval of the QEI over documents, with M_s/M_t given: Q_s/Q_t = exp(mean over tokens of nll_t − nll_s), paired.

    The arrays hold nats (and tokens) summed for each document.
    """
    advantage_D = np.asarray(teacher_nll_D, dtype=np.float64) - np.asarray(student_nll_D, dtype=np.float64)
    low, high = bootstrap_interval(advantage_D, tokens_D, samples=samples, seed=seed, level=level)
    return math.exp(low) / memory_ratio, math.exp(high) / memory_ratio


def _usable(measured: Measured) -> bool:
    return measured.value is not None and math.isfinite(measured.value) and measured.value > 0


def _ratio(above: Measured, below: Measured) -> float | None:
    if not (_usable(above) and _usable(below)):
        return None
    return cast(float, above.value) / cast(float, below.value)
