"""The baseline's figures."""

import asyncio
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.baseline import run_baseline
from bitnet_providers.config import BaselineConfig
from bitnet_providers.contract import ProviderError


def test_the_figures_are_of_the_timed_answers_only(tmp_path: Path, counting_teacher: Callable[..., Any]) -> None:
    prompts = tmp_path / "p.txt"
    prompts.write_text("one\ntwo words\nthree more words\nnever asked\n")
    teacher = counting_teacher()
    progress: list[tuple[int, int, str]] = []
    config = BaselineConfig(prompts=prompts, max_prompts=3, max_new_tokens=9, warmup=2)
    report = asyncio.run(run_baseline(teacher, config, lambda *step: progress.append(step)))

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
    assert report["prompts_sha256"] == hashlib.sha256(prompts.read_bytes()).hexdigest()
    assert report["teacher"]["model"] == "counting"
    assert report["config"]["max_prompts"] == 3
    assert report["answers"][1]["messages"] == [{"role": "user", "content": "two words"}]
    assert progress[-1] == (3, 3, "16.0 tok/s")


def test_a_refused_prompt_is_named_with_its_section(tmp_path: Path, counting_teacher: Callable[..., Any]) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": "long", "prompt": "too long"}')
    with pytest.raises(ProviderError, match=r'^\[baseline\] prompt "long": the service said no'):
        asyncio.run(run_baseline(counting_teacher(fail_on="too long"), BaselineConfig(prompts=prompts)))
