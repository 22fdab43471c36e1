"""The adapters against a real server: llama.cpp's, with the model that the `local` teacher runs in transformers."""

import asyncio
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_providers.contract import Completion, GenerateRequest, ProviderError, Sampling, ScoreRequest
from bitnet_providers.teachers.local.options import LocalTeacherConfig
from bitnet_providers.teachers.openai_compatible.options import OpenAICompatibleConfig, OpenAIConfig
from bitnet_providers.teachers.openai_compatible.teacher import open_with_openai

QUESTIONS = ("What is the capital of France?", "Write one sentence about the sea.", "Count from one to ten.")
SYSTEM = {"role": "system", "content": "You are a helpful AI assistant."}


def request(question: str, temperature: float = 0.0, top_logprobs: int = 20, tokens: int = 24) -> GenerateRequest:
    messages = (SYSTEM, {"role": "user", "content": question})
    return GenerateRequest(messages, Sampling(temperature, 1.0, tokens, 7), top_logprobs)


def compatible(url: str, **more: Any) -> OpenAICompatibleConfig:
    options = {"preset": "llamacpp", "base_url": url, "model": "smollm2", "end_of_turn": "<|im_end|>", **more}
    return OpenAICompatibleConfig(**options)


def ask(options: Any, *requests: GenerateRequest) -> list[Completion]:
    async def run() -> list[Completion]:
        teacher = open_with_openai(options)
        try:
            return [await teacher.generate(each) for each in requests]
        finally:
            await teacher.aclose()

    return asyncio.run(run())


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["openai", "openai-compatible"])
@pytest.mark.parametrize("stream", [False, True])
def test_both_adapters(llamacpp_url: str, monkeypatch: pytest.MonkeyPatch, kind: str, stream: bool) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-fake-for-a-local-server")
    options: Any = compatible(llamacpp_url, stream=stream)
    if kind == "openai":
        options = OpenAIConfig(model="smollm2", base_url=llamacpp_url, stream=stream)
    for found in ask(options, *(request(question, 1.0) for question in QUESTIONS)):
        assert b"".join(found.token_bytes or ()) == found.text
        assert found.candidate_counts.tolist() == [20] * len(found.token_logprobs)
        assert np.isfinite(found.token_logprobs).all()
        ends = np.cumsum(found.candidate_counts)
        mass = [float(np.exp(part.astype(np.float64)).sum()) for part in np.split(found.candidate_logprobs, ends[:-1])]
        assert max(mass) <= 1.0 + 1e-4
        assert found.usage["completion_tokens"] - len(found.token_logprobs) in ((0, 1) if stream else (0,))
        assert found.usage["decode_s"] > 0
        assert set(found.repairs) <= {"sampled_outside", "same_bytes"}


def test_a_stream_gives_the_same_completion(llamacpp_url: str) -> None:
    (whole,) = ask(compatible(llamacpp_url), request(QUESTIONS[0]))
    (streamed,) = ask(compatible(llamacpp_url, stream=True), request(QUESTIONS[0]))
    # In a stream the server leaves the end of the turn out.
    end = b"<|im_end|>"
    assert (streamed.text, streamed.token_bytes) == (whole.text.removesuffix(end), (whole.token_bytes or ())[:-1])
    # A prompt out of the cache is computed in other batches than a new one: the numbers agree, the last bits don't.
    np.testing.assert_allclose(streamed.token_logprobs, whole.token_logprobs[:-1], atol=0.05)


def test_the_end_of_the_turn_is_a_token_with_a_name(llamacpp_url: str) -> None:
    (found,) = ask(compatible(llamacpp_url), request(QUESTIONS[0], tokens=64))
    assert found.finish_reason == "stop"
    assert (found.token_bytes or ())[-1] == b"<|im_end|>"
    assert b"<|im_end|>" in (found.candidate_bytes or ())[-20:]


