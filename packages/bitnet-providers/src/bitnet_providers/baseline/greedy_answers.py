"""A teacher's greedy answers to some conversations, each paid for once: what a benchmark scores it by."""

import asyncio
import json
from collections.abc import Sequence
from pathlib import Path

from bitnet_providers.baseline.baseline_journal import BaselineJournal, request_sha256
from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import GenerateRequest, Message, RequestRefusedError, Sampling, Teacher
from bitnet_providers.prompts.load_prompts import Prompt
from bitnet_providers.teachers.common.retry import Retries, RetryPolicy, answered, ask_with_retries

AT_ONCE = 8


async def greedy_answers(
    teacher: Teacher,
    conversations: Sequence[Sequence[Message]],
    max_new_tokens: int,
    *,
    config: BaselineConfig | None = None,
    journal_folder: Path | None = None,
    teacher_kind: str = "",
) -> list[str]:
    """The text of each answer, in order; a conversation that the teacher refuses has an empty one.

    With a `journal_folder` every answer is on the disk before it counts, and one that is there is never asked for
    again. `config` gives retries and temperature. `teacher_kind` is the manifest's name for the teacher.
    Raises ProviderError, and OSError for a disk that takes no more.
    """
    temperature = 0.0 if config is None else config.temperature
    policy = RetryPolicy(6, 1.0) if config is None else RetryPolicy(config.retries, config.retry_wait_s)
    sampling = Sampling(temperature=temperature, max_new_tokens=max_new_tokens)
    end_of_turn = str(teacher.description.get("end_of_turn") or "")
    places = asyncio.Semaphore(AT_ONCE)
    with BaselineJournal(journal_folder, resume=True) as journal:

        async def answer(number: int, messages: Sequence[Message]) -> str:
            request = GenerateRequest(tuple(messages), sampling, top_logprobs=0)
            key = request_sha256(teacher, teacher_kind, request)
            row = journal.get(key)
            if row is None:
                async with places:
                    try:
                        completion = await ask_with_retries(lambda: answered(teacher, request), policy, Retries())
                        row = journal.keep(key, number, Prompt(str(number), request.messages), completion)
                    except RequestRefusedError:
                        return ""
            text: str = row["text"].decode("utf-8", "replace")
            return text.removesuffix(end_of_turn)

        tasks: dict[str, asyncio.Task[str]] = {}  # of each conversation: one that is there twice is asked once
        keys = [json.dumps([dict(message) for message in each]) for each in conversations]
        for number, (key, each) in enumerate(zip(keys, conversations, strict=True)):
            if key not in tasks:
                tasks[key] = asyncio.create_task(answer(number, each))
        try:
            await asyncio.gather(*tasks.values())
            return [tasks[key].result() for key in keys]
        finally:
            for task in tasks.values():
                task.cancel()
