"""The baseline's figures, its retries, and what it doesn't pay for twice."""

import asyncio
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_providers.baseline.run_baseline import run_baseline
from bitnet_providers.baseline.speed import speed_figures
from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
)
from bitnet_providers.teachers.gemini.options import GeminiTeacherConfig
from bitnet_providers.teachers.gemini.teacher import open_gemini
from loopback.faults import CUT_BODY, failing, rate_limited, script, serving
from loopback.gemini_server import KEY, GeminiServer


class HostedTeacher:
    """Tells text and usage, as a hosted API; `trouble` maps a prompt to the errors that come before its answer."""

    capabilities = Capabilities(
        max_top_logprobs=0, token_ids=False, token_bytes=False, scoring=False, external=True, paced=True
    )

    def __init__(self, usage: Callable[[str], dict[str, float]] | None = None, **trouble: list[Exception]) -> None:
        self.description = {"model": "hosted", "base_url": "https://x.test"}
        self.usage = usage or (lambda text: {"prompt_tokens": 3, "completion_tokens": 10})
        self.trouble = {name: list(errors) for name, errors in trouble.items()}
        self.asked: list[str] = []

    async def generate(self, request: GenerateRequest) -> Completion:
        text = request.messages[-1]["content"]
        self.asked.append(text)
        if self.trouble.get(text):
            raise self.trouble[text].pop(0)
        said = f"about {text}".encode()
        return Completion(
            text=said,
            token_logprobs=np.full(1, np.nan, np.float32),
            candidate_counts=np.zeros(1, np.int32),
            candidate_logprobs=np.zeros(0, np.float32),
            finish_reason="stop",
            model="hosted-1",
            prompt_tokens=3,
            latency_s=0.5 + 0.5 * len(self.asked),
            token_bytes=(said,),
            candidate_bytes=(),
            usage=self.usage(text),
        )

    async def score(self, request: Any) -> Completion:
        raise ProviderError("no scoring")

    async def aclose(self) -> None:
        pass


@pytest.fixture
def config(tmp_path: Path) -> Callable[..., BaselineConfig]:
    def make(*prompts: str, **settings: Any) -> BaselineConfig:
        path = tmp_path / "p.txt"
        path.write_text("\n".join(prompts))
        return BaselineConfig(**({"prompts": path, "warmup": 0, "retry_wait_s": 0.001} | settings))

    return make


def run(teacher: Any, config: BaselineConfig, **options: Any) -> dict[str, Any]:
    return asyncio.run(run_baseline(teacher, config, **options))


def test_the_figures_are_of_the_timed_answers_only(
    config: Callable[..., BaselineConfig], counting_teacher: Callable[..., Any]
) -> None:
    teacher = counting_teacher()
    progress: list[tuple[int, int, str]] = []
    asked = config("one", "two words", "three more words", "never", max_prompts=3, max_new_tokens=9, warmup=2)
    report = run(teacher, asked, on_progress=lambda *step: progress.append(step))

    assert len(teacher.calls) == 2 + 3
    assert {call.sampling.temperature for call in teacher.calls} == {0.0}
    assert {call.sampling.max_new_tokens for call in teacher.calls} == {9}
    # the counting teacher says the prompt and its seed, in 0.25 s
    assert [answer["tokens"] for answer in report["answers"]] == [2, 3, 4]
    assert report["tokens"] == 9
    assert report["tokens_per_second"] == pytest.approx(9 / 0.75)
    assert report["tokens_per_second_median"] == pytest.approx(12.0)
    assert report["tokens_per_second_min"] == pytest.approx(8.0)
    assert report["tokens_per_second_max"] == pytest.approx(16.0)
    low, high = report["tokens_per_second_interval_95"]
    assert 8.0 <= low < 12.0 < high <= 16.0
    assert report["teacher"]["model"] == "counting"
    assert report["config"]["max_prompts"] == 3
    assert report["answers"][1]["messages"] == [{"role": "user", "content": "two words"}]
    assert progress[-1] == (3, 3, "16.0 tok/s")
    json.dumps(report)


