"""Runs benchmarks on the student and its teacher, and makes values and 95 % intervals of what each item scored."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from bitnet_core.benchmarks.contract import AggregateScore, Benchmark, NotMeasured, Score, Subject
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.bootstrap import bootstrap_interval

Label = Callable[[Subject], list[str]]


def run_benchmarks(
    benchmarks: Mapping[str, Benchmark],
    subjects: Sequence[Subject],
    *,
    samples: int,
    seed: int,
    on_progress: Callable[[int, int, str], None],
    ran_in: Label = lambda subject: [],
) -> dict[str, dict[str, Any]]:
    """Every benchmark of every subject: ``{benchmark: {"scores", "absent", "ran_in", "details"}}``, plain JSON values.

    ``scores[score][role]`` has ``value``, ``interval_95`` and ``items``; ``absent[role]`` says why a role has none.
    `ran_in` says, and forgets, what a subject ran in since it was last asked.
    Raises CoreError: what a benchmark says the user must mend, and, with the benchmark's name, whatever else it raises.
    """
    report: dict[str, dict[str, Any]] = {}
    total = len(benchmarks) * len(subjects)
    for name, benchmark in benchmarks.items():
        entry: dict[str, Any] = {"scores": {}, "absent": {}, "ran_in": {}, "details": {}}
        for subject in subjects:
            on_progress(len(report) * len(subjects) + len(entry["ran_in"]), total, f"{name}: {subject.role}")
            ran_in(subject)
            try:
                result = benchmark(subject)
                measured = {each: measure(score, samples, seed) for each, score in result.scores.items()}
            except NotMeasured as reason:
                entry["absent"][subject.role] = str(reason)
                continue
            except CoreError as error:
                raise CoreError(f"{name}: {error.why}", error.fix) from error
            except Exception as error:  # a benchmark of somebody else's may raise anything
                raise CoreError(
                    f"the benchmark {name} failed on the {subject.role} ({type(error).__name__}: {error})",
                    "leave it out of evaluate.benchmarks, or tell its author",
                ) from error
            entry["ran_in"][subject.role] = "; ".join(ran_in(subject))
            if result.details is not None:
                entry["details"][subject.role] = result.details
            for each, figures in measured.items():
                score = result.scores[each]
                known = entry["scores"].setdefault(each, {"unit": score.unit, "quality": score.quality})
                if isinstance(score, Score) and score.chance is not None:
                    known["chance"] = score.chance
                known[subject.role] = figures
        report[name] = entry
    on_progress(total, total, "")
    return report


def measure(score: Score | AggregateScore, samples: int, seed: int) -> dict[str, Any]:
    """``value``, ``interval_95`` (both None where there is nothing to divide by) and ``items`` that count."""
    if isinstance(score, AggregateScore):
        return _aggregated(score, samples if score.samples is None else min(samples, score.samples), seed)
    sums = np.asarray(score.sums, dtype=np.float64)
    counts = np.ones_like(sums) if score.counts is None else np.asarray(score.counts, dtype=np.float64)
    total = float(counts.sum())
    if not total:
        return {"value": None, "interval_95": None, "items": 0}
    low, high = bootstrap_interval(sums, counts, samples=samples, seed=seed)
    figures = [float(sums.sum()) / total, low, high]
    value, low, high = (math.exp(min(each, 700.0)) for each in figures) if score.exp else figures
    return {"value": value, "interval_95": [low, high], "items": int((counts > 0).sum())}


def _aggregated(score: AggregateScore, samples: int, seed: int) -> dict[str, Any]:
    """As `bootstrap_interval`, of a function of all items; resamples that it can't take say nothing."""
    items = list(score.items)
    if not items:
        return {"value": None, "interval_95": None, "items": 0}
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(samples):
        drawn = [items[place] for place in generator.integers(0, len(items), len(items))]
        try:
            values.append(float(score.aggregate(drawn)))
        except (ValueError, ArithmeticError):
            continue
    finite = [value for value in values if math.isfinite(value)]
    low, high = (float(end) for end in np.percentile(finite, [2.5, 97.5])) if finite else (math.nan, math.nan)
    interval = [low, high] if finite else None
    return {"value": float(score.aggregate(items)), "interval_95": interval, "items": len(items)}
