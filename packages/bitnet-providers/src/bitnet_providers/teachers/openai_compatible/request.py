"""A request in OpenAI's words, and how a streamed one is handed to the SDK."""

from collections.abc import Mapping
from typing import Any

from bitnet_providers.contract import GenerateRequest
from bitnet_providers.teachers.openai_compatible.model_url_key import Server, is_this_machine


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
