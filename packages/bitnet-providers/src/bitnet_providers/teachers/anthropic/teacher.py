"""Claude through the official SDK: sequence level, because the API tells no log-probabilities."""

import json
import time
from collections.abc import Mapping
from typing import Any

import anthropic

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest
from bitnet_providers.teachers.anthropic.answer import WHO, read_answer, read_error
from bitnet_providers.teachers.anthropic.options import ANTHROPIC_CAPABILITIES, ANTHROPIC_URL, AnthropicTeacherConfig
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, not_sent, refuses_moved
from bitnet_providers.teachers.common.model_url_key import Access, resolve
from bitnet_providers.teachers.common.system_prompt import split_system

SAMPLING_VERSION = "2023-06-01"
"""The last version of the API that takes temperature and top_p; later ones answer 400 at any value."""


def open_anthropic(options: AnthropicTeacherConfig) -> "AnthropicTeacher":
    """A client of its own connection pool, without the SDK's retries. Raises ProviderError."""
    return AnthropicTeacher(options, resolve(options, ANTHROPIC_URL))


class AnthropicTeacher:
    """See `bitnet_providers.contract.Teacher`."""

    def __init__(self, options: AnthropicTeacherConfig, access: Access) -> None:
        self._options = options
        self._model, self._base_url = access.model, access.base_url
        self._redact = Redactor(access.api_key)
        # The SDK's own pool keeps 100 idle connections: with 200 at work half would be opened again and again.
        limits = type(anthropic.DEFAULT_CONNECTION_LIMITS)(max_connections=None, max_keepalive_connections=None)
        self._client = anthropic.AsyncAnthropic(
            api_key=access.api_key,
            base_url=access.base_url,
            timeout=options.timeout_s,
            max_retries=0,
            http_client=anthropic.DefaultAsyncHttpxClient(
                limits=limits, timeout=options.timeout_s, event_hooks={"response": [refuses_moved(WHO)]}
            ),
        )

    @property
    def capabilities(self) -> Capabilities:
        return ANTHROPIC_CAPABILITIES

    @property
    def description(self) -> Mapping[str, Any]:
        """``model``, ``provider``, ``base_url`` and, where thinking was set, ``thinking``."""
        asked = self._options.thinking
        thinking = {} if asked == "auto" else {"thinking": asked, "fingerprint": f"thinking {asked}"}
        return {"model": self._model, "provider": WHO, "base_url": self._base_url, **thinking}

    async def generate(self, request: GenerateRequest) -> Completion:
        """One answer, without tokens and log-probabilities. Raises ProviderError and its kinds."""
        if request.top_logprobs:
            raise ProviderError(f"{WHO} gives no log-probabilities", "set collect.top_k = 0")
        arguments = self._arguments(request)
        started = time.perf_counter()
        failure: ProviderError
        try:
            response = await self._client.messages.with_raw_response.create(**arguments)
            body = json.loads(response.http_response.content)
        except anthropic.APIStatusError as error:
            failure = read_error(
                error.status_code,
                error.body,
                error.response.headers,
                key=self._options.api_key_env,
                model=self._model,
                redact=self._redact,
            )
        except anthropic.APITimeoutError as error:
            failure = self._no_answer(error, f"it took longer than teacher.timeout_s ({self._options.timeout_s:g} s)")
        except anthropic.APIConnectionError as error:
            cause = error.__cause__ or error
            failure = cause if isinstance(cause, ProviderError) else self._no_answer(error, type(cause).__name__)
        except ValueError as error:  # json's own, and bytes that are no text
            failure = answer_lost(WHO, f"not JSON ({type(error).__name__})", answered=True)
        except anthropic.AnthropicError as error:
            failure = ProviderError(f"{WHO}: {self._redact(error)}")
        else:
            return read_answer(body, time.perf_counter() - started)
        raise failure  # outside of the handlers: the SDK's error holds the request, and the request holds the key

    async def score(self, request: ScoreRequest) -> Completion:
        raise ProviderError(f"{WHO} does not score given text", "take collect.texts out, or use another teacher")

    async def aclose(self) -> None:
        await self._client.close()

    def _arguments(self, request: GenerateRequest) -> dict[str, Any]:
        system, turns = split_system(request.messages)
        sampling = request.sampling
        if sampling.temperature > 1:
            raise ProviderError(
                f"{WHO} takes a temperature of 1 at most, not {sampling.temperature:g}", "lower the temperature"
            )
        body: dict[str, Any] = {}
        if sampling.temperature != 1:
            body["temperature"] = sampling.temperature
        if sampling.top_p != 1 and sampling.temperature > 0:
            body["top_p"] = sampling.top_p
        arguments: dict[str, Any] = {
            "model": self._model,
            "max_tokens": sampling.max_new_tokens,
            "messages": [{"role": turn["role"], "content": turn["content"]} for turn in turns],
        }
        if system is not None:
            arguments["system"] = system
        if self._options.thinking == "off":
            arguments["thinking"] = {"type": "disabled"}
        if body:
            arguments |= {"extra_body": body, "extra_headers": {"anthropic-version": SAMPLING_VERSION}}
        return arguments

    def _no_answer(self, error: anthropic.APIConnectionError, reason: str) -> ProviderError:
        """Whether the request was out before the connection went, by the transport's own error."""
        cause = type(error.__cause__ or error).__name__
        before = cause.startswith(("Connect", "Write", "Pool", "Proxy", "UnsupportedProtocol"))
        return not_sent(WHO, reason) if before else answer_lost(WHO, reason)
