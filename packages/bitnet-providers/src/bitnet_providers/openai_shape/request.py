"""A request in OpenAI's words: the fields that its SDK knows, and those that go into ``extra_body``."""

from typing import Any

from bitnet_providers.contract import GenerateRequest
from bitnet_providers.openai_shape.server import Server, is_this_machine


def chat_fields(server: Server, request: GenerateRequest) -> dict[str, Any]:
    """Keyword arguments of ``chat.completions.create``. ``n`` is never used: each sample is a request of its own."""
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
        if is_this_machine(server.base_url):
            # llama.cpp promises to keep the connection, and closes it behind a stream: the next request would be lost.
            fields["extra_headers"] = {"Connection": "close"}
    if server.extra_body:
        fields["extra_body"] = dict(server.extra_body)
    return fields
