"""Time-outs while the process stands still; answers that hold nothing: asked again, told, never kept as answers."""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.collect.ask_and_retry import TimeLimit
from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Completion, ProviderError, RequestRefusedError, RetryableError, check_answer
from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.no_answer import FILTERED
from bitnet_providers.teachers.common.logprobs import untold
from bitnet_providers.teachers.common.retry import Retries, RetryPolicy, answered, ask_with_retries


@pytest.mark.parametrize("stopped_s", [0.5, 1.5])
def test_who_waits_gets_the_time_again_in_which_the_process_stood_still(stopped_s: float) -> None:
    """Nothing of the event loop runs meanwhile, as with SIGSTOP; the answers come after it, in time."""

    async def main() -> list[str]:
        limit, loop = TimeLimit(0.3, tick_s=0.02), asyncio.get_running_loop()

        async def ask(number: int) -> str:
            async with limit.each():
                await answers[number]
            return "answered"

        answers = [loop.create_future() for _ in range(20)]
        asking = [asyncio.create_task(ask(number)) for number in range(20)]
        await asyncio.sleep(0.05)
        time.sleep(stopped_s)
        for number, answer in enumerate(answers):
            loop.call_later(0.005 * number, answer.set_result, None)
        return await asyncio.gather(*asking)

    assert asyncio.run(main()) == ["answered"] * 20


def test_a_time_out_is_one_where_the_process_runs() -> None:
    async def main() -> float:
        limit, begun = TimeLimit(0.2, tick_s=0.02), time.monotonic()
        with pytest.raises(TimeoutError):
            async with limit.each():
                await asyncio.Event().wait()
        return time.monotonic() - begun

    assert asyncio.run(main()) >= 0.2


def test_no_limit_and_no_tick_that_stays() -> None:
    async def main() -> None:
        limit = TimeLimit(None)
        async with limit.each():
            assert limit._tick is None
        limit = TimeLimit(100.0, tick_s=0.001)
        async with limit.each():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert limit._tick is None

    asyncio.run(main())


RETRIES = 2


def said(text: str, finish: Any = "stop", **repairs: int) -> Completion:
    made = untold(text.encode())
    return Completion(
        text=made.text, token_logprobs=made.token_logprobs, candidate_counts=made.candidate_counts,
        candidate_logprobs=made.candidate_logprobs, finish_reason=finish, model="m", prompt_tokens=3, latency_s=0.1,
        token_bytes=made.token_bytes, candidate_bytes=(), usage={"prompt_tokens": 3, "completion_tokens": 0},
        repairs=repairs,
    )  # fmt: skip


class Odd:
    """Answers a prompt by its first word; `again` counts how often each was asked."""

    def __init__(self, counting: Any) -> None:
        self._counting = counting
        self.capabilities = attrs.evolve(counting.capabilities, max_top_logprobs=0, scoring=False)
        self.description = {"model": "m"}
        self.again: Counter[str] = Counter()
        self.filters = True

    async def generate(self, request: Any) -> Completion:
        prompt = request.messages[-1]["content"]
        self.again[prompt] += 1
        match prompt.split()[0]:
            case "flaky" if self.again[prompt] == 1:
                return said("")
            case "empty":
                return said("", "length")
            case "nothing":
                raise RetryableError("there is no choice in it", possibly_paid=True, answered=True)
            case "thinks":
                return said("", "length", reasoning_dropped=1)
            case "hidden":
                return attrs.evolve(said("", "length"), usage={"completion_tokens": 4, "reasoning_tokens": 4})
            case "cut":
                return said("Okay, so", "length")
            case "unopened":
                return said("Tea.", reasoning_dropped=1, thought_in_prompt=1)
            case "filtered" if self.filters:
                return said("", "content_filter")
        return said("Fine.")

    async def score(self, request: Any) -> Completion:
        raise ProviderError("no")

    async def aclose(self) -> None:
        pass


def collected(folder: Path, teacher: Any, *prompts: str, **settings: Any) -> dict[str, Any]:
    file = folder / "prompts.txt"
    file.write_text("\n".join(prompts))
    config = CollectConfig(prompts=file, top_k=0, retries=RETRIES, retry_wait_s=0.001, max_new_tokens=4, **settings)
    return asyncio.run(collect(teacher, config, folder / "raw", "odd", 0))


@pytest.fixture
def teacher(counting_teacher: Callable[..., Any]) -> Odd:
    return Odd(counting_teacher())


