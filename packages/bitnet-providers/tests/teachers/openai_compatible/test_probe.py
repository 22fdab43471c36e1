"""The probe against llama.cpp's own server, and servers that write bytes which are not the content's."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest

from bitnet_providers.probe.questions import probe_teacher
from bitnet_providers.teachers.openai_compatible.options import OpenAICompatibleConfig
from bitnet_providers.teachers.openai_compatible.teacher import open_with_openai
from loopback.faults import serving
from loopback.openai_server import OpenAIServer, token_entry


@pytest.mark.slow
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


def as_ollama(entry: dict[str, Any]) -> None:
    entry["bytes"] = list(entry["token"].encode())


def as_a_vocabulary(entry: dict[str, Any]) -> None:
    entry["token"] = entry["token"].replace(" ", "Ġ")
    entry["bytes"] = list(entry["token"].encode())


@pytest.mark.parametrize("spoil", [as_ollama, as_a_vocabulary])
def test_bytes_that_do_not_spell_the_content_are_said(spoil: Callable[[dict[str, Any]], None]) -> None:
    """Not by themselves, as the tokens' bytes always make what they make, but by the message's content."""

    def answer(whole: dict[str, Any]) -> dict[str, Any]:
        (choice,) = whole["choices"]
        entries = [token_entry(raw, -0.5) for raw in (b"My", b" cat ", b"\xe7\x8c", b"\xab")]
        choice["message"]["content"] = "My cat 猫"
        choice["logprobs"]["content"] = [{**entry, "top_logprobs": [dict(entry)]} for entry in entries]
        for entry in choice["logprobs"]["content"]:
            for each in (entry, *entry["top_logprobs"]):
                spoil(each)
        return whole

    async def main(url: str) -> Any:
        teacher = open_with_openai(OpenAICompatibleConfig(base_url=f"{url}/v1", model="loopback-1"))
        try:
            return await probe_teacher(teacher, "openai-compatible")
        finally:
            await teacher.aclose()

    with serving(OpenAIServer(key="", answer=answer).app()) as url:
        verdict = asyncio.run(main(url))
    assert verdict.token_bytes == "wrong"
    assert any("token bytes are wrong in 6 of 6 answers" in note for note in verdict.notes)
    if spoil is as_a_vocabulary:  # nothing tells its tokens, so no candidate is left
        assert not verdict.trusted_for_kd
    else:
        assert verdict.trusted_for_kd, verdict.reasons
