"""The probe against SmolLM2 in this process."""

import asyncio
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.probe.questions import estimate, probe_teacher


@pytest.mark.slow
def test_the_local_teacher_passes(smollm2_folder: Path) -> None:
    from bitnet_providers.teachers.local.options import LocalTeacherConfig
    from bitnet_providers.teachers.local.teacher import open_local

    async def main() -> Any:
        teacher = open_local(LocalTeacherConfig(device="cpu"))
        try:
            return await probe_teacher(teacher, "local"), estimate(teacher.capabilities)
        finally:
            await teacher.aclose()

    verdict, estimated = asyncio.run(main())
    assert verdict.trusted_for_kd, verdict.reasons
    assert verdict.notes == ()
    assert (verdict.temperature, verdict.top_p, verdict.scoring) == ("before", "before", "agrees")
    assert verdict.max_top_logprobs == verdict.declared_top_logprobs == 1024
    assert verdict.sampled_among == 1.0
    assert verdict.token_bytes == "none"  # its tokens are ids
    assert verdict.repeat_kl is not None
    assert verdict.repeat_kl < 1e-6
    assert verdict.requests == estimated.requests
    assert verdict.prompt_tokens + verdict.completion_tokens <= estimated.tokens
