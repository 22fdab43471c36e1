"""The teacher: one request through the official SDK, its answer decoded straight into columns."""

import sys
import time
from collections.abc import Mapping
from importlib import import_module
from types import ModuleType
from typing import Any

import msgspec

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, ProviderError, ScoreRequest, Teacher
from bitnet_providers.teachers.common.http_errors import Redactor, answer_lost, refuses_moved
from bitnet_providers.teachers.openai_compatible.answer import Response, completion_of, decode
from bitnet_providers.teachers.openai_compatible.errors import Failures
from bitnet_providers.teachers.openai_compatible.many_servers import ManyServers
from bitnet_providers.teachers.openai_compatible.model_url_key import (
    NO_KEY,
    Server,
    capabilities_of,
    each_server,
    is_this_machine,
    preset_of,
    server_of,
)
from bitnet_providers.teachers.openai_compatible.options import ServerOptions
from bitnet_providers.teachers.openai_compatible.scoring import scored, scoring_body
from bitnet_providers.teachers.openai_compatible.stream import Assembly, assemble

CONNECTIONS = 1000
"""At most; the SDKs keep only 100 alive, and would connect anew for each request above that."""
CHAT, COMPLETIONS = "/chat/completions", "/completions"
_OWN_KEY_ONLY = {"security": {"bearer_auth": True}}
"""As the SDK's own methods say it; else it takes OPENAI_ADMIN_KEY into account, too. Older ones know no other key."""
_INSTALL = "pip install 'bitnet-providers[{}]'"


def open_with_openai(options: ServerOptions) -> Teacher:
    """A teacher through the SDK `openai`. Raises ProviderError."""
    # At 200 requests at once aiohttp takes half of the processor time that the SDK's usual transport takes.
    return _open_all("openai", "AsyncOpenAI", "DefaultAioHttpClient", "", options)


def open_with_groq(options: ServerOptions) -> Teacher:
    """A teacher through the SDK `groq`. Raises ProviderError."""
    return _open_all("groq", "AsyncGroq", "DefaultAsyncHttpxClient", "/openai/v1", options)


def _open_all(sdk_name: str, client_name: str, transport_name: str, prefix: str, options: ServerOptions) -> Teacher:
    """`prefix`: what the SDK puts between the base URL and the names of its endpoints."""
    server_of(options)  # says all that is wrong at once
    servers = [_open(sdk_name, client_name, transport_name, prefix, each) for each in each_server(options)]
    return ManyServers(servers) if options.base_urls else servers[0]


def _open(
    sdk_name: str, client_name: str, transport_name: str, prefix: str, options: ServerOptions
) -> "OpenAIShapedTeacher":
    server = server_of(options)
    try:
        sdk = import_module(sdk_name)
    except ImportError:
        raise ProviderError(f"the package {sdk_name} is not installed", _INSTALL.format(sdk_name)) from None
    # httpx or httpx2: whichever this version of the SDK is built on.
    http = sys.modules[sdk.DefaultAsyncHttpxClient.__bases__[0].__module__.partition(".")[0]]
    timeout = sdk.Timeout(options.timeout_s, connect=options.connect_timeout_s)
    limits = http.Limits(max_connections=CONNECTIONS, max_keepalive_connections=CONNECTIONS)
    try:
        hooks = {"response": [refuses_moved(server.base_url)]}
        transport = getattr(sdk, transport_name)(timeout=timeout, limits=limits, event_hooks=hooks)
    except RuntimeError:
        raise ProviderError("the package aiohttp is not installed", _INSTALL.format(sdk_name)) from None
    client = getattr(sdk, client_name)(
        api_key=server.key,
        base_url=server.base_url,
        max_retries=0,  # the collector paces and retries
        timeout=timeout,
        http_client=transport,
    )
    return OpenAIShapedTeacher(client, sdk, http, server, prefix)


