"""``lm_eval``: tasks of lm-evaluation-harness (Gao et al.; extra ``lm-eval``), student and teacher one way.

The harness makes the requests and scores the answers; values and intervals are made here of its scores of each
document, so that they are those of every other benchmark.
"""

import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from importlib import metadata
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from bitnet_core.benchmarks.contract import AggregateScore, Benchmark, Quality, Result, Score, Subject
from bitnet_core.config.evaluate import LMEvalOptions
from bitnet_core.errors import CoreError

SHIPPED = Path(__file__).parent / "lm_eval_tasks"
SLOW_AGGREGATIONS = ("bleu", "chrf", "ter")
SLOW_SAMPLES = 100
"""Resamples of a score that takes a whole corpus each time."""
SEED = 1234
"""Of the few-shot examples, as the harness's command line has it."""


def load_lm_eval(options: LMEvalOptions) -> Benchmark:
    """The harness's tasks as one benchmark. Raises CoreError: no such task, or its data can't be had."""
    with _errors_only():
        tasks = load_tasks(options)

    def run(subject: Subject) -> Result:
        from lm_eval.evaluator import evaluate

        from bitnet_core.benchmarks.lm_eval_model import language_model

        with _errors_only():
            found = evaluate(
                lm=language_model(subject.runtime(), options.batch_size),
                task_dict=tasks,
                limit=options.limit,
                bootstrap_iters=0,
                apply_chat_template=options.apply_chat_template,
                fewshot_as_multiturn=options.apply_chat_template,
            )
        scores: dict[str, Score | AggregateScore] = {}
        for name, samples in found["samples"].items():
            scores |= task_scores(name, tasks["tasks"][name], samples)
        versions = {name: found["versions"].get(name) for name in found["samples"]}
        return Result(scores=scores, details={"lm_eval": metadata.version("lm-eval"), "task_versions": versions})

    return run


def load_tasks(options: LMEvalOptions) -> Any:
    """The harness's tasks with their data: those shipped here, those of `include_path`, else its own."""
    from lm_eval.tasks import TaskManager

    folders = [str(SHIPPED), *([options.include_path] if options.include_path else [])]
    # Looking through the harness's own thousands of tasks takes seconds: only where one of them is wanted.
    manager = TaskManager(include_path=folders, include_defaults=False)
    if not set(options.tasks) <= set(manager.all_tasks):
        manager = TaskManager(include_path=folders)
    unknown = [name for name in options.tasks if name not in manager.all_tasks]
    if unknown:
        near = _near(unknown[0], manager.all_tasks)
        raise CoreError(f'there is no task "{unknown[0]}"{near}', "choose one that `lm_eval ls tasks` lists")
    try:
        loaded = manager.load(list(options.tasks))
    except Exception as error:  # whatever a task's data raises where it can't be had
        raise CoreError(
            f"{', '.join(options.tasks)} can't be loaded ({type(error).__name__}: {_first_line(error)})",
            "see that the Hugging Face Hub, which has a task's data, can be reached once, or name tasks that are here",
        ) from error
    for task in loaded["tasks"].values():
        own = task.get_config("num_fewshot")
        if options.num_fewshot is not None and own != 0:  # a task that sets 0 means it
            task.set_config(key="num_fewshot", value=options.num_fewshot)
        elif own is None:
            task.set_config(key="num_fewshot", value=0)
        task.set_fewshot_seed(seed=SEED)
    return loaded


def task_scores(name: str, task: Any, samples: list[dict[str, Any]]) -> dict[str, Score | AggregateScore]:
    """``TASK.METRIC`` (``TASK.METRIC.FILTER`` where the task has several filters) → the score of its documents."""
    aggregations, higher = task.aggregation(), task.higher_is_better()
    items: dict[tuple[str, str], list[Any]] = {}
    for sample in samples:
        for metric in sample["metrics"]:
            items.setdefault((metric, sample["filter"]), []).append(sample[metric])
    scores: dict[str, Score | AggregateScore] = {}
    for (metric, filter_), values in items.items():
        aggregate = aggregations.get(metric)
        if aggregate is None or _called(aggregate) == "bypass_agg":
            continue
        label = f"{name}.{metric}" if filter_ == "none" else f"{name}.{metric}.{filter_}"
        quality: Quality = "value" if higher.get(metric, True) else "inverse"
        found = _score(aggregate, values, quality)
        if isinstance(found, Score) and metric in ACCURACIES:
            found = attrs.evolve(found, chance=_chance(task, samples))
        scores[label] = found
    return scores


ACCURACIES = ("acc", "acc_norm", "acc_bytes")
"""The harness's names of a share of right choices."""


def _chance(task: Any, samples: list[dict[str, Any]]) -> float | None:
    """What guessing among the choices would score; None where there are no choices."""
    if task.OUTPUT_TYPE != "multiple_choice":
        return None
    documents = {sample["doc_id"]: sample["doc"] for sample in samples}
    return float(np.mean([1 / len(task.doc_to_choice(document)) for document in documents.values()]))


def _score(aggregate: Callable[[list[Any]], float], values: list[Any], quality: Quality) -> Score | AggregateScore:
    if _called(aggregate) == "mean" and all(isinstance(value, int | float) for value in values):
        return Score(sums=values, quality=quality)
    samples = SLOW_SAMPLES if _called(aggregate) in SLOW_AGGREGATIONS else None
    return AggregateScore(items=values, aggregate=aggregate, samples=samples, quality=quality)


@contextmanager
def _errors_only() -> Iterator[None]:
    """The harness warns of its own tasks' style, a page at a time."""
    logger = logging.getLogger("lm_eval")
    before = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(before)


def _called(aggregate: Any) -> str:
    return str(getattr(aggregate.func if isinstance(aggregate, partial) else aggregate, "__name__", ""))


def _near(name: str, known: list[str]) -> str:
    from difflib import get_close_matches

    match = get_close_matches(name, known, n=1)
    return f'; did you mean "{match[0]}"?' if match else ""


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [""])[0][:200]


def check(options: LMEvalOptions) -> list[str]:
    """What can be said without loading the harness."""
    if options.include_path and not Path(options.include_path).is_dir():
        return [f"include_path: there is no folder {options.include_path}"]
    return []
