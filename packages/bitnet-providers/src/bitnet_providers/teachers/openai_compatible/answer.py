"""A decoded response as a `Completion`: which part of it is the text, and what the provider says it counted."""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Literal

from bitnet_providers.contract import Completion, RetryableError
from bitnet_providers.teachers.common.normalise import Columns, columns, token_list
from bitnet_providers.teachers.common.token_bytes import encoded, given_bytes, last_tokens
from bitnet_providers.teachers.common.tokens import Token
from bitnet_providers.teachers.openai_compatible.wire import Choice, Message, Part, Response

Finish = Literal["stop", "length", "scored", "content_filter", "tool_calls"]

_FINISH: dict[str, Finish] = {
    "length": "length",
    "max_tokens": "length",
    "content_filter": "content_filter",
    "tool_calls": "tool_calls",
    "function_call": "tool_calls",
}
_INTERRUPTED = frozenset(("error", "abort", "insufficient_system_resource"))
"""The server gave up in the middle: OpenRouter, vLLM and SGLang, DeepSeek."""
_THOUGHT = re.compile(r"\s*<think>.*?(?:</think>\s*|\Z)", re.DOTALL)
"""What a model thinks before its answer, where the server leaves it in the text; without an end: cut off in there."""


def completion_of(
    response: Response,
    *,
    model: str,
    top_k: int,
    reasoning: str,
    end_of_turn: str,
    latency_s: float,
) -> Completion:
    """`model`: what was asked for, where the response doesn't say; `top_k`: the candidates asked for, 0 is none.

    `reasoning`: "drop" or "keep"; `end_of_turn`: the name of the token that ends a turn, where it comes without bytes.
    Raises RetryableError for an answer that broke off.
    """
    repairs = Counter[str]()
    counted = usage_of(response)
    choice = (response.choices or [Choice()])[0]
    message = choice.message or Message()
    finish = finish_reason(choice.finish_reason)
    content, thought = _content(message)
    tokens = token_list(choice.logprobs)
    if not content and message.refusal:
        repairs["refusals"] += 1
        content, tokens = message.refusal, token_list(choice.logprobs, "refusal") or tokens
    if message.tool_calls:
        repairs["tool_calls"] += 1
        finish = "tool_calls"
        # The log-probabilities are those of the call's syntax, which is no text.
        tokens = list(last_tokens(tokens, encoded(content)) or ()) if content else []
    elif end_of_turn and finish == "stop":
        _name_end(tokens, encoded(end_of_turn))
    if reasoning == "drop":
        content, tokens = _without_thought(content, thought, tokens, repairs)
    told = columns(content, tokens, top_k, repairs, counted.get("completion_tokens"))
    if thought and reasoning == "keep":
        repairs["texts_differing"] = 0
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
        prompt_tokens=int(counted.get("prompt_tokens", 0)),
        latency_s=latency_s,
        token_bytes=told.token_bytes,
        candidate_bytes=told.candidate_bytes,
        usage=counted,
        repairs={name: count for name, count in repairs.items() if count},
    )


def finish_reason(reason: str | None) -> Finish:
    """The contract's word; what is new counts as "stop". Raises RetryableError for an answer that broke off."""
    if reason in _INTERRUPTED:
        raise RetryableError(f'the server broke the answer off (finish_reason "{reason}")', possibly_paid=True)
    return _FINISH.get(reason or "stop", "stop")


def usage_of(response: Response) -> dict[str, float]:
    """Tokens and the server's own clock, as `Completion.usage` names them; only what the provider said."""
    usage, timings = response.usage, response.timings
    found: dict[str, float | None] = {}
    if usage is not None:
        found = {"prompt_tokens": usage.prompt_tokens, "completion_tokens": usage.completion_tokens}
        if usage.completion_tokens_details is not None:
            found["reasoning_tokens"] = usage.completion_tokens_details.reasoning_tokens
        if usage.prompt_tokens_details is not None:
            found["cached_tokens"] = usage.prompt_tokens_details.cached_tokens
        found |= {"prompt_s": usage.prompt_time, "decode_s": usage.completion_time}
    if timings is not None and timings.prompt_ms is not None and timings.predicted_ms is not None:
        found |= {"prompt_s": timings.prompt_ms / 1e3, "decode_s": timings.predicted_ms / 1e3}
    return {name: value for name, value in found.items() if value is not None}


def _content(message: Message) -> tuple[str, bool]:
    """The message's text, and whether the server set reasoning apart from it."""
    thought = bool(message.reasoning_content or message.reasoning)
    if not isinstance(message.content, list):
        return message.content or "", thought
    parts: Sequence[Part] = message.content
    spoken = [part for part in parts if part.type in ("text", "output_text", "refusal")]
    return "".join(part.text or "" for part in spoken), thought or len(spoken) < len(parts)


def _without_thought(
    content: str, thought: bool, tokens: list[Token], repairs: Counter[str]
) -> tuple[str, list[Token]]:
    """The answer alone with the tokens that spell it; servers give the log-probabilities of thoughts, too."""
    inline = _THOUGHT.match(content)
    if inline is None and not thought:
        return content, tokens
    answer = content if inline is None else content[inline.end() :]
    repairs["reasoning_dropped"] += 1
    kept = last_tokens(tokens, encoded(answer))
    if kept is None and tokens and answer:
        repairs["tokens_unproved"] += len(tokens)
    return answer, list(kept or ())


def _name_end(tokens: list[Token], name: bytes) -> None:
    """Give the token that ended the turn its bytes, everywhere: llama.cpp gives special tokens without any."""
    if not tokens or given_bytes(tokens[-1]) or tokens[-1].token:
        return
    end = tokens[-1]
    for token in tokens:
        for candidate in (token, *(token.top_logprobs or ())):
            if candidate is end or (candidate.id is not None and candidate.id == end.id):
                candidate.bytes, candidate.token = list(name), name.decode("utf-8", "surrogatepass")
