"""Google's models through google-genai, on an HTTP client of our own: no retries but the caller's, and no small pool.

The SDK keeps its key in a header and hands the answer's bytes over unread.
"""

import time
from collections.abc import Mapping
from typing import Any

import httpx2
import msgspec
from google import genai
from google.genai import errors, types

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, not_sent, wrong_shape
from bitnet_providers.teachers.common.model_url_key import Access, resolve
from bitnet_providers.teachers.common.system_prompt import split_system
from bitnet_providers.teachers.gemini.answer import check_candidates, decode, read_answer, role_of
from bitnet_providers.teachers.gemini.errors import read_error
from bitnet_providers.teachers.gemini.options import GEMINI_CAPABILITIES, GEMINI_URL, GeminiTeacherConfig

WHO = "gemini"
_BEFORE = (httpx2.ConnectError, httpx2.ConnectTimeout, httpx2.WriteError, httpx2.WriteTimeout, httpx2.PoolTimeout)
"""Raised before the request was out whole."""


def open_gemini(options: GeminiTeacherConfig) -> "GeminiTeacher":
    """An open teacher. Raises ProviderError where model or key are missing."""
    return GeminiTeacher(options, resolve(options, GEMINI_URL))


class GeminiTeacher:
    """See `bitnet_providers.contract.Teacher`."""

    def __init__(self, options: GeminiTeacherConfig, access: Access) -> None:
        self._options = options
        self._closed = False
        self._model, self._base_url = access.model, access.base_url
        self._redact = Redactor(access.api_key)
        self._http = httpx2.AsyncClient(
            limits=httpx2.Limits(max_connections=None, max_keepalive_connections=None), timeout=options.timeout_s
        )
        self._client = genai.Client(
            api_key=access.api_key,
            vertexai=False,
            http_options=types.HttpOptions(
                base_url=access.base_url,
                api_version="v1beta",
                timeout=round(options.timeout_s * 1000),
                retry_options=types.HttpRetryOptions(attempts=1),
                httpx_async_client=self._http,
            ),
        )

    @property
    def capabilities(self) -> Capabilities:
        return GEMINI_CAPABILITIES

    @property
    def description(self) -> Mapping[str, Any]:
        """``model``, ``provider``, ``base_url`` and, where it was set, ``thinking_budget``."""
        budget = self._options.thinking_budget
        thinking = {} if budget is None else {"thinking_budget": budget, "fingerprint": f"thinking {budget}"}
        return {"model": self._model, "provider": WHO, "base_url": self._base_url, **thinking}

    async def generate(self, request: GenerateRequest) -> Completion:
        """One answer. Raises ProviderError and its kinds."""
        if self._closed:
            raise ProviderError(f"{WHO}: this teacher is closed", "open it again")
        contents, config = self._arguments(request)
        started = time.perf_counter()
        failure: ProviderError
        try:
            answer = await self._client.aio.models.generate_content(model=self._model, contents=contents, config=config)
            response = decode((answer.sdk_http_response and answer.sdk_http_response.body) or "")
        except errors.APIError as error:
            failure = self._refused(error)
        except httpx2.TimeoutException as error:
            reason = f"it took longer than teacher.timeout_s ({self._options.timeout_s:g} s)"
            failure = (not_sent if isinstance(error, _BEFORE) else answer_lost)(WHO, reason)
        except httpx2.HTTPError as error:
            failure = (not_sent if isinstance(error, _BEFORE) else answer_lost)(WHO, type(error).__name__)
        except msgspec.ValidationError as error:
            failure = wrong_shape(WHO, str(error))
        except (msgspec.DecodeError, errors.UnknownApiResponseError, UnicodeDecodeError) as error:
            failure = answer_lost(WHO, f"not its JSON ({type(error).__name__})", answered=True)
        except ValueError as error:  # the SDK's own checks of what it is given, and of an error's body
            failure = ProviderError(f"{WHO}: {self._redact(error)}")
        else:
            return read_answer(
                response,
                who=WHO,
                top_k=request.top_logprobs,
                model=self._model,
                latency_s=time.perf_counter() - started,
            )
        raise failure  # outside of the handlers: the SDK's error holds the request, and the request holds the key

    async def score(self, request: ScoreRequest) -> Completion:
        raise ProviderError(f"{WHO} does not score given text", "take collect.texts out, or use another teacher")

    async def aclose(self) -> None:
        self._closed = True
        await self._http.aclose()
        self._client.close()

    def _arguments(self, request: GenerateRequest) -> tuple[list[types.Content], types.GenerateContentConfig]:
        check_candidates(request.top_logprobs, WHO)
        system, turns = split_system(request.messages)
        sampling, budget = request.sampling, self._options.thinking_budget
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_new_tokens,
            "seed": sampling.seed,
            "system_instruction": system,
            "thinking_config": None if budget is None else types.ThinkingConfig(thinking_budget=budget),
            "automatic_function_calling": types.AutomaticFunctionCallingConfig(disable=True),
            "should_return_http_response": True,
        }
        if request.top_logprobs:
            settings |= {"response_logprobs": True, "logprobs": request.top_logprobs}
        if "automatic_continuation" in types.GenerateContentConfig.model_fields:
            settings["automatic_continuation"] = False  # one request, one answer
        contents = [types.Content(role=role_of(turn), parts=[types.Part(text=turn["content"])]) for turn in turns]
        return contents, types.GenerateContentConfig(**settings)

    def _refused(self, error: errors.APIError) -> ProviderError:
        return read_error(
            WHO,
            error.code,
            error.details,
            getattr(error.response, "headers", None) or {},
            key=self._options.api_key_env,
            model=self._model,
            redact=self._redact,
        )
