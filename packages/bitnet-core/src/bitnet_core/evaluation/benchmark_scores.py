"""Runs benchmarks on the student in its runtime and on its teacher as far as it can be reached, and makes values and
95 % intervals of what each item scored.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_core.benchmarks.contract import (
    AggregateScore,
    Benchmark,
    Conversation,
    DocumentScores,
    NotMeasured,
    Score,
    Subject,
    TeacherAccess,
)
from bitnet_core.errors import CoreError
from bitnet_core.evaluation.bootstrap import percentiles, resampled_ratios
from bitnet_core.runtime.contract import Runtime, Sampling, answer


@attrs.frozen(eq=False)
class HeldoutIn:
    """Sums over held-out documents, and what they were measured in."""

    scores: DocumentScores
    where: str


@attrs.define(eq=False)
class StudentSubject:
    """The student as it is deployed."""

    name: str
    _runtime: Runtime
    _heldout: Callable[[], HeldoutIn]
    _teacher: Callable[[], Runtime]
    role: Literal["student"] = attrs.field(default="student", init=False)
    _used: dict[str, None] = attrs.field(factory=dict, init=False)

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        runtime = self.runtime()
        sampling = Sampling(max_new_tokens=max_new_tokens)
        return [answer(runtime, messages, sampling).text for messages in conversations]

    def heldout(self) -> DocumentScores:
        found = self._heldout()
        self._used[found.where] = None
        return found.scores

    def runtime(self) -> Runtime:
        self._used[self._runtime.description] = None
        return self._runtime

    def teacher_runtime(self) -> Runtime:
        return self._teacher()


@attrs.define(eq=False)
class TeacherSubject:
    """The teacher: its answers through its provider, its distributions as the traces have them, its model if local."""

    _access: TeacherAccess | None
    _heldout: Callable[[], DocumentScores]
    _open: Callable[[], Runtime]
    role: Literal["teacher"] = attrs.field(default="teacher", init=False)
    _used: dict[str, None] = attrs.field(factory=dict, init=False)

    @property
    def name(self) -> str:
        return "no teacher" if self._access is None else self._access.name

    def answers(self, conversations: Sequence[Conversation], max_new_tokens: int) -> list[str]:
        if self._access is None:
            raise NotMeasured("the manifest names no teacher that could be asked", "add a [teacher] section to it")
        said = self._access.answers(conversations, max_new_tokens)
        self._used[f"the teacher's own answers ({self._access.name})"] = None
        return said

    def heldout(self) -> DocumentScores:
        self._used["its log-probabilities in the traces"] = None
        return self._heldout()

    def runtime(self) -> Runtime:
        runtime = self._open()
        self._used[runtime.description] = None
        return runtime

    def teacher_runtime(self) -> Runtime:
        return self._open()


def used(subject: object) -> list[str]:
    """What `subject` ran in since this was last asked."""
    assert isinstance(subject, StudentSubject | TeacherSubject)
    names = list(subject._used)
    subject._used.clear()
    return names


@contextmanager
def teacher_subject(access: TeacherAccess | None, heldout: Callable[[], DocumentScores]) -> Iterator[TeacherSubject]:
    """The teacher; its model is loaded when a benchmark first wants it, and let go at the end."""
    with ExitStack() as stack:
        loaded: list[Runtime] = []

        def open_model() -> Runtime:
            if access is None:
                raise NotMeasured(
                    "the manifest names no teacher whose model could be loaded",
                    "add a [teacher] section with a model that is on this machine",
                )
            if not loaded:
                from bitnet_core.runtime.torch_runtime import open_torch

                loaded.append(stack.enter_context(open_torch(access.model_folder())))
            return loaded[0]

        yield TeacherSubject(access, heldout, open_model)


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
    ``scores[score]["difference_95"]`` is the paired interval of the first role's score less the second's,
    where both have as many items.
    `ran_in` says, and forgets, what a subject ran in since it was last asked.
    Raises CoreError: what a benchmark says the user must mend, and, with the benchmark's name, whatever else it raises.
    """
    report: dict[str, dict[str, Any]] = {}
    total = len(benchmarks) * len(subjects)
    for name, benchmark in benchmarks.items():
        entry: dict[str, Any] = {"scores": {}, "absent": {}, "ran_in": {}, "details": {}}
        drawn: dict[str, tuple[int, list[float]]] = {}
        for subject in subjects:
            on_progress(len(report) * len(subjects) + len(entry["ran_in"]), total, f"{name}: {subject.role}")
            ran_in(subject)
            try:
                result = benchmark(subject)
                measured = {
                    each: measured_over_resamples(score, samples, seed) for each, score in result.scores.items()
                }
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
            for each, (figures, resampled) in measured.items():
                score, of = result.scores[each], (_item_count(result.scores[each]), resampled)
                known = entry["scores"].setdefault(each, {"unit": score.unit, "quality": score.quality})
                if isinstance(score, Score) and score.chance is not None:
                    known["chance"] = score.chance
                known[subject.role] = figures
                if drawn.setdefault(each, of) is not of and drawn[each][0] == of[0]:
                    known["difference_95"] = paired_difference(drawn[each][1], resampled)
        report[name] = entry
    on_progress(total, total, "")
    return report


