"""The teacher itself."""

import math
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from bitnet_provider_echo.plugin import CAPABILITIES, EchoConfig
from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest

OTHER_WORDS = (b" the", b" of", b" and", b" to", b" a", b" in", b" is", b" that", b" it")
"""Eight of these share what the next word leaves: those that are not the next word itself."""


class EchoTeacher:
    def __init__(self, options: EchoConfig) -> None:
        self._p_next = options.p_next
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return CAPABILITIES

    @property
    def description(self) -> Mapping[str, Any]:
        return {"model": "echo", "fingerprint": f"p_next={self._p_next}"}

    async def generate(self, request: GenerateRequest) -> Completion:
        """The last user message's words. Raises ProviderError where there is none."""
        started = time.perf_counter()
        if self._closed:
            raise ProviderError("echo is closed", "open it again")
        said = [message["content"] for message in request.messages if message["role"] == "user"]
        if not said or not said[-1].strip():
            raise ProviderError("echo needs a user message to repeat", "add one to the prompt")
        words = re.findall(rb"\s*\S+", said[-1].encode())
        tokens = tuple(words[: request.sampling.max_new_tokens])
        candidates = [self._candidates(token)[: request.top_logprobs] for token in tokens]
        flat = [candidate for position in candidates for candidate in position]
        return Completion(
            text=b"".join(tokens),
            token_bytes=tokens,
            token_logprobs=np.full(len(tokens), math.log(self._p_next), np.float32),
            candidate_counts=np.array([len(position) for position in candidates], np.int32),
            candidate_bytes=tuple(token for token, _ in flat),
            candidate_logprobs=np.array([logprob for _, logprob in flat], np.float32),
            finish_reason="stop" if len(tokens) == len(words) else "length",
            model="echo",
            prompt_tokens=sum(len(message["content"].split()) for message in request.messages),
            latency_s=time.perf_counter() - started,
        )

    def _candidates(self, token: bytes) -> list[tuple[bytes, float]]:
        """Nine (token, log-probability in nats), the likeliest first; their probabilities sum to 1."""
        others = [word for word in OTHER_WORDS if word != token][:8]
        rest = math.log((1.0 - self._p_next) / len(others))
        return [(token, math.log(self._p_next)), *((word, rest) for word in others)]

    async def score(self, request: ScoreRequest) -> Completion:
        raise ProviderError("echo does not score given text", "take collect.texts out of the manifest")

    async def aclose(self) -> None:
        self._closed = True
