"""The teacher's baseline: greedy answers, one request at a time, timed."""

import hashlib
import platform
import statistics
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import attrs

from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import Completion, GenerateRequest, ProviderError, Sampling, Teacher
from bitnet_providers.prompts import Prompt, load_prompts


async def run_baseline(
    teacher: Teacher,
    config: BaselineConfig,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
) -> dict[str, Any]:
    """Answer the first prompts of a file greedily; returns the JSON of ``reports/teacher_baseline.json``.

    ``tokens_per_second`` is all tokens over all seconds from sending a request to its last token, so reading the prompt
    counts (and, for a hosted teacher, the network); median, least and greatest are over single answers. Warm-up answers
    are not in any figure. Raises ProviderError.
    """
    prompts = load_prompts(config.prompts)[: config.max_prompts]
    sampling = Sampling(temperature=0.0, max_new_tokens=config.max_new_tokens)

    async def ask(prompt: Prompt) -> Completion:
        try:
            return await teacher.generate(GenerateRequest(prompt.messages, sampling, top_logprobs=0))
        except ProviderError as error:
            raise ProviderError(f'[baseline] prompt "{prompt.id}": {error}') from error

    for number in range(config.warmup):
        on_progress(0, len(prompts), "warming up")
        await ask(prompts[number % len(prompts)])
    answers: list[dict[str, Any]] = []
    for prompt in prompts:
        completion = await ask(prompt)
        answers.append(_answer(prompt, completion, str(teacher.description.get("end_of_turn") or "")))
        on_progress(len(answers), len(prompts), f"{_rate(answers[-1]):.1f} tok/s")
    rates = [_rate(answer) for answer in answers]
    return {
        "version": 1,
        "teacher": dict(teacher.description),
        "tokens_per_second": sum(a["tokens"] for a in answers) / sum(a["seconds"] for a in answers),
        "tokens_per_second_median": statistics.median(rates),
        "tokens_per_second_min": min(rates),
        "tokens_per_second_max": max(rates),
        "tokens": sum(answer["tokens"] for answer in answers),
        "seconds": sum(answer["seconds"] for answer in answers),
        "memory_bytes": teacher.description.get("memory_bytes"),
        "prompts_sha256": hashlib.sha256(config.prompts.read_bytes()).hexdigest(),
        "config": attrs.asdict(config, value_serializer=lambda _, __, value: str(value) if _is_path(value) else value),
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "answers": answers,
    }


def _answer(prompt: Prompt, completion: Completion, end_of_turn: str) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "messages": [dict(message) for message in prompt.messages],
        "format": prompt.format,
        "text": completion.text.decode("utf-8", "replace").removesuffix(end_of_turn),
        "tokens": len(completion.token_logprobs),
        "seconds": completion.latency_s,
        "finish_reason": completion.finish_reason,
        "prompt_tokens": completion.prompt_tokens,
    }


def _rate(answer: dict[str, Any]) -> float:
    return float(answer["tokens"] / answer["seconds"]) if answer["seconds"] > 0 else 0.0


def _is_path(value: object) -> bool:
    return hasattr(value, "__fspath__")
