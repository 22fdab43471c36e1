"""A baseline of a hosted teacher through its SDK, with faults on the way."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.baseline.run_baseline import run_baseline
from bitnet_providers.config import BaselineConfig
from bitnet_providers.teachers.gemini.options import GeminiTeacherConfig
from bitnet_providers.teachers.gemini.teacher import open_gemini
from loopback.faults import CUT_BODY, failing, rate_limited, script, serving
from loopback.gemini_server import KEY, GeminiServer


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