class OpenAIShapedTeacher:
    """A `Teacher` behind an OpenAI-shaped API. Calls may run concurrently."""

    def __init__(self, client: Any, sdk: ModuleType, http: ModuleType, server: Server, prefix: str) -> None:
        """`http`: the library that the SDK is built on; `prefix`: see `_open_all`."""
        self._client = client
        self._transport_error = http.TransportError
        self._response_type = http.Response
        self._server = server
        self._root = server.base_url + prefix  # the whole address: the SDK would put it together for each request
        options = server.options
        redact = Redactor(server.key) if server.key != NO_KEY else Redactor()
        key_env = options.api_key_env or preset_of(options).api_key_env
        self._failures = Failures(sdk, server.base_url, key_env, redact)
        self._sdk = sdk
        self._capabilities = capabilities_of(options)
        self._closed = False

    @property
    def capabilities(self) -> Capabilities:
        return self._capabilities

    @property
    def description(self) -> Mapping[str, Any]:
        server, options = self._server, self._server.options
        said: dict[str, Any] = {
            "model": server.model,
            "base_url": server.base_url,
            "end_of_turn": options.end_of_turn,
            "reasoning": options.reasoning,
            "reasoning_effort": options.reasoning_effort,
            "extra_body": dict(server.extra_body),
        }
        # What changes an answer beside the model; where the server listens does not.
        said["fingerprint"] = [options.reasoning, options.reasoning_effort, said["extra_body"]]
        return {name: value for name, value in said.items() if value}

    def __repr__(self) -> str:
        return f"OpenAIShapedTeacher(model={self._server.model!r}, base_url={self._server.base_url!r})"

    async def generate(self, request: GenerateRequest) -> Completion:
        """As the contract. ``latency_s`` is from sending the request to the whole answer."""
        self._check_open()
        started = time.perf_counter()
        body = chat_body(self._server, request)
        response = await (self._stream(body) if self._server.options.stream else self._ask(CHAT, body))
        return completion_of(
            response,
            model=self._server.model,
            top_k=request.top_logprobs,
            reasoning=self._server.options.reasoning,
            end_of_turn=self._server.options.end_of_turn,
            most_tokens=request.sampling.max_new_tokens,
            latency_s=time.perf_counter() - started,
        )

    async def score(self, request: ScoreRequest) -> Completion:
        """As the contract, where the server gives log-probabilities of a prompt; they are checked against the text.

        Raises ProviderError where it does not, as llama.cpp, which ignores ``echo`` and says nothing.
        """
        self._check_open()
        started = time.perf_counter()
        body = scoring_body(self._server, request)
        # vLLM scores the answer to a conversation through its chat template; a plain text needs none.
        response = await self._ask(CHAT if request.messages else COMPLETIONS, body)
        return scored(response, request, self._server, latency_s=time.perf_counter() - started)

    async def aclose(self) -> None:
        self._closed = True
        await self._client.close()

    def _check_open(self) -> None:
        if self._closed:
            raise ProviderError(f"{self._server.base_url}: this teacher is closed", "open it again")

    async def _ask(self, endpoint: str, body: Mapping[str, Any]) -> Response:
        """One request, its answer in one piece. Raises ProviderError and its kinds.

        Through the SDK's way to endpoints that it has no types for: ``create`` would walk through its typed arguments
        one by one, which costs as much as decoding a third of an answer.
        """
        try:
            answer = await self._client.post(
                self._root + endpoint, cast_to=self._response_type, body=body, options=_OWN_KEY_ONLY
            )
        except self._sdk.APIError as error:
            raise self._failures.of(error) from None
        return self._checked(answer.content, answer.headers.get("content-type", ""))

    def _checked(self, body: bytes, content_type: str) -> Response:
        try:
            response = decode(body)
        except (ValueError, msgspec.MsgspecError) as error:
            raise self._failures.of_body(error, content_type) from None
        return self._whole(response)

    def _whole(self, response: Response) -> Response:
        if response.error:
            raise self._failures.of_answer(response.error)
        if response.choices is None:
            raise answer_lost(self._server.base_url, "there are no choices in it", answered=True)
        return response

    async def _stream(self, body: Mapping[str, Any]) -> Response:
        """As `_ask`, piece by piece."""
        content_type, assembly = "", Assembly()
        create = self._client.chat.completions.with_streaming_response.create
        try:
            async with create(**stream_arguments(self._server, body)) as answer:
                content_type = answer.headers.get("content-type", "")
                await assemble(answer.iter_bytes(), assembly)
        except self._sdk.APIError as error:
            raise self._failures.of(error) from None
        except (ValueError, msgspec.MsgspecError) as error:
            raise self._failures.of_body(error, content_type) from None
        except self._transport_error as error:
            if not assembly.done:
                raise self._failures.of_transport(error) from None
        response = self._whole(assembly.put_together())
        if not assembly.whole:
            raise answer_lost(self._server.base_url, "the stream ended before the answer did")
        return response


def stream_arguments(server: Server, body: Mapping[str, Any]) -> dict[str, Any]:
    """Keyword arguments of the SDK's ``chat.completions.create`` that send `body` as it is."""
    found: dict[str, Any] = {"model": server.model, "messages": [], "stream": True, "extra_body": body}
    if is_this_machine(server.base_url):
        # llama.cpp promises to keep the connection, and closes it behind a stream: the next request would be lost.
        found["extra_headers"] = {"Connection": "close"}
    return found


def chat_body(server: Server, request: GenerateRequest) -> dict[str, Any]:
    """The JSON of a chat completion. ``n`` is never used: each sample is a request of its own."""
    sampling, options = request.sampling, server.options
    fields: dict[str, Any] = {
        "model": server.model,
        "messages": [dict(message) for message in request.messages],
        server.max_tokens_field: sampling.max_new_tokens,
    }
    always = server.preset.sends_sampling_defaults
    if always or sampling.temperature != 1.0:
        fields["temperature"] = sampling.temperature
    if always or sampling.top_p != 1.0:
        fields["top_p"] = sampling.top_p
    if options.send_seed:
        fields["seed"] = sampling.seed
    if options.reasoning_effort:
        fields["reasoning_effort"] = options.reasoning_effort
    if request.top_logprobs:
        fields |= (
            {"logprobs": request.top_logprobs}
            if server.preset.logprobs_as_count
            else {"logprobs": True, "top_logprobs": request.top_logprobs}
        )
    if options.stream:
        fields["stream"] = True
        if server.preset.takes_stream_options:
            fields["stream_options"] = {"include_usage": True}
    return {**fields, **server.extra_body}
