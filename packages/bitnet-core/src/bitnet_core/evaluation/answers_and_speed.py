"""Greedy answers of a student: samples for the report, and its decode speed, beside the baseline's."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from bitnet_core.benchmarks.json_parsing import parses
from bitnet_core.evaluation.job import Evaluation, OnProgress
from bitnet_core.runtime.contract import Runtime, Sampling, answer


def greedy_answers(
    runtime: Runtime,
    prompts: Sequence[Mapping[str, Any]],
    max_new_tokens: int,
    on_progress: Callable[[int, int, str], None],
) -> dict[str, Any]:
    """Answer each prompt (a record with ``id``, ``messages`` and maybe ``format``) alone, one token after the other.

    Returns ``answers``, the decode speed in tokens per second (all tokens over all seconds, reading the prompt
    included, and the median and spread over prompts), and ``json_validity``. The last prompt is answered once more
    before the clock starts: the last, since a runtime may keep what it has read.
    """
    sampling = Sampling(max_new_tokens=max_new_tokens)
    answer(runtime, prompts[-1]["messages"], sampling)
    answers: list[dict[str, Any]] = []
    for number, prompt in enumerate(prompts, 1):
        said = answer(runtime, prompt["messages"], sampling)
        answers.append(
            {
                "id": prompt["id"],
                "messages": list(prompt["messages"]),
                "format": prompt.get("format"),
                "text": said.text,
                "tokens": said.tokens,
                "seconds": said.seconds,
            }
        )
        on_progress(number, len(prompts), f"{said.tokens / said.seconds:.1f} tok/s")
    return {"answers": answers, **decode_speed(answers), "json_validity": json_validity(answers)}


def decode_speed(answers: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Tokens per second over all answers, and the median, least and greatest over single answers."""
    rates = [answer["tokens"] / answer["seconds"] for answer in answers]
    return {
        "tokens_per_second": sum(a["tokens"] for a in answers) / sum(a["seconds"] for a in answers),
        "tokens_per_second_median": statistics.median(rates),
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
    }


def json_validity(answers: Sequence[Mapping[str, Any]]) -> float | None:
    """The share of answers to JSON prompts that are JSON (see `json_parsing`); None without such prompts."""
    asked = [answer["text"] for answer in answers if answer["format"] == "json"]
    return sum(map(parses, asked)) / len(asked) if asked else None


def generation_figures(job: Evaluation, runtime: Runtime, on_progress: OnProgress) -> dict[str, Any]:
    """Answers and speed beside the baseline's; nothing without one."""
    if job.baseline is None:
        return {}
    prompts = job.baseline["answers"][: job.config.max_prompts]
    generation = greedy_answers(runtime, prompts, job.config.max_new_tokens, on_progress)
    return {
        "tokens_per_second": generation["tokens_per_second"],
        "teacher_tokens_per_second": job.baseline["tokens_per_second"],
        "teacher_clock": job.baseline.get("clock_note"),
        "teacher_memory_bytes": job.baseline["teacher"].get("memory_bytes"),
        "generation": generation,
        "teacher_answers": prompts,
    }