def test_characters_that_tokens_cut(llamacpp_url: str) -> None:
    """The server joins such tokens into one entry with the last one's numbers; those must not become KD."""
    options = compatible(llamacpp_url, extra_body={"grammar": 'root ::= "a 猫é 梨!"'})
    for stream in (False, True):
        (found,) = ask(compatible(llamacpp_url, stream=stream, extra_body=options.extra_body), request("Hi", 1.0))
        pieces = dict(zip(found.token_bytes or (), found.candidate_counts.tolist(), strict=True))
        assert found.text.startswith("a 猫é 梨!".encode())
        assert (pieces["猫".encode()], pieces["梨".encode()], pieces[b"a"]) == (0, 0, 20)
        assert found.repairs["joined_by_server"] >= 2


def test_echo_is_ignored_and_found_out(llamacpp_url: str) -> None:
    async def score() -> None:
        teacher = open_with_openai(compatible(llamacpp_url, scoring="echo"))
        try:
            await teacher.score(ScoreRequest("The sea is calm", 5))
        finally:
            await teacher.aclose()

    with pytest.raises(ProviderError, match="ignores echo"):
        asyncio.run(score())


def buckets_kl(p: dict[bytes, float], q: dict[bytes, float]) -> float:
    """KL(p‖q) in nats over the candidates that both list and one bucket for all else."""
    both = sorted(p.keys() & q.keys())
    p_all, q_all = (np.append(masses, max(1e-9, 1.0 - masses.sum()))
                    for masses in (np.exp([side[key] for key in both]) for side in (p, q)))  # fmt: skip
    return float(np.sum(p_all * np.log(p_all / q_all)))


@pytest.mark.slow
def test_log_probabilities_agree_with_the_local_teacher_s(
    llamacpp_url: str, smollm2_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """What the server wrote greedily, scored by transformers on the same weights, dequantised: only arithmetic differs.

    llama.cpp multiplies Q4_1 weights with activations in 8 bits; transformers has both in fp32.
    """
    from transformers import AutoTokenizer

    from bitnet_providers.teachers.local.teacher import open_local

    requests = [request(question) for question in QUESTIONS]
    served = ask(compatible(llamacpp_url), *requests)
    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)

    async def score() -> list[Completion]:
        teacher = open_local(LocalTeacherConfig(model=str(smollm2_folder), device="cpu", dtype="fp32"))
        try:
            texts = [found.text.decode().removesuffix("<|im_end|>") for found in served]
            pairs = zip(texts, requests, strict=True)
            return [await teacher.score(ScoreRequest(text, 20, each.messages)) for text, each in pairs]
        finally:
            await teacher.aclose()

    kls, agreed = [], 0
    for found, scored in zip(served, asyncio.run(score()), strict=True):
        ids = [] if scored.token_ids is None else scored.token_ids.tolist()
        spoken = [tokenizer.decode([each]).encode() for each in ids]
        positions = min(len(spoken), len(found.token_bytes or ()))
        first_p = first_q = 0
        for position in range(positions):
            assert (found.token_bytes or ())[position] == spoken[position]
            p_count, q_count = int(found.candidate_counts[position]), int(scored.candidate_counts[position])
            p = dict(zip((found.candidate_bytes or ())[first_p : first_p + p_count],
                         found.candidate_logprobs[first_p : first_p + p_count].tolist(), strict=True))  # fmt: skip
            assert scored.candidate_ids is not None
            names = [tokenizer.decode([each]).encode() for each in scored.candidate_ids[first_q : first_q + q_count]]
            q = dict(zip(names, scored.candidate_logprobs[first_q : first_q + q_count].tolist(), strict=True))
            kls.append(buckets_kl(q, p))
            agreed += max(p, key=p.__getitem__) == max(q, key=q.__getitem__)
            first_p, first_q = first_p + p_count, first_q + q_count
    with capsys.disabled():
        print(
            f"\nKL(local ‖ llama.cpp) over the top-20 buckets: mean {np.mean(kls):.5f}, median {np.median(kls):.5f}, "
            f"most {max(kls):.5f} nats at {len(kls)} positions; same first candidate {agreed / len(kls):.1%}"
        )
    assert len(kls) > 30
    assert float(np.mean(kls)) < 0.02
    assert agreed / len(kls) > 0.9
