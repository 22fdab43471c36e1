"""A response's JSON as typed records, and as a `Completion`: which part is the text, and what the provider counted.

What is not listed in the records is skipped unread; decoding is most of a completion's cost. Sources: OpenAI's API
reference (chat completions, legacy completions) as typed in its SDK; vLLM's, llama.cpp's, Together's, Fireworks',
DeepSeek's and Groq's departures from it, each marked.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

import msgspec

from bitnet_providers.contract import Completion, RetryableError, is_count
from bitnet_providers.teachers.common.logprobs import Columns, Logprobs, columns, token_list
from bitnet_providers.teachers.common.mended_json import mended, text_of
from bitnet_providers.teachers.common.token_bytes import END_OF_TURN, Token, answer_tokens, whole_characters
from bitnet_providers.teachers.openai_compatible.thoughts import with_thought, without_thought


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


Finish = Literal["stop", "length", "scored", "content_filter", "tool_calls"]

_REASONS: dict[Finish, str] = {
    "stop": "stop eos eot eostoken endoftext endturn endofturn stopsequence end complete completed finished",
    "length": "length maxtokens maxlength maxnewtokens maxoutputtokens maxcompletiontokens modellength tokenlimit "
    "contextlength contextlengthexceeded contextwindowexceeded modelcontextwindowexceeded incomplete truncated "
    "continuation pauseturn",
    "content_filter": "contentfilter contentfiltered filtered sensitive safety recitation language blocklist blocked "
    "errortoxic moderation unsafe prohibitedcontent spii modelarmor guardrail guardrailintervened refusal",
    "tool_calls": "toolcalls toolcall functioncall tooluse",
}
_FINISH: dict[str, Finish] = {letters: finish for finish, line in _REASONS.items() for letters in line.split()}
"""Reasons by their letters, as ``MAX_TOKENS``, ``maxTokens`` and ``FinishReason.MAX_TOKENS`` are one. Beside OpenAI's
those of Mistral, z.AI, Google, Anthropic, OpenRouter and gateways."""
_INTERRUPTED = frozenset((
    *("error", "abort", "aborted", "cancelled", "canceled", "timeout", "networkerror", "servererror", "internalerror"),
    *("insufficientsystemresource", "engineoverloaded", "overloaded", "load", "unload"),
))  # fmt: skip
"""The server gave up in the middle: OpenRouter, vLLM and SGLang, DeepSeek, z.AI, Ollama."""


def completion_of(
    response: Response,
    *,
    model: str,
    top_k: int,
    reasoning: str,
    end_of_turn: str = "",
    latency_s: float,
    most_tokens: int = 0,
) -> Completion:
    """`model`: what was asked for, where the response doesn't say; `top_k`: the candidates asked for, 0 is none;
    `most_tokens`: how long the answer was allowed to be, 0: not known.

    `reasoning`: "drop" or "keep"; `end_of_turn`: what the model calls the end of a turn, where the server leaves it in
    the message. Raises RetryableError for an answer that broke off.
    """
    repairs = Counter[str]()
    # Gateways leave a filtered answer out: the list is there and empty.
    choice = response.choices[0] if response.choices else Choice(finish_reason="content_filter")
    message = choice.message or Message()
    finish = finish_reason(choice.finish_reason, repairs)
    content, thought = _content(message)
    tokens = token_list(choice.logprobs)
    if not content and message.refusal:
        repairs["refusals"] += 1
        content, tokens = whole_characters(message.refusal), token_list(choice.logprobs, "refusal") or tokens
    if message.tool_calls or message.function_call:
        repairs["tool_calls"] += 1
        finish = "tool_calls"
        # The other log-probabilities are those of the call's syntax, which is no text.
        tokens = answer_tokens(tokens, content, with_end=False) or []
    elif finish == "stop":
        content = content.removesuffix(end_of_turn or _end_in_text(tokens))
    if reasoning == "drop":
        content, tokens = without_thought(content, thought, tokens, repairs)
    elif thought:
        content = with_thought(content, tokens)
    said = None if response.usage is None else response.usage.completion_tokens
    told = columns(content, tokens, top_k, repairs, said, ended=finish == "stop")
    if finish == "stop" and 0 < most_tokens <= (said or 0) and told.token_bytes[-1:] != (END_OF_TURN,):
        finish = "length"  # some servers call it "stop" when the limit cut the answer
        repairs["stopped_at_limit"] += 1
    if top_k and not tokens:
        repairs["logprobs_missing"] += len(told.token_logprobs)
    return completion(
        told, response, finish=finish, model=response.model or model, latency_s=latency_s, repairs=repairs
    )


def completion(
    told: Columns, response: Response, *, finish: Finish, model: str, latency_s: float, repairs: Counter[str]
) -> Completion:
    counted = usage_of(response)
    return Completion(
        text=told.text,
        token_logprobs=told.token_logprobs,
        candidate_counts=told.candidate_counts,
        candidate_logprobs=told.candidate_logprobs,
        finish_reason=finish,
        model=model,
        prompt_tokens=int(prompt) if is_count(prompt := counted.get("prompt_tokens", 0)) else 0,
        latency_s=latency_s,
        token_bytes=told.token_bytes,
        candidate_bytes=told.candidate_bytes,
        usage=counted,
        repairs={name: count for name, count in repairs.items() if count},
    )


def finish_reason(reason: str | None, repairs: Counter[str]) -> Finish:
    """The contract's word. What is not known to be the end of a turn counts as "length", and in `repairs`, by its name.

    Raises RetryableError for an answer that broke off.
    """
    name = (reason or "").rpartition(".")[2]
    letters = re.sub(r"[\W\d_]", "", name.lower())
    if letters in _INTERRUPTED:
        raise RetryableError(
            f'the server broke the answer off (finish_reason "{reason}")', possibly_paid=True, answered=True
        )
    found = _FINISH.get(letters)
    if found is None:
        repairs["finish_unknown"] += 1
        repairs[f"finish_unknown {re.sub(r'[^ -~]', '?', name)[:40] or 'null'}"] += 1
    return found or "length"


def usage_of(response: Response) -> dict[str, float]:
    """Tokens and the server's own clock, as `Completion.usage` names them; only what the provider said."""
    usage, timings = response.usage, response.timings
    found: dict[str, float | None] = {}
    if usage is not None:
        hidden = _beside(usage)
        found = {
            "prompt_tokens": usage.prompt_tokens,
            "completion_tokens": (usage.completion_tokens or 0) + hidden if hidden else usage.completion_tokens,
            "reasoning_tokens": hidden,
        }
        if usage.completion_tokens_details is not None:
            found["reasoning_tokens"] = usage.completion_tokens_details.reasoning_tokens or hidden
        if usage.prompt_tokens_details is not None:
            found["cached_tokens"] = usage.prompt_tokens_details.cached_tokens
        found |= {"prompt_s": usage.prompt_time, "decode_s": usage.completion_time}
    if timings is not None and timings.prompt_ms is not None and timings.predicted_ms is not None:
        found |= {"prompt_s": timings.prompt_ms / 1e3, "decode_s": timings.predicted_ms / 1e3}
    return {name: value for name, value in found.items() if value is not None}


