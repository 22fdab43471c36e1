"""The same API through google-generativeai, which Google retired in 2025: for environments that can't change it.

The SDK keeps one configuration a process and is synchronous: it runs in threads, ten requests at a time.
"""

import asyncio
import time
import warnings
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import msgspec
import requests
from google.api_core import exceptions
from google.auth import exceptions as auth_exceptions
from google.protobuf.json_format import MessageToDict, ParseError

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, not_sent, wrong_shape
from bitnet_providers.teachers.common.model_url_key import Access, resolve
from bitnet_providers.teachers.common.system_prompt import split_system
from bitnet_providers.teachers.gemini.answer import Response, check_candidates, read_answer, role_of
from bitnet_providers.teachers.gemini.errors import read_error
from bitnet_providers.teachers.gemini.options import GEMINI_LEGACY_CAPABILITIES, GEMINI_URL, GeminiLegacyTeacherConfig

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)  # its own farewell of eight lines; ours is one
    import google.generativeai

genai: Any = google.generativeai  # its hints don't name what it exports

WHO = "gemini-legacy"
AT_ONCE = 10
"""Connections that the SDK's pool keeps; more would be opened and thrown away."""


def open_gemini_legacy(options: GeminiLegacyTeacherConfig) -> "GeminiLegacyTeacher":
    """An open teacher; warns that the SDK is retired. Raises ProviderError where model or key are missing."""
    access = resolve(options, GEMINI_URL)
    warnings.warn(
        'teacher.kind = "gemini-legacy" uses google-generativeai, which Google retired in 2025: use "gemini"',
        FutureWarning,  # a DeprecationWarning is shown to nobody
        stacklevel=2,
    )
    return GeminiLegacyTeacher(options, access)


class GeminiLegacyTeacher:
    """See `bitnet_providers.contract.Teacher`."""

    def __init__(self, options: GeminiLegacyTeacherConfig, access: Access) -> None:
        self._options = options
        self._closed = False
        self._model, self._base_url = access.model, access.base_url
        self._redact = Redactor(access.api_key)
        self._threads = ThreadPoolExecutor(AT_ONCE, thread_name_prefix=WHO)
        genai.configure(
            api_key=access.api_key,
            transport="rest",  # gRPC goes past proxies and gateways
            client_options={"api_endpoint": access.base_url},
        )

    @property
    def capabilities(self) -> Capabilities:
        return GEMINI_LEGACY_CAPABILITIES

    @property
    def description(self) -> Mapping[str, Any]:
        """``model``, ``provider`` and ``base_url``."""
        return {"model": self._model, "provider": WHO, "base_url": self._base_url}

    async def generate(self, request: GenerateRequest) -> Completion:
        """One answer. Raises ProviderError and its kinds."""
        if self._closed:
            raise ProviderError(f"{WHO}: this teacher is closed", "open it again")
        check_candidates(request.top_logprobs, WHO)
        system, turns = split_system(request.messages)
        sampling = request.sampling
        settings: dict[str, Any] = {
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "max_output_tokens": sampling.max_new_tokens,
        }
        if request.top_logprobs:
            settings |= {"response_logprobs": True, "logprobs": request.top_logprobs}
        contents = [{"role": role_of(turn), "parts": [turn["content"]]} for turn in turns]

        def call() -> tuple[Response, float]:
            started = time.perf_counter()  # the wait for a free thread is not the model's
            answer = genai.GenerativeModel(self._model, system_instruction=system).generate_content(
                contents,
                generation_config=settings,
                request_options={"retry": None, "timeout": self._options.timeout_s},
            )
            body = MessageToDict(type(answer._result).pb(answer._result))
            return msgspec.convert(body, Response), time.perf_counter() - started

        failure: ProviderError
        try:
            response, latency_s = await asyncio.get_running_loop().run_in_executor(self._threads, call)
        except exceptions.GoogleAPICallError as error:
            failure = self._refused(error)
        except (requests.exceptions.ConnectTimeout, requests.exceptions.ProxyError) as error:
            failure = not_sent(WHO, type(error).__name__)
        except (requests.exceptions.RequestException, auth_exceptions.TransportError) as error:
            refused = "NewConnectionError" in repr(error)
            failure = (not_sent if refused else answer_lost)(WHO, type(error).__name__)
        except ParseError as error:
            no_json = str(error).startswith("Failed to load JSON")
            failure = answer_lost(WHO, "it is no JSON") if no_json else wrong_shape(WHO, self._redact(error))
        else:
            return read_answer(response, who=WHO, top_k=request.top_logprobs, model=self._model, latency_s=latency_s)
        raise failure  # outside of the handlers: the SDK's error holds the request, and the request holds the key

    async def score(self, request: ScoreRequest) -> Completion:
        raise ProviderError(f"{WHO} does not score given text", "take collect.texts out, or use another teacher")

    async def aclose(self) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)

    def _refused(self, error: exceptions.GoogleAPICallError) -> ProviderError:
        response = error.response
        body: Any = None
        if response is not None:
            try:
                body = response.json()
            except ValueError:
                body = {"error": {"message": error.message}}
        return read_error(
            WHO,
            int(error.code or 500),
            body,
            {} if response is None else response.headers,
            key=self._options.api_key_env,
            model=self._model,
            redact=self._redact,
        )
