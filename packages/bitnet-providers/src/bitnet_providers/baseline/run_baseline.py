"""The teacher's baseline: greedy answers, one request at a time, timed. What is timed: docs/baseline.md."""

import hashlib
import json
import math
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.baseline.greedy_answers import BaselineJournal, request_sha256
from bitnet_providers.baseline.speed import speed_figures
from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import (
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    Sampling,
    Teacher,
)
from bitnet_providers.prompts.load_prompts import Prompt, baseline_prompts
from bitnet_providers.teachers.common.retry import Retries, RetryPolicy, answered, ask_with_retries

OnProgress = Callable[[int, int, str], None]
"""(answers done, answers in all, a short note)"""


async def run_baseline(
    teacher: Teacher,
    config: BaselineConfig,
    on_progress: OnProgress = lambda done, total, note: None,
    *,
    journal_folder: Path | None = None,
    resume: bool = False,
    teacher_kind: str = "",
) -> dict[str, Any]:
    """Answer the first prompts of a file greedily; returns the JSON of ``reports/teacher_baseline.json``.

    Speeds are by the server's own clock where it tells one, else from sending a request to its last token (``clock``
    says which); warm-up answers are in no figure. A prompt that the teacher refuses is listed (``refused``) and left
    out. With a `journal_folder` every answer is on the disk before it counts; with `resume` those of the last,
    stopped measurement are not asked for again. `teacher_kind` is the manifest's name for the teacher.
    Raises ProviderError, and OSError for a disk that takes no more.
    """
    prompts = baseline_prompts(config).items
    sampling = Sampling(temperature=config.temperature, max_new_tokens=config.max_new_tokens)
    requests = [GenerateRequest(prompt.messages, sampling, top_logprobs=0) for prompt in prompts]
    policy, counted = RetryPolicy(config.retries, config.retry_wait_s), Retries()
    end_of_turn = str(teacher.description.get("end_of_turn") or "")
    answers: list[dict[str, Any]] = []
    refused: list[dict[str, str]] = []

    async def ask(prompt: Prompt, request: GenerateRequest) -> Completion:
        def on_wait(seconds: float, error: RetryableError) -> None:
            on_progress(len(answers), len(prompts), f"waiting {seconds:.0f} s: {error}")

        with _prompt_named(prompt):
            return await ask_with_retries(lambda: answered(teacher, request), policy, counted, on_wait)

    with BaselineJournal(journal_folder, resume=resume) as journal:
        keys = [request_sha256(teacher, teacher_kind, request) for request in requests]
        missing = [index for index, key in enumerate(keys) if journal.get(key) is None]
        reused = len(prompts) - len(missing)
        await _warm_up(ask, [(prompts[index], requests[index]) for index in missing], config.warmup, on_progress)
        for number, (prompt, request, key) in enumerate(zip(prompts, requests, keys, strict=True)):
            row = journal.get(key)
            if row is None:
                try:
                    row = journal.keep(key, number, prompt, await ask(prompt, request))
                except RequestRefusedError as error:
                    refused.append({"id": prompt.id, "reason": error.why})
                    continue
            answers.append(_answer(prompt, row, end_of_turn))
            on_progress(len(answers) + len(refused), len(prompts), _note(answers[-1]))
    if not answers:
        raise ProviderError(
            f"[baseline] the teacher refused every prompt, the last with: {refused[-1]['reason']}",
            "mend the prompts of baseline.prompts, or use another teacher",
        )
    return {
        **_header(teacher, config, prompts, answers),
        "reused": reused,
        "retries": counted.retries,
        "possibly_paid": counted.possibly_paid,
        "refused": refused,
        "answers": answers,
    }


@contextmanager
def _prompt_named(prompt: Prompt) -> Iterator[None]:
    """Errors name the prompt; a refusal of it is told by who left it out."""
    try:
        yield
    except RequestRefusedError:
        raise
    except ProviderError as error:
        raise ProviderError(f'[baseline] prompt "{prompt.id}": {error.why}', error.fix) from error


def _header(
    teacher: Teacher, config: BaselineConfig, prompts: Sequence[Prompt], answers: Sequence[dict[str, Any]]
) -> dict[str, Any]:
    """Who was measured, how, on which machine, and the figures."""
    return {
        "version": 2,
        "teacher": dict(teacher.description),
        **speed_figures(answers, in_process=not teacher.capabilities.paced),
        "reasoning_tokens": sum(answer["reasoning_tokens"] for answer in answers),
        "memory_bytes": teacher.description.get("memory_bytes"),
        "prompts_sha256": _prompts_sha256(prompts),
        "config": attrs.asdict(config, value_serializer=lambda _, __, value: str(value) if _is_path(value) else value),
        "machine": f"{platform.system()} {platform.machine()}",
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


async def _warm_up(
    ask: Callable[[Prompt, GenerateRequest], Any],
    missing: Sequence[tuple[Prompt, GenerateRequest]],
    times: int,
    on_progress: OnProgress,
) -> None:
    """Ask, and forget the answers: connections are made and caches filled. Nothing where nothing is to be asked."""
    for number in range(times if missing else 0):
        on_progress(0, len(missing), "warming up")
        try:
            await ask(*missing[number % len(missing)])
        except RequestRefusedError:
            continue  # it is told where it counts


def _answer(prompt: Prompt, row: Mapping[str, Any], end_of_turn: str) -> dict[str, Any]:
    """`row`: a completion in the columns of a raw shard."""
    usage: Mapping[str, float] = json.loads(row["usage"]) if row["usage"] else {}
    return {
        "id": prompt.id,
        "messages": [dict(message) for message in prompt.messages],
        "format": prompt.format,
        "text": row["text"].decode("utf-8", "replace").removesuffix(end_of_turn),
        "tokens": _tokens(usage, row["token_logprobs"]),
        "seconds": row["latency_s"],
        "prompt_s": usage.get("prompt_s"),
        "decode_s": usage.get("decode_s"),
        "reasoning_tokens": int(usage.get("reasoning_tokens", 0)),
        "finish_reason": row["finish_reason"],
        "prompt_tokens": row["prompt_tokens"],
        "model": row["model"],
    }


def _tokens(usage: Mapping[str, float], token_logprobs: Sequence[float]) -> int | None:
    """The provider's count (its hidden thoughts took their time, too), else the tokens that it told; None: neither."""
    if "completion_tokens" in usage:
        return int(usage["completion_tokens"])
    untold = len(token_logprobs) == 1 and math.isnan(token_logprobs[0])
    return None if untold else len(token_logprobs)


def _note(answer: Mapping[str, Any]) -> str:
    seconds = answer["decode_s"] or answer["seconds"]
    return f"{answer['tokens'] / seconds:.1f} tok/s" if answer["tokens"] and seconds > 0 else "no token count"


def _prompts_sha256(prompts: Sequence[Prompt]) -> str:
    """Of the prompts that were asked, whatever file they came in."""
    said = [[prompt.id, [dict(message) for message in prompt.messages], prompt.format] for prompt in prompts]
    return hashlib.sha256(json.dumps(said, sort_keys=True, ensure_ascii=False).encode()).hexdigest()


def _is_path(value: object) -> bool:
    return hasattr(value, "__fspath__")
