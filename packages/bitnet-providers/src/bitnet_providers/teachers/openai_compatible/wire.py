"""The wire format as typed records: what is not listed here is skipped unread. Decoding is most of a completion's cost.

Sources: OpenAI's API reference (chat completions, legacy completions) as typed in its SDK; vLLM's, llama.cpp's,
Together's, Fireworks', DeepSeek's and Groq's departures from it, each marked.
"""

import re
from typing import Any

import msgspec

from bitnet_providers.teachers.common.mended_json import mended, text_of
from bitnet_providers.teachers.common.token_bytes import Token


class Logprobs(msgspec.Struct):
    """``choices[].logprobs``: OpenAI's list of tokens, or the columns of legacy completions and Together."""

    content: list[Token] | None = None
    refusal: list[Token] | None = None
    tokens: list[str] | None = None
    token_logprobs: list[float | None] | None = None
    top_logprobs: list[dict[str, float | None] | None] | dict[str, float | None] | None = None


class Part(msgspec.Struct):
    """A part of a message's content."""

    type: str = ""
    text: str | None = None
    refusal: str | None = None

    @property
    def is_spoken(self) -> bool:
        """Whether it is part of the answer: no thought, no picture."""
        return self.type in ("", "text", "output_text", "refusal")


class Message(msgspec.Struct):
    """``choices[].message``, and ``choices[].delta`` of a stream."""

    content: str | list[Part] | None = None
    refusal: str | None = None
    reasoning_content: str | None = None
    """vLLM, SGLang, llama.cpp, DeepSeek, Fireworks"""
    reasoning: str | None = None
    """OpenRouter, Groq, Together, newer vLLM"""
    reasoning_details: Any = None
    """OpenRouter"""
    thinking: Any = None
    """Ollama and gateways"""
    tool_calls: list[Any] | None = None
    function_call: Any = None
    """What `tool_calls` was before."""


class PromptToken(msgspec.Struct, gc=False):
    """vLLM: a token at a position of the prompt."""

    logprob: float | None = None
    decoded_token: str | None = None


PromptLogprobs = list[dict[str, PromptToken] | None]
"""vLLM: for each position of the prompt its tokens by id, the one that stands there first; null at the first one."""


class Choice(msgspec.Struct):
    message: Message | None = None
    delta: Message | None = None
    text: str | None = None
    """Legacy completions."""
    logprobs: Logprobs | list[Any] | None = None
    finish_reason: str | None = None
    prompt_logprobs: PromptLogprobs | None = None
    """vLLM, legacy completions."""


class TokenDetails(msgspec.Struct):
    reasoning_tokens: float | None = None
    cached_tokens: float | None = None


class Usage(msgspec.Struct):
    prompt_tokens: float | None = None
    completion_tokens: float | None = None
    total_tokens: float | None = None
    """xAI and Google: with the thoughts, which `completion_tokens` leaves out there."""
    prompt_tokens_details: TokenDetails | None = None
    completion_tokens_details: TokenDetails | None = None
    prompt_time: float | None = None
    """Groq, seconds"""
    completion_time: float | None = None
    """Groq, seconds"""


class Timings(msgspec.Struct):
    """llama.cpp"""

    prompt_ms: float | None = None
    predicted_ms: float | None = None


class GroqEvent(msgspec.Struct):
    """``x_groq`` of the last event of a stream."""

    usage: Usage | None = None
    error: Any = None


class Response(msgspec.Struct):
    """A completion, or one event of a stream."""

    choices: list[Choice] | None = None
    model: str | None = None
    usage: Usage | None = None
    timings: Timings | None = None
    x_groq: GroqEvent | None = None
    error: Any = None
    """Gateways put errors into answers with status 200."""
    prompt_logprobs: PromptLogprobs | None = None
    """vLLM, chat."""


_DECODER = msgspec.json.Decoder(Response)


def decode(body: bytes | str) -> Response:
    """Raises ValueError or msgspec.DecodeError for what is no JSON, msgspec.ValidationError for another shape."""
    try:
        return _DECODER.decode(body)
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        return _decode_mended(body)


def _decode_mended(body: bytes | str) -> Response:
    """A message's content keeps halves of surrogate pairs: in a stream the other one may be in the next event."""
    text = text_of(body)
    record, plain = mended(text, _with_numbers_only)
    response = _DECODER.decode(plain)
    if _HALF.search(text):
        for choice, said in zip(response.choices or (), record["choices"] or (), strict=True):
            for name in ("message", "delta"):
                message, spoken = getattr(choice, name), said.get(name)
                if message is not None and isinstance(spoken.get("content"), str):
                    message.content = spoken["content"]
    return response


_HALF = re.compile("[\ud800-\udfff]|\\\\u[dD][89a-fA-F]")


def _with_numbers_only(record: Any) -> Any:
    """Without what is no number where the provider tells what it counted: the answer is worth more than that."""
    if not isinstance(record, dict):
        return record

    def numbers(value: Any, name: str = "_details") -> Any:
        if isinstance(value, dict) and name.endswith("_details"):
            return {name: numbers(each, name) for name, each in value.items()}
        return value if isinstance(value, int | float) and not isinstance(value, bool) else None

    told = {name: value for name in ("usage", "timings") if isinstance(value := record.get(name), dict)}
    kept = {name: numbers(value) for name, value in told.items()}
    return record | {name: None for name in ("usage", "timings") if name in record} | kept
