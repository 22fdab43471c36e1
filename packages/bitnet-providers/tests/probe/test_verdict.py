"""Verdicts are kept for a week, without secrets, and read only where they are whole."""

import asyncio
import json
from collections.abc import Callable
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_providers.probe.questions import probe_teacher
from bitnet_providers.probe.verdict import (
    MAX_AGE,
    Verdict,
    from_json,
    read_verdict,
    verdict_key,
    verdict_path,
    write_verdict,
)


@attrs.frozen
class Options:
    model: str = "m"
    api_key: str = ""
    api_key_env: str = "MY_KEY"


@pytest.fixture
def verdict(letters: Callable[..., Any]) -> Verdict:
    return asyncio.run(probe_teacher(letters("unsorted"), "letters"))


def test_it_comes_back_as_it_was_for_a_week(tmp_path: Path, verdict: Verdict) -> None:
    path = verdict_path(tmp_path, "k" * 64)
    assert read_verdict(path) is None
    write_verdict(path, verdict)
    assert read_verdict(path) == verdict
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    probed = datetime.fromisoformat(verdict.probed)
    assert read_verdict(path, probed + MAX_AGE) == verdict
    assert read_verdict(path, probed + MAX_AGE + timedelta(seconds=1)) is None
    assert read_verdict(path, probed - timedelta(hours=1)) is None  # a clock that went back


@pytest.mark.parametrize(
    "change",
    [
        {"version": 0},
        {"trusted_for_kd": "yes"},
        {"probed": 3},
        {"probed": "yesterday"},
        {"reasons": None},
        {"more": 1},
    ],
)
def test_what_is_no_verdict_is_none(tmp_path: Path, verdict: Verdict, change: dict[str, Any]) -> None:
    path = tmp_path / "v.json"
    path.write_text(json.dumps(verdict.to_json() | change))
    assert read_verdict(path) is None
    path.write_text("{")
    assert read_verdict(path) is None
    assert from_json([]) is None


def test_the_key_knows_the_teacher_and_no_secret() -> None:
    key = verdict_key("a", Options(), {"model": "m"})
    assert key == verdict_key("a", Options(api_key="sk-obviously-fake"), {"model": "m"})
    others = [
        verdict_key("b", Options(), {"model": "m"}),
        verdict_key("a", Options(model="n"), {"model": "m"}),
        verdict_key("a", Options(api_key_env="OTHER_KEY"), {"model": "m"}),
        verdict_key("a", Options(), {"model": "n"}),
    ]
    assert len({key, *others}) == 5


def test_the_shards_metadata_holds_nothing_that_is_measured_anew(letters: Callable[..., Any]) -> None:
    """Another probing of the same teacher makes the same shard, byte for byte."""
    quiet, noisy = (asyncio.run(probe_teacher(letters(noise=noise), "letters")) for noise in (0.0, 0.01))
    assert quiet.repeat_kl != noisy.repeat_kl
    assert quiet.for_metadata() == noisy.for_metadata()
    assert json.loads(json.dumps(quiet.for_metadata())) == {
        "version": 2,
        "trusted_for_kd": True,
        "reasons": [],
        "max_top_logprobs": 20,
        "token_bytes": "valid",
        "temperature": "before",
        "temperature_rule": "before: any temperature",
        "top_p": "before",
        "scoring": "agrees",
    }
