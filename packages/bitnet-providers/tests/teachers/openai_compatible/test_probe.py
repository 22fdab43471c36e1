"""The probe against llama.cpp's own server."""

import asyncio
from typing import Any

from bitnet_providers.probe.ask import probe_teacher
from bitnet_providers.teachers.openai_compatible.options import OpenAICompatibleConfig
from bitnet_providers.teachers.openai_compatible.teacher import open_with_openai


def test_a_llamacpp_server_passes(llamacpp_url: str) -> None:
    """Without `score`, as llama.cpp ignores echo."""

    async def main() -> Any:
        options = OpenAICompatibleConfig(
            preset="llamacpp", base_url=llamacpp_url, model="smollm2", end_of_turn="<|im_end|>", max_top_logprobs=20
        )
        teacher = open_with_openai(options)
        try:
            return await probe_teacher(teacher, "openai-compatible")
        finally:
            await teacher.aclose()

    verdict = asyncio.run(main())
    assert verdict.trusted_for_kd, verdict.reasons
    assert (verdict.temperature, verdict.temperature_rule) == ("before", "before: any temperature")
    assert verdict.top_p == "before"
    assert verdict.max_top_logprobs == 20
    assert verdict.token_bytes == "valid"
    assert verdict.scoring == "not offered"
    assert verdict.max_mass is not None
    assert verdict.max_mass <= 1.001
    assert verdict.repeat_kl is not None
    assert verdict.repeat_kl < 0.01
