"""A small language model that tells the truth, and can be told to lie in one way at a time."""

import hashlib
import math
from collections.abc import Callable, Mapping
from typing import Any

import attrs
import numpy as np
import pytest

from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    ScoreRequest,
)

VOCABULARY = b"abcdefghijklmnopqrstuvwxyz "
Lie = str


class LetterTeacher:
    """One token a letter; the next letter's distribution depends on the prompt and all letters before."""

    def __init__(self, lie: Lie = "", declared: int = 20, noise: float = 0.0, failures: int = 0) -> None:
        self.lie, self.noise, self.failures = lie, noise, failures
        self.capabilities = Capabilities(
            max_top_logprobs=declared, token_ids=False, token_bytes=True, scoring=True, external=True,
            logprobs_before_temperature=None,
        )  # fmt: skip
        self.description: Mapping[str, Any] = {"model": "letters"}
        self.calls: list[GenerateRequest | ScoreRequest] = []
        self._noise = np.random.default_rng(3)

    async def generate(self, request: GenerateRequest) -> Completion:
        self._count(request)
        sampling = request.sampling
        if self.lie == "refuses 20" and request.top_logprobs > 5:
            raise RequestRefusedError("top_logprobs must be at most 5")
        if self.lie == "refuses candidates" and request.top_logprobs:
            raise ProviderError("logprobs are not supported")
        if self.lie == "refuses temperature" and sampling.temperature != 1:
            raise RequestRefusedError("temperature is fixed at 1")
        draw = np.random.default_rng(sampling.seed)
        prompt = request.messages[-1]["content"]
        text, rows = b"", []
        for _ in range(sampling.max_new_tokens):
            logprobs = self._logprobs(prompt, text)
            sampled_from = normalised(logprobs / max(sampling.temperature, 1e-4))
            narrowed = nucleus(sampled_from, sampling.top_p)
            token = int(draw.choice(len(VOCABULARY), p=np.exp(narrowed) / np.exp(narrowed).sum()))
            after_top_p = nucleus(logprobs, sampling.top_p)
            told = {"after temperature": sampled_from, "after top_p": after_top_p}.get(self.lie, logprobs)
            rows.append(self._position(token, told, request.top_logprobs))
            text += VOCABULARY[token : token + 1]
        return self._completion(text, rows, "length")

    async def score(self, request: ScoreRequest) -> Completion:
        self._count(request)
        if self.lie == "refuses scoring":
            raise RequestRefusedError("echo is not supported")
        prompt = request.messages[-1]["content"] if request.messages else ""
        text = request.text.lower().encode()
        letters = bytes(each if each in VOCABULARY else 32 for each in text)
        rows = []
        for position in range(len(letters)):
            shift = {"scoring late": -1, "scoring early": 1}.get(self.lie, 0)
            at = min(max(0, position + shift), len(letters) - 1)
            logprobs = self._logprobs(prompt, letters[:at])
            if self.lie == "scoring by another model":
                logprobs = normalised(logprobs * 2)
            own = VOCABULARY.index(letters[at])
            rows.append((own, *self._position(own, logprobs, request.top_logprobs)[1:]))
        if self.lie == "echo ignored":
            return self._completion(b"a new answer", rows[:12], "scored")
        completion = self._completion(request.text.encode(), rows, "scored")
        return attrs.evolve(completion, token_bytes=tuple(bytes([each]) for each in request.text.encode()))

    async def aclose(self) -> None:
        pass

    def _count(self, request: GenerateRequest | ScoreRequest) -> None:
        self.calls.append(request)
        if len(self.calls) <= self.failures:
            raise RetryableError("busy", retry_after_s=7.0, overloaded=True)

    def _logprobs(self, prompt: str, text: bytes) -> np.ndarray:
        seed = hashlib.sha256(prompt.encode() + b"\0" + text).digest()
        if self.lie == "another model each time":
            seed = bytes([len(self.calls)]) + seed
        logits = np.random.default_rng(list(seed)).normal(0, 2, len(VOCABULARY))
        return normalised(logits + self._noise.normal(0, self.noise, len(VOCABULARY)))

    def _position(self, token: int, logprobs: np.ndarray, k: int) -> tuple[int, float, list[tuple[int, float]]]:
        top = [int(each) for each in np.argsort(-logprobs, kind="stable")[:k] if logprobs[each] > -1e6]
        listed = [(each, float(logprobs[each])) for each in top]
        own = float(max(logprobs[token], -1e4))
        match self.lie:
            case "gives none":
                listed = []
            case "unsorted":
                listed.reverse()
            case "mass above 1":
                listed = [(each, value / 3) for each, value in listed]
            case "sentinels":
                listed = [(each, -9999.0) for each, _ in listed]
            case "not finite":
                listed = [(each, math.nan) for each, _ in listed]
            case "above zero":
                listed = [(each, abs(value)) for each, value in listed]
            case "sampled missing":
                listed = [each for each in listed if each[0] != token]
            case "certain":
                listed, own = [(token, 0.0)], 0.0
            case "too many":
                listed += [(each, -8.0 - each) for each in range(len(VOCABULARY)) if each not in top][:3]
            case "other log-probability":
                own = own - 1.0
        return token, own, listed

    def _completion(self, text: bytes, rows: list[Any], finish: Any) -> Completion:
        tokens = tuple(VOCABULARY[token : token + 1] for token, _, _ in rows)
        if self.lie == "wrong bytes":
            tokens = tuple(b"x" for _ in tokens)
        flat = [candidate for _, _, listed in rows for candidate in listed]
        return Completion(
            text=text,
            token_bytes=tokens,
            token_logprobs=np.array([own for _, own, _ in rows], np.float32),
            candidate_counts=np.array([len(listed) for _, _, listed in rows], np.int32),
            candidate_bytes=tuple(VOCABULARY[each : each + 1] for each, _ in flat),
            candidate_logprobs=np.array([value for _, value in flat], np.float32),
            finish_reason=finish,
            model="letters-1",
            prompt_tokens=5,
            latency_s=0.25,
        )


def normalised(logits: np.ndarray) -> np.ndarray:
    return logits - np.logaddexp.reduce(logits)


def nucleus(logprobs: np.ndarray, top_p: float) -> np.ndarray:
    """The likeliest that reach `top_p` together, normalised; the others have no probability."""
    if top_p >= 1:
        return logprobs
    order = np.argsort(-logprobs)
    kept = order[: int(np.searchsorted(np.cumsum(np.exp(logprobs[order])), top_p)) + 1]
    narrowed = np.full_like(logprobs, -np.inf)
    narrowed[kept] = normalised(logprobs[kept])
    return narrowed


@pytest.fixture
def letters() -> Callable[..., LetterTeacher]:
    return LetterTeacher
