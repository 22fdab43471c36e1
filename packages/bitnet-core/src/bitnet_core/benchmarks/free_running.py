"""``free_running``: what a model says by itself, where it must go on from its own words and not the teacher's.

Of answers drawn from it: how likely the teacher finds them, how many end by themselves, how much they repeat
themselves, and how many are JSON where JSON was asked for.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.benchmarks.contract import (
    AggregateScore,
    Benchmark,
    Conversation,
    NotMeasured,
    Result,
    Score,
    Subject,
)
from bitnet_core.benchmarks.json_validity import parse_answer
from bitnet_core.benchmarks.prompt_file import messages_of, read_records
from bitnet_core.benchmarks.text_perplexity import per_byte, scoring, text_nats
from bitnet_core.config.evaluate import FreeRunningOptions
from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Answer, Sampling, ScoringRuntime, answer

GRAM = 4
"""Words in a row: such that stood in the answer before are repetition."""


@attrs.frozen
class FreePrompt:
    id: str
    messages: Conversation
    wants_json: bool


def load_free_prompts(options: FreeRunningOptions) -> list[FreePrompt]:
    """Raises CoreError with file, line and fix."""
    found = [
        FreePrompt(str(record.get("id", number)), messages_of(record, where), record.get("format") == "json")
        for number, (where, record) in enumerate(read_records(options.prompts, "prompt", '{"prompt": "..."}'), 1)
    ]
    return found[: options.max_prompts]


def check(options: FreeRunningOptions) -> list[str]:
    """What is wrong with the prompts file, before anything else runs."""
    try:
        load_free_prompts(options)
    except CoreError as error:
        return [str(error)]
    return []


def load_free_running(options: FreeRunningOptions) -> Benchmark:
    """Raises CoreError for a prompts file that can't be read."""
    prompts = load_free_prompts(options)

    def run(subject: Subject) -> Result:
        runtime, judge = subject.runtime(), _judge(subject)
        rows = []
        for number, prompt in enumerate(prompts):
            sampling = Sampling(
                max_new_tokens=options.max_new_tokens, temperature=options.temperature, seed=options.seed + number
            )
            rows.append(_row(prompt, answer(runtime, prompt.messages, sampling), judge))
        return Result(scores=dict(_scores(rows)), details={"settings": _settings(options), "answers": rows})

    return run


def repeated(text: str) -> tuple[int, int]:
    """(word 4-grams that stood in the text before, all of them)."""
    words = re.findall(r"\w+", text.casefold())
    grams = [tuple(words[i : i + GRAM]) for i in range(len(words) - GRAM + 1)]
    return len(grams) - len(set(grams)), len(grams)


def _judge(subject: Subject) -> ScoringRuntime | None:
    """The teacher's model; None where it can't be had, and what needs it is absent."""
    try:
        return scoring(subject.teacher_runtime())
    except NotMeasured:
        return None


def _row(prompt: FreePrompt, said: Answer, judge: ScoringRuntime | None) -> dict[str, Any]:
    row: dict[str, Any] = {"id": prompt.id, "text": said.text, "ended": said.reason == "stop"}
    row["repeated"], row["grams"] = repeated(said.text)
    if prompt.wants_json:
        row["parsed"] = _is_json(said.text)
    if judge is not None:
        row["nats"], row["bytes"] = text_nats(judge, prompt.messages, said.text, said.tokens + 64)
    return row


def _is_json(text: str) -> bool:
    try:
        parse_answer(text)
    except ValueError:
        return False
    return True


def _scores(rows: list[dict[str, Any]]) -> Iterator[tuple[str, Score | AggregateScore]]:
    judged = [(row["nats"], row["bytes"]) for row in rows if row.get("bytes")]
    if judged:
        yield "teacher_perplexity", attrs.evolve(per_byte(judged), unit="the teacher's perplexity of it, per byte")
    yield "ended", Score(sums=[row["ended"] for row in rows], unit="share that ends by itself")
    if any(row["grams"] for row in rows):
        unit = "share of word 4-grams that stood there before"
        counts = [row["grams"] for row in rows]
        yield "repetition", Score(sums=[row["repeated"] for row in rows], counts=counts, unit=unit, quality="none")
    if asked := [row["parsed"] for row in rows if "parsed" in row]:
        yield "json_parsed", Score(sums=asked, unit="share of the answers to prompts for JSON")


def _settings(options: FreeRunningOptions) -> dict[str, Any]:
    return {name: value for name, value in attrs.asdict(options).items() if not isinstance(value, Path)}