def measure(score: Score | AggregateScore, samples: int, seed: int) -> dict[str, Any]:
    """``value``, ``interval_95`` (both None where there is nothing to divide by) and ``items`` that count."""
    return measured_over_resamples(score, samples, seed)[0]


def measured_over_resamples(
    score: Score | AggregateScore, samples: int, seed: int
) -> tuple[dict[str, Any], list[float]]:
    """As `measure`, and what each resample gave."""
    value, items = _value(score)
    if value is None:
        return {"value": None, "interval_95": None, "items": 0}, []
    resampled = _resampled(score, samples, seed)
    low, high = percentiles(resampled)
    interval = [low, high] if isinstance(score, Score) or math.isfinite(low) else None
    return {"value": value, "interval_95": interval, "items": items}, resampled


def paired_difference(first: Sequence[float], second: Sequence[float]) -> list[float] | None:
    """The 95 % interval of first − second, of resamples that drew the same items (paired bootstrap); 0 in it: a tie."""
    low, high = percentiles(one - other for one, other in zip(first, second, strict=False))
    return [low, high] if math.isfinite(low) else None


def _value(score: Score | AggregateScore) -> tuple[float | None, int]:
    """The score over all items, and how many count; None where there is nothing to divide by."""
    if isinstance(score, AggregateScore):
        items = list(score.items)
        return (float(score.aggregate(items)), len(items)) if items else (None, 0)
    counts = _counts(score)
    total = float(counts.sum())
    return (_end(score, float(np.sum(score.sums)) / total), int((counts > 0).sum())) if total else (None, 0)


def _resampled(score: Score | AggregateScore, samples: int, seed: int) -> list[float]:
    """The score of each resample; NaN of those that it can't be taken of. The same seed draws the same items."""
    if isinstance(score, Score):
        ratios = resampled_ratios(score.sums, _counts(score), samples=samples, seed=seed)
        return [_end(score, ratio) for ratio in ratios.tolist()]
    items = list(score.items)
    generator = np.random.default_rng(seed)
    values = []
    for _ in range(samples if score.samples is None else min(samples, score.samples)):
        drawn = [items[place] for place in generator.integers(0, len(items), len(items))]
        try:
            values.append(float(score.aggregate(drawn)))
        except (ValueError, ArithmeticError):
            values.append(math.nan)
    return values


def _item_count(score: Score | AggregateScore) -> int:
    """Items, those that don't count included."""
    return len(score.sums if isinstance(score, Score) else score.items)


def _counts(score: Score) -> NDArray[np.float64]:
    return np.ones(len(score.sums)) if score.counts is None else np.asarray(score.counts, dtype=np.float64)


def _end(score: Score, ratio: float) -> float:
    return math.exp(min(ratio, 700.0)) if score.exp else ratio