def test_what_is_empty_is_asked_again_and_told(tmp_path: Path, teacher: Odd) -> None:
    prompts = ("flaky 1", "empty 1", "nothing 1", "good 1", "empty 2", "nothing 2", "filtered 1", "thinks 1")
    summary = collected(tmp_path, teacher, *prompts)
    assert teacher.again == {
        "flaky 1": 2, "good 1": 1, "filtered 1": 1, "thinks 1": 1,
        **dict.fromkeys(("empty 1", "empty 2", "nothing 1", "nothing 2"), RETRIES + 1),
    }  # fmt: skip
    assert (summary["completions"], summary["empty"]) == (2, 4)
    assert summary["missing"] == {
        "refused": 1, "filtered": 1, "cut_in_thought": 0, "unanswered": 4, "not_asked": 0
    }  # fmt: skip
    assert "1 filtered by the teacher" in summary["headline"]
    assert "4 without an answer, 4 of them empty" in summary["headline"]
    reasons = {each["reason"] for each in summary["unanswered"]}
    assert reasons == {"there is no choice in it", "the answer is empty (finish reason length)"}
    assert any("ended within its thoughts" in each["reason"] for each in summary["refused"])
    assert len(read_journal(tmp_path / "raw").rows) == 3  # with the filtered one, which is paid for
    # Only the empty ones are asked again, though nothing else is answered any more.
    before = teacher.again.copy()
    again = collected(tmp_path, teacher, *prompts)
    assert {name for name in teacher.again if teacher.again[name] > before[name]} == {
        "empty 1", "empty 2", "nothing 1", "nothing 2"
    }  # fmt: skip
    assert again["missing"] == summary["missing"]


def test_what_a_filter_left_out_is_asked_again_only_when_told_to(tmp_path: Path, teacher: Odd) -> None:
    prompts = ("filtered 1", "good 1", "filtered 2")
    for _ in range(2):
        summary = collected(tmp_path, teacher, *prompts)
        assert set(teacher.again.values()) == {1}
        assert [each["reason"] for each in summary["refused"]] == [FILTERED] * 2
    teacher.filters = False
    summary = collected(tmp_path, teacher, *prompts, retry_failed=True)
    assert teacher.again == {"filtered 1": 2, "good 1": 1, "filtered 2": 2}
    assert (summary["completions"], summary["missing"]["filtered"], summary["spent"]["requests"]) == (3, 0, 5)
    assert collected(tmp_path, teacher, *prompts, retry_failed=True)["completions"] == 3
    assert teacher.again.total() == 5


def test_a_server_that_filters_everything_is_told(tmp_path: Path, teacher: Odd) -> None:
    with pytest.raises(ProviderError, match="refused 20 requests in a row, the last with: a content filter"):
        collected(tmp_path, teacher, *(f"filtered {number}" for number in range(40)))
    assert teacher.again.total() < 40
    (tmp_path / "few").mkdir()
    with pytest.raises(ProviderError, match="refused all 2 requests, most often with: a content filter"):
        collected(tmp_path / "few", teacher, "filtered 1", "filtered 2")


def test_a_server_that_answers_nothing_is_told(tmp_path: Path, teacher: Odd) -> None:
    with pytest.raises(ProviderError, match="answered none of 3 requests, the first with: the answer is empty"):
        collected(tmp_path, teacher, "empty 1", "empty 2", "empty 3")
    (tmp_path / "many").mkdir()
    with pytest.raises(ProviderError, match="20 requests in a row without an answer that holds anything"):
        collected(tmp_path / "many", teacher, *(f"empty {number}" for number in range(40)))


def test_thoughts_that_are_not_shown_are_paid_once(tmp_path: Path, teacher: Odd) -> None:
    summary = collected(tmp_path, teacher, "good 1", "hidden 1", "hidden 2")
    assert teacher.again == {"good 1": 1, "hidden 1": 1, "hidden 2": 1}
    assert {each["reason"] for each in summary["refused"]} == {
        "the answer ended within its thoughts (max_new_tokens is too low)"
    }


def test_thoughts_that_begin_in_the_prompt(tmp_path: Path, teacher: Odd) -> None:
    summary = collected(tmp_path, teacher, "unopened 1", "cut 1", "unopened 2")
    assert summary["completions"] == 2
    assert summary["missing"]["cut_in_thought"] == 1
    assert summary["refused"][0]["reason"] == "its answer was cut within the thoughts (max_new_tokens is too low)"
    (tmp_path / "other").mkdir()
    assert collected(tmp_path / "other", teacher, "good 1", "cut 1")["completions"] == 2


@given(st.sampled_from(["", "a"]), st.sampled_from(["stop", "length", "content_filter", "tool_calls", "scored"]),
       st.booleans(), st.booleans())  # fmt: skip
def test_only_nothing_is_no_answer(text: str, finish: str, token: bool, thought: bool) -> None:
    completion = said(text, finish, **({"reasoning_dropped": 1} if thought else {}))
    if token and not text:  # an end of turn that is all there is
        completion = attrs.evolve(completion, token_logprobs=np.zeros(1, np.float32))
    kind: Any = None
    try:
        check_answer(completion)
    except ProviderError as error:
        kind = type(error)
    nothing = not text and not token and finish not in ("content_filter", "tool_calls")
    assert kind == (None if not nothing else RequestRefusedError if thought else RetryableError)


def test_a_baseline_asks_again_and_then_leaves_it_out(teacher: Odd) -> None:
    async def ask(prompt: str) -> Completion:
        from bitnet_providers.contract import GenerateRequest, Sampling

        request = GenerateRequest(({"role": "user", "content": prompt},), Sampling(), 0)
        return await ask_with_retries(lambda: answered(teacher, request), RetryPolicy(RETRIES, 0.001), Retries())

    assert asyncio.run(ask("flaky 1")).text == b"Fine."
    assert asyncio.run(ask("thinks 1")).text == b""
    with pytest.raises(RequestRefusedError, match=r"the answer is empty .* \(tried 3 times\)"):
        asyncio.run(ask("empty 1"))