def test_the_hash_is_of_the_prompts_that_were_asked(config: Callable[..., BaselineConfig], tmp_path: Path) -> None:
    first = run(HostedTeacher(), config("a", "b", "c", max_prompts=2))["prompts_sha256"]
    assert run(HostedTeacher(), config("a", "b", "x", max_prompts=2))["prompts_sha256"] == first
    assert run(HostedTeacher(), config("a", "x", "c", max_prompts=2))["prompts_sha256"] != first
    same = tmp_path / "same.jsonl"
    same.write_text('{"id": "1", "prompt": "a"}\n{"id": "2", "prompt": "b"}\n')
    assert run(HostedTeacher(), config("a", prompts=same))["prompts_sha256"] == first


def test_a_server_that_tells_its_clock_is_timed_by_it(config: Callable[..., BaselineConfig]) -> None:
    usage = {"completion_tokens": 10.0, "prompt_s": 0.1, "decode_s": 0.25}
    report = run(HostedTeacher(lambda text: usage), config("a", "b"))
    assert (report["clock"], report["tokens_per_second"]) == ("server", 40.0)
    assert report["end_to_end_tokens_per_second"] == pytest.approx(20 / (1.0 + 1.5))
    assert "without reading the prompt" in report["clock_note"]
    assert report["answers"][0]["prompt_s"] == 0.1


def test_without_every_answers_server_time_it_is_end_to_end_and_says_so(config: Callable[..., BaselineConfig]) -> None:
    report = run(
        HostedTeacher(lambda text: {"completion_tokens": 10} | ({"decode_s": 0.1} if text == "a" else {})),
        config("a", "b"),
    )
    assert (report["clock"], report["tokens_per_second"]) == ("end to end", pytest.approx(20 / 2.5))
    assert "network included" in report["clock_note"]


def test_a_teacher_in_the_process_has_no_network_to_speak_of() -> None:
    answers = [{"tokens": 4, "seconds": 2.0, "decode_s": None}]
    figures = speed_figures(answers, in_process=True)
    assert (figures["clock"], figures["tokens_per_second"]) == ("in process", 2.0)
    assert figures["tokens_per_second_interval_95"] is None


def test_without_a_token_count_there_is_no_speed(config: Callable[..., BaselineConfig]) -> None:
    report = run(HostedTeacher(lambda text: {}), config("a", "b"))
    assert report["tokens_per_second"] is None
    assert report["tokens_per_second_median"] is None
    assert report["answers_without_token_count"] == 2
    assert [answer["text"] for answer in report["answers"]] == ["about a", "about b"]


def test_hidden_thoughts_took_their_time_too(config: Callable[..., BaselineConfig]) -> None:
    report = run(HostedTeacher(lambda text: {"completion_tokens": 30, "reasoning_tokens": 20}), config("a"))
    assert (report["tokens"], report["reasoning_tokens"]) == (30, 20)


def test_the_interval_covers_the_spread_and_is_the_same_again() -> None:
    generator = np.random.default_rng(1)
    answers = [{"tokens": 100, "seconds": float(s), "decode_s": None} for s in generator.uniform(1, 3, 40)]
    figures = speed_figures(answers, in_process=False)
    low, high = figures["tokens_per_second_interval_95"]
    # the standard error of a mean of 40 uniform seconds, as a share of it
    share = 1.96 * np.std([a["seconds"] for a in answers]) / np.sqrt(40) / np.mean([a["seconds"] for a in answers])
    assert (high - low) / 2 / figures["tokens_per_second"] == pytest.approx(share, rel=0.2)
    assert figures == speed_figures(answers, in_process=False)


def test_failures_that_may_pass_are_asked_again_and_counted(config: Callable[..., BaselineConfig]) -> None:
    notes: list[str] = []
    teacher = HostedTeacher(
        a=[RetryableError("slow down", retry_after_s=0.001, overloaded=True), RetryableError("cut", possibly_paid=True)]
    )
    report = run(teacher, config("a", "b"), on_progress=lambda done, total, note: notes.append(note))
    assert teacher.asked == ["a", "a", "a", "b"]
    assert (report["retries"], report["possibly_paid"]) == (2, 1)
    assert any(note.startswith("waiting 0 s: slow down") for note in notes)


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (RetryableError("busy"), r"busy \(tried 3 times\)"),
        (RetryableError("busy", retry_after_s=86400.0), r"asks to wait 86,400 s"),
        (ProviderError("wrong key"), "wrong key"),
    ],
)
def test_it_gives_up_with_the_prompt_and_the_reason(
    config: Callable[..., BaselineConfig], error: Exception, words: str
) -> None:
    with pytest.raises(ProviderError, match=rf'^\[baseline\] prompt "2": .*{words}'):
        run(HostedTeacher(b=[error] * 9), config("a", "b", retries=2))


