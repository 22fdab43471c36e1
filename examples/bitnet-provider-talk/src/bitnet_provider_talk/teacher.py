"""The teacher itself: the API's words in, the contract's columns and errors out."""

import time
from collections.abc import Mapping
from typing import Any

import aiohttp
import numpy as np

from bitnet_provider_talk.plugin import TalkConfig
from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    ScoreRequest,
)


class TalkTeacher:
    def __init__(self, options: TalkConfig, capabilities: Capabilities, key: str) -> None:
        if not key:
            raise ProviderError(f"talk: {options.api_key_env} is not set", "export it, or put it in .env")
        self._options, self._capabilities, self._key = options, capabilities, key
        self._session: aiohttp.ClientSession | None = None
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def description(self) -> Mapping[str, Any]:
        return {"model": self._options.model, "base_url": self._options.base_url}

    async def generate(self, request: GenerateRequest) -> Completion:
        most = self._capabilities.max_top_logprobs
        if self._closed:
            raise ProviderError("talk is closed", "open it again")
        if request.top_logprobs > most:
            raise ProviderError(f"talk gives at most {most} candidates", "lower collect.top_k")
        sampling, started = request.sampling, time.perf_counter()
        said = await self._ask(
            {
                "text": "\n".join(message["content"] for message in request.messages),
                "model": self._options.model,
                "temperature": sampling.temperature,
                "top_p": sampling.top_p,
                "max_tokens": sampling.max_new_tokens,
                "seed": sampling.seed,
                "alternatives": request.top_logprobs,
            }
        )
        latency_s = time.perf_counter() - started
        try:
            return _completion(said, request, self._options.model, latency_s)
        except (KeyError, TypeError, AttributeError, ValueError) as error:
            raise ProviderError(f"talk: the answer is not what the API sends ({type(error).__name__})") from None

    async def score(self, request: ScoreRequest) -> Completion:
        raise ProviderError("talk does not score given text", "take collect.texts out of the manifest")

    async def aclose(self) -> None:
        self._closed = True
        if self._session is not None:
            await self._session.close()

    async def _ask(self, body: Mapping[str, Any]) -> Any:
        """The answer's JSON. ``from None``: an error of the client's may hold the request, and the key with it."""
        if self._session is None:  # it belongs to the event loop that is running now
            limit = aiohttp.ClientTimeout(total=self._options.timeout_s)
            self._session = aiohttp.ClientSession(timeout=limit, headers={"X-Talk-Key": self._key})
        try:
            async with self._session.post(f"{self._options.base_url}/talk", json=body) as response:
                _raise_for(response, self._options)
                return await response.json()
        except aiohttp.ClientConnectorError:
            raise RetryableError("talk: no connection") from None
        except (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError, TimeoutError):
            raise RetryableError("talk: the answer never came", possibly_paid=True) from None
        except (aiohttp.ClientError, ValueError):
            raise RetryableError("talk: the answer is no JSON", possibly_paid=True) from None


def _raise_for(response: aiohttp.ClientResponse, options: TalkConfig) -> None:
    status = response.status
    if status == 429:
        wait = response.headers.get("Retry-After", "")
        seconds = float(wait) if wait.isdigit() else None
        raise RetryableError("talk: asked too much", overloaded=True, retry_after_s=seconds)
    if status >= 500:
        raise RetryableError(f"talk: the server answers {status}")
    if status == 400:
        raise RequestRefusedError("talk: the server refuses this text (400)")
    if status != 200:
        raise ProviderError(
            f"talk: the server answers {status}",
            f"check the key in {options.api_key_env}, teacher.model and teacher.base_url",
        )


def _completion(said: Any, request: GenerateRequest, model: str, latency_s: float) -> Completion:
    """Candidates as they came, the likeliest of a position first; an unknown log-probability is NaN."""
    tokens = said["tokens"]
    listed = [sorted(token["alternatives"], key=lambda each: -each["lp"]) for token in tokens]
    flat = [each for position in listed for each in position]
    logprobs = [np.nan if token["lp"] is None else token["lp"] for token in tokens]
    return Completion(
        text=said["answer"].encode(),
        token_bytes=tuple(token["piece"].encode() for token in tokens),
        token_logprobs=np.array(logprobs, np.float32),
        candidate_counts=np.array([len(position) for position in listed], np.int32),
        candidate_bytes=tuple(each["piece"].encode() for each in flat),
        candidate_logprobs=np.array([each["lp"] for each in flat], np.float32),
        finish_reason="length" if len(tokens) >= request.sampling.max_new_tokens else "stop",
        model=model,
        prompt_tokens=sum(len(message["content"].split()) for message in request.messages),  # the API doesn't tell
        latency_s=latency_s,
    )
