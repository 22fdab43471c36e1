"""A teacher that tells the truth is trusted; each way of lying is caught and named."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError, RequestRefusedError
from bitnet_providers.probe.questions import estimate, probe_teacher
from bitnet_providers.probe.verdict import Verdict, check_collection, wants_probe

Letters = Callable[..., Any]


def probe(teacher: Any, **more: Any) -> Verdict:
    return asyncio.run(probe_teacher(teacher, "letters", **more))


def test_an_honest_teacher_is_trusted(letters: Letters) -> None:
    teacher = letters()
    verdict = probe(teacher)
    assert (verdict.trusted_for_kd, verdict.reasons, verdict.notes) == (True, (), ())
    assert (verdict.temperature, verdict.temperature_rule) == ("before", "before: any temperature")
    assert verdict.top_p == "before"
    assert (verdict.max_top_logprobs, verdict.declared_top_logprobs) == (20, 20)
    assert verdict.token_bytes == "valid"
    assert verdict.max_mass is not None
    assert 0.5 < verdict.max_mass <= 1.001
    assert verdict.sampled_among is not None
    assert verdict.sampled_among > 0.9
    assert verdict.repeat_kl == pytest.approx(0.0, abs=1e-9)
    assert (verdict.scoring, verdict.scoring_words) == ("agrees", "")
    assert verdict.scoring_error == pytest.approx(0.0, abs=1e-6)
    assert (verdict.kind, verdict.model, verdict.latency_s) == ("letters", "letters-1", 0.25)
    assert verdict.requests == len(teacher.calls) == estimate(teacher.capabilities).requests == 8
    assert verdict.prompt_tokens == 40
    assert verdict.prompt_tokens + verdict.completion_tokens <= estimate(teacher.capabilities).tokens


@pytest.mark.parametrize("noise", [0.001, 0.02])
def test_a_hosted_models_noise_changes_nothing(letters: Letters, noise: float) -> None:
    verdict = probe(letters(noise=noise))
    assert verdict.trusted_for_kd, verdict.reasons
    assert (verdict.temperature, verdict.top_p, verdict.scoring) == ("before", "before", "agrees")
    assert verdict.repeat_kl is not None
    assert 0 < verdict.repeat_kl < 0.01


@pytest.mark.parametrize(
    ("lie", "reason"),
    [
        ("gives none", "it declares up to 20 candidates and gave none"),
        ("unsorted", "positions have candidates that do not descend"),
        ("mass above 1", "positions have a mass above 1 (up to "),
        ("sentinels", "candidates have no value (NaN, infinite, or a sentinel such as -9999)"),
        ("not finite", "candidates have no value"),
        ("above zero", "candidates have a log-probability above 0"),
        ("too many", "positions have more candidates than were asked for"),
        ("wrong bytes", "answers have token bytes that do not make the answer's text"),
        ("sampled missing", "at temperature 0 the token is not the likeliest of its candidates"),
        ("other log-probability", "the token's log-probability is not the one that its candidates tell"),
        ("certain", "at temperature 1 every token has probability 1"),
        ("another model each time", "two equal calls differ by "),
    ],
)
def test_a_lie_is_caught_and_refused(letters: Letters, lie: str, reason: str) -> None:
    verdict = probe(letters(lie))
    assert not verdict.trusted_for_kd
    assert any(reason in each for each in verdict.reasons), verdict.reasons
    with pytest.raises(ProviderError) as caught:
        check_collection(verdict, CollectConfig(top_k=5))
    assert str(caught.value).startswith(
        '[collect] KD is refused: the log-probabilities of teacher "letters" (letters-1)'
    )
    assert reason in str(caught.value)
    assert caught.value.fix.startswith("set collect.top_k = 0 for sequence-level traces instead")
    check_collection(verdict, CollectConfig(top_k=0))


def test_log_probabilities_after_temperature_are_used_at_temperature_1_only(letters: Letters) -> None:
    verdict = probe(letters("after temperature"))
    assert verdict.temperature == "after"
    assert verdict.temperature_rule == "after: collect at temperature 1"
    assert verdict.trusted_for_kd, verdict.reasons
    prompts: Any = "p.txt"
    check_collection(verdict, CollectConfig(prompts=prompts, temperature=1.0))
    with pytest.raises(
        ProviderError, match=r"are those after temperature, and collect.temperature is 0.7 \(.*\)  → set"
    ) as caught:
        check_collection(verdict, CollectConfig(prompts=prompts, temperature=0.7))
    assert caught.value.fix.startswith("set collect.temperature = 1.0, or set collect.top_k = 0 for")
    check_collection(verdict, CollectConfig(texts=prompts, temperature=0.7))  # nothing is sampled


def test_where_temperature_can_not_be_told_it_is_1(letters: Letters) -> None:
    verdict = probe(letters("refuses temperature"))
    assert verdict.temperature == "unknown"
    assert verdict.trusted_for_kd, verdict.reasons
    assert "temperature 0.5 was refused: temperature is fixed at 1" in verdict.notes
    with pytest.raises(ProviderError, match=r"may be those after temperature, and collect.temperature is 0.7"):
        check_collection(verdict, CollectConfig(prompts="p.txt", temperature=0.7))  # type: ignore[arg-type]


def test_log_probabilities_after_top_p_are_used_at_top_p_1_only(letters: Letters) -> None:
    verdict = probe(letters("after top_p"))
    assert (verdict.temperature, verdict.top_p) == ("before", "after")
    check_collection(verdict, CollectConfig(prompts="p.txt"))  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match=r"are those after top_p, and collect.top_p is 0.9 \(.*\)  → set"):
        check_collection(verdict, CollectConfig(prompts="p.txt", top_p=0.9))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("echo ignored", "scoring told of another text than it was given (an ignored echo?)"),
        ("scoring late", "one token too late"),
        ("scoring early", "one token too early"),
        ("scoring by another model", "scoring differs from generation by "),
        ("refuses scoring", "the teacher declares scoring and refuses it: echo is not supported"),
    ],
)
def test_wrong_scoring_is_caught(letters: Letters, lie: str, words: str) -> None:
    verdict = probe(letters(lie))
    assert verdict.trusted_for_kd, verdict.reasons
    assert verdict.scoring == "differs"
    assert words in verdict.scoring_words
    check_collection(verdict, CollectConfig(prompts="p.txt"))  # type: ignore[arg-type]
    with pytest.raises(ProviderError, match=r"take collect.texts out"):
        check_collection(verdict, CollectConfig(texts="t.txt"))  # type: ignore[arg-type]


def test_fewer_candidates_than_declared_are_noted(letters: Letters) -> None:
    verdict = probe(letters("refuses 20"))
    assert verdict.trusted_for_kd
    assert verdict.max_top_logprobs == 5
    assert verdict.notes == (
        "20 candidates were refused: top_logprobs must be at most 5",
        "it declares up to 20 candidates per position, and gave at most 5",
    )


def test_a_teacher_that_refuses_all_candidates_is_not_trusted(letters: Letters) -> None:
    """As a plugin tells it whose API has no such field: not RequestRefusedError, since every request would fail."""
    verdict = probe(letters("refuses candidates"))
    assert verdict.reasons == ("it declares up to 20 candidates and gave none",)
    assert verdict.max_top_logprobs == 0
    assert verdict.notes[0] == "20 candidates were refused: logprobs are not supported"


def test_a_teacher_that_declares_none_is_asked_once(letters: Letters) -> None:
    teacher = letters(declared=0)
    verdict = probe(teacher)
    assert verdict.reasons == ("it gives no candidates (top log-probabilities), as it declares",)
    assert [type(each).__name__ for each in teacher.calls] == ["GenerateRequest", "ScoreRequest", "ScoreRequest"]
    assert not wants_probe(CollectConfig(), teacher.capabilities)
    assert wants_probe(CollectConfig(), letters().capabilities)
    assert not wants_probe(CollectConfig(top_k=0), letters().capabilities)


def test_a_busy_server_is_waited_for(letters: Letters) -> None:
    waits: list[float] = []

    async def sleep(seconds: float) -> None:
        waits.append(seconds)

    verdict = probe(letters(failures=2), sleep=sleep)
    assert verdict.trusted_for_kd
    assert [round(wait) for wait in waits] == [7, 7]
    assert verdict.requests == 10
    busy = letters(failures=99)
    with pytest.raises(ProviderError, match=r"busy \(tried 4 times\)"):
        probe(busy, sleep=sleep)
    assert len(busy.calls) == 4


def test_a_teacher_that_refuses_everything_raises(letters: Letters) -> None:
    teacher = letters()

    async def refuse(request: Any) -> Any:
        raise RequestRefusedError(f"no: {request.top_logprobs}")

    teacher.generate = refuse
    with pytest.raises(RequestRefusedError, match=r"no: 20"):
        probe(teacher)