def test_a_refused_prompt_is_listed_and_left_out(config: Callable[..., BaselineConfig]) -> None:
    teacher = HostedTeacher(a=[RequestRefusedError("blocked")] * 2)
    report = run(teacher, config("a", "b", warmup=1))
    assert [answer["id"] for answer in report["answers"]] == ["2"]
    assert report["refused"] == [{"id": "1", "reason": "blocked"}]
    with pytest.raises(ProviderError, match="refused every prompt, the last with: no"):
        run(HostedTeacher(a=[RequestRefusedError("no")]), config("a"))


def test_a_stopped_baseline_does_not_pay_twice(config: Callable[..., BaselineConfig], tmp_path: Path) -> None:
    folder, asked = tmp_path / "journal", config("a", "b", "c", warmup=1)
    stopped = HostedTeacher(c=[ProviderError("the power is gone")])
    with pytest.raises(ProviderError, match="power"):
        run(stopped, asked, journal_folder=folder)
    assert stopped.asked == ["a", "a", "b", "c"]

    teacher = HostedTeacher()
    report = run(teacher, asked, journal_folder=folder, resume=True)
    assert teacher.asked == ["c", "c"], "the warm-up, and what was missing"
    assert report["reused"] == 2
    assert [answer["text"] for answer in report["answers"]] == ["about a", "about b", "about c"]
    assert [answer["seconds"] for answer in report["answers"]] == [1.5, 2.0, 1.5]
    assert [answer["tokens"] for answer in report["answers"]] == [10, 10, 10]

    teacher = HostedTeacher()
    again = run(teacher, asked, journal_folder=folder, resume=True)
    assert teacher.asked == []
    assert again["answers"] == report["answers"]


def test_a_new_measurement_asks_anew_and_deletes_nothing(config: Callable[..., BaselineConfig], tmp_path: Path) -> None:
    folder, asked = tmp_path / "journal", config("a", "b")
    run(HostedTeacher(), asked, journal_folder=folder)
    before = {path: path.read_bytes() for path in folder.iterdir()}
    second = HostedTeacher(b=[ProviderError("stopped")])
    with pytest.raises(ProviderError, match="stopped"):
        run(second, asked, journal_folder=folder, resume=False)
    assert second.asked == ["a", "b"]
    third = HostedTeacher()
    run(third, asked, journal_folder=folder, resume=True)
    assert third.asked == ["b"], "it goes on with the second measurement"
    assert {path: path.read_bytes() for path in before} == before


def test_another_model_is_another_measurement(config: Callable[..., BaselineConfig], tmp_path: Path) -> None:
    folder, asked = tmp_path / "journal", config("a")
    run(HostedTeacher(), asked, journal_folder=folder, teacher_kind="x")
    teacher = HostedTeacher()
    teacher.description = {"model": "other"}
    run(teacher, asked, journal_folder=folder, resume=True, teacher_kind="x")
    assert teacher.asked == ["a"]


def test_the_temperature_is_the_settings(config: Callable[..., BaselineConfig], counting_teacher: Any) -> None:
    teacher = counting_teacher()
    report = run(teacher, config("a", temperature=1.0))
    assert teacher.calls[0].sampling.temperature == report["config"]["temperature"] == 1.0


def test_faults_cost_retries_and_no_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEMINI_API_KEY", KEY)
    server, prompts = GeminiServer(), tmp_path / "p.txt"
    prompts.write_text("one\ntwo\nthree")
    config = BaselineConfig(prompts=prompts, retry_wait_s=0.001)
    server.player.reset(script(None, rate_limited("0"), None, CUT_BODY, failing(503)))
    with serving(server.app()) as url:

        async def run() -> dict[str, Any]:
            teacher = open_gemini(GeminiTeacherConfig(model="gemini-loopback", base_url=url))
            try:
                return await run_baseline(teacher, config, journal_folder=tmp_path / "j", teacher_kind="gemini")
            finally:
                await teacher.aclose()

        report = asyncio.run(run())
    assert [answer["text"] for answer in report["answers"]] == [f"You said: {p}" for p in ("one", "two", "three")]
    assert (report["retries"], report["possibly_paid"], report["tokens"]) == (3, 1, 12)
    assert report["clock"] == "end to end"
    assert not [path for path in (tmp_path / "j").iterdir() if KEY.encode() in path.read_bytes()]
