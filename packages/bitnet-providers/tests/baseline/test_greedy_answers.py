"""Answers for the benchmarks: in order, several at once, and paid for once."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_providers.baseline.greedy_answers import AT_ONCE, greedy_answers
from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
)

QUESTIONS = [[{"role": "user", "content": f"question {number}"}] for number in range(12)]


class Hosted:
    """Counts what it is asked, and how many wait at once."""

    capabilities = Capabilities(max_top_logprobs=0, token_ids=False, token_bytes=False, scoring=False, external=True)

    def __init__(self, *trouble: Exception) -> None:
        self.description = {"model": "hosted", "end_of_turn": "<end>"}
        self.trouble = list(trouble)
        self.asked: list[GenerateRequest] = []
        self.waiting = self.most_waiting = 0

    async def generate(self, request: GenerateRequest) -> Completion:
        self.asked.append(request)
        if self.trouble:
            raise self.trouble.pop(0)
        self.waiting += 1
        self.most_waiting = max(self.most_waiting, self.waiting)
        await asyncio.sleep(0)
        self.waiting -= 1
        said = f"about {request.messages[-1]['content']}<end>".encode()
        return Completion(
            text=said, token_logprobs=np.full(1, np.nan, np.float32), candidate_counts=np.zeros(1, np.int32),
            candidate_logprobs=np.zeros(0, np.float32), finish_reason="stop", model="hosted-1", prompt_tokens=3,
            latency_s=0.1, token_bytes=(said,), candidate_bytes=(), usage={"completion_tokens": 2},
        )  # fmt: skip

    async def score(self, request: Any) -> Completion:
        raise ProviderError("no scoring")

    async def aclose(self) -> None: ...


def ask(teacher: Hosted, folder: Path | None = None, **more: Any) -> list[str]:
    return asyncio.run(greedy_answers(teacher, QUESTIONS, 7, journal_folder=folder, teacher_kind="hosted", **more))


def test_answers_come_in_order_and_some_at_once() -> None:
    teacher = Hosted()
    assert ask(teacher) == [f"about question {number}" for number in range(12)]
    assert 1 < teacher.most_waiting <= AT_ONCE
    assert {(each.sampling.temperature, each.sampling.max_new_tokens) for each in teacher.asked} == {(0.0, 7)}


def test_what_is_on_the_disk_is_not_asked_for_again(tmp_path: Path) -> None:
    first = Hosted()
    said = ask(first, tmp_path)
    again = Hosted()
    assert ask(again, tmp_path) == said
    assert (len(first.asked), again.asked) == (12, [])


def test_a_question_that_is_there_twice_is_paid_for_once(tmp_path: Path) -> None:
    teacher = Hosted()
    twice = [QUESTIONS[0], QUESTIONS[1], list(QUESTIONS[0])]
    said = asyncio.run(greedy_answers(teacher, twice, 7, journal_folder=tmp_path, teacher_kind="hosted"))
    assert said == ["about question 0", "about question 1", "about question 0"]
    assert len(teacher.asked) == 2


def test_what_was_answered_before_a_failure_is_kept(tmp_path: Path) -> None:
    broken = Hosted()
    broken.generate = failing_after(broken, 5)  # type: ignore[method-assign]
    with pytest.raises(ProviderError, match="out of credit"):
        ask(broken, tmp_path)
    again = Hosted()
    assert len(ask(again, tmp_path)) == 12
    assert len(again.asked) < 12


def failing_after(teacher: Hosted, count: int) -> Any:
    answer = Hosted.generate

    async def generate(request: GenerateRequest) -> Completion:
        if len(teacher.asked) >= count:
            await asyncio.sleep(0.05)  # the others come to their end
            raise ProviderError("out of credit")
        return await answer(teacher, request)

    return generate


def test_a_refused_one_is_empty_and_a_failure_that_passes_is_tried_again() -> None:
    assert ask(Hosted(RequestRefusedError("no"))).count("") == 1
    waits = BaselineConfig(prompts=Path("p"), retries=2, retry_wait_s=0.001, temperature=1.0)
    teacher = Hosted(RetryableError("busy", possibly_paid=False))
    assert "" not in ask(teacher, config=waits)
    assert len(teacher.asked) == 13
    assert teacher.asked[0].sampling.temperature == 1.0
