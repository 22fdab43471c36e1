"""A teacher's greedy answers to some conversations, each on disk before it counts, so that none is paid for twice."""

import asyncio
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import Completion, GenerateRequest, Message, RequestRefusedError, Sampling, Teacher
from bitnet_providers.prompts.load_prompts import Prompt
from bitnet_providers.raw.journal import JournalWriter, Rows, read_journal
from bitnet_providers.raw.write_shard import completion_columns, row_batch
from bitnet_providers.teachers.common.retry import Retries, RetryPolicy, answered, ask_with_retries

_WANTED = ("text", "token_logprobs", "usage", "latency_s", "finish_reason", "prompt_tokens", "model", "repairs")


def request_sha256(teacher: Teacher, kind: str, request: GenerateRequest) -> str:
    """sha256 of everything that decides an answer and how long it takes."""
    asked = attrs.asdict(request) | {"kind": kind, "teacher": dict(teacher.description)}
    text = json.dumps(asked, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


class BaselineJournal:
    """The answers of one round. A context manager; without a folder it keeps nothing.

    The files are those of `bitnet_providers.raw.journal`, in a folder of their own. A measurement is a round: its
    number stands where the collector's journal counts draws. A new measurement begins a round, a stopped one goes on
    with the last.
    """

    def __init__(self, folder: Path | None, *, resume: bool) -> None:
        """`resume`: go on with the last round that is there. Raises ProviderError for a file of another version."""
        rows = Rows() if folder is None else read_journal(folder).rows
        last = max((number for _, number in rows), default=-1)
        self._round = last if resume and rows else last + 1
        self._writer = None if folder is None else JournalWriter(folder)
        self._known = {
            sha256: {name: row.batch.column(name)[row.index].as_py() for name in _WANTED}
            for (sha256, number), row in rows.items()
            if number == self._round
        }

    def get(self, sha256: str) -> Mapping[str, Any] | None:
        """The columns of an answer of this round."""
        return self._known.get(sha256)

    def keep(self, sha256: str, number: int, prompt: Prompt, completion: Completion) -> Mapping[str, Any]:
        """Write an answer down, and wait until the disk has it.

        Raises OSError, and RequestRefusedError where its columns don't fit.
        """
        row = {
            "prompt_idx": number,
            "sample_idx": self._round,
            "request_sha256": sha256,
            "source_id": prompt.id,
            "kind": "sample",
            "format": prompt.format,
            "messages": json.dumps([dict(message) for message in prompt.messages], ensure_ascii=False),
            **completion_columns(completion),
        }
        batch = row_batch(row)
        if self._writer is not None:
            self._writer.append([batch])
        return row

    def __enter__(self) -> "BaselineJournal":
        return self

    def __exit__(self, *exception: Any) -> None:
        if self._writer is not None:
            self._writer.__exit__(*exception)


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