def _beside(usage: Usage) -> float | None:
    """Billed tokens that are in the total alone: thoughts of xAI's and Google's models."""
    counts = usage.total_tokens, usage.prompt_tokens, usage.completion_tokens or 0
    if not usage.prompt_tokens or not all(map(is_count, counts)):  # some write 0 where they don't count
        return None
    total, prompt, made = (count or 0.0 for count in counts)
    return total - prompt - made if total > prompt + made else None


def _content(message: Message) -> tuple[str, bool]:
    """The message's text, and whether the server set reasoning apart from it."""
    thought = bool(message.reasoning_content or message.reasoning or message.thinking or message.reasoning_details)
    if not isinstance(message.content, list):
        return whole_characters(message.content or ""), thought
    parts: Sequence[Part] = message.content
    spoken = [part for part in parts if part.is_spoken]
    return whole_characters("".join(part.text or part.refusal or "" for part in spoken)), (
        thought or len(spoken) < len(parts)
    )


def _end_in_text(tokens: Sequence[Token]) -> str:
    """The last token where it is called as special ones are; a text that only speaks of one needs several tokens."""
    last = tokens[-1].token.strip() if tokens else ""
    return last if _SPECIAL.fullmatch(last) else ""


_SPECIAL = re.compile(r"<[|｜]\S+>|<\S+[|｜]>|\[[|｜]\S+\]")
