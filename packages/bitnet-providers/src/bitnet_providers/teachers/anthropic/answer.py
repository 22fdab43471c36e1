"""Anthropic's JSON read: an answer into a completion, an error into its kind.

The wire format: Messages API, https://platform.claude.com/docs/en/api/messages and .../api/errors.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from bitnet_providers.contract import Completion, ProviderError, RequestRefusedError, is_count
from bitnet_providers.teachers.common.http_errors import Redactor, status_error, wrong_shape
from bitnet_providers.teachers.common.logprobs import untold
from bitnet_providers.teachers.common.token_bytes import encoded, whole_characters

WHO = "anthropic"

_FINISH = {
    "end_turn": "stop",
    "stop_sequence": "stop",
    "max_tokens": "length",
    "model_context_window_exceeded": "length",
    "pause_turn": "length",  # the model was stopped in the middle of its turn
    "tool_use": "tool_calls",
    "refusal": "content_filter",
}
_THINKING = ("thinking", "redacted_thinking")

_OUT_OF_MONEY = ("credit balance", "usage limit", "spend limit", "billing")
"""Words of a 400 that every further request would get, too."""


def read_answer(body: Any, latency_s: float) -> Completion:
    """A ``message`` object into a completion. Raises RequestRefusedError for JSON that is none."""
    if not isinstance(body, Mapping) or not isinstance(body.get("content"), list):
        raise wrong_shape(WHO, "no list `content`")
    parts: list[str] = []
    repairs: Counter[str] = Counter()
    for block in body["content"]:
        kind = block.get("type") if isinstance(block, Mapping) else None
        if kind == "text" and isinstance(block.get("text"), str):
            parts.append(block["text"])
        else:
            repairs["reasoning_dropped" if kind in _THINKING else "parts_dropped"] += 1
    stop_reason = body.get("stop_reason")
    finish: Any = _FINISH.get(stop_reason) if isinstance(stop_reason, str) else None
    if finish is None:  # one that this version doesn't know: the text may have been cut
        finish = "length"
        repairs["finish_unknown"] += 1
    made, usage = untold(encoded(whole_characters("".join(parts)))), _usage(body.get("usage"))
    return Completion(
        text=made.text,
        token_logprobs=made.token_logprobs,
        candidate_counts=made.candidate_counts,
        candidate_logprobs=made.candidate_logprobs,
        finish_reason=finish,
        model=whole_characters(str(body.get("model") or "")),
        prompt_tokens=int(prompt) if is_count(prompt := usage.get("prompt_tokens", 0)) else 0,
        latency_s=latency_s,
        token_bytes=made.token_bytes,
        candidate_bytes=made.candidate_bytes,
        usage=usage,
        repairs=dict(repairs),
    )


def _usage(usage: Any) -> dict[str, float]:
    """Cached input is counted apart by Anthropic, and is part of the prompt here."""
    if not isinstance(usage, Mapping):
        return {}

    def count(name: str, of: Mapping[str, Any] = usage) -> int:
        value = of.get(name)
        return value if isinstance(value, int) else 0

    cached = count("cache_read_input_tokens")
    found: dict[str, float] = {
        "prompt_tokens": count("input_tokens") + count("cache_creation_input_tokens") + cached,
        "completion_tokens": count("output_tokens"),
    }
    if cached:
        found["cached_tokens"] = cached
    details = usage.get("output_tokens_details")
    if isinstance(details, Mapping) and count("thinking_tokens", details):
        found["reasoning_tokens"] = count("thinking_tokens", details)
    return found


def read_error(
    status: int, body: Any, headers: Mapping[str, str], *, key: str, model: str, redact: Redactor
) -> ProviderError:
    """The error for an HTTP status and its body. `key`: the variable that holds the key."""
    error = body.get("error") if isinstance(body, Mapping) else None
    error = error if isinstance(error, Mapping) else {}
    details = error.get("details")
    code = str(details.get("error_code") or "") if isinstance(details, Mapping) else ""
    message = redact(error.get("message") or "")
    said = ": ".join(filter(None, (str(error.get("type") or ""), message)))
    lower = message.lower()
    if "spend_limit" in code or "billing" in code or (status == 400 and any(word in lower for word in _OUT_OF_MONEY)):
        return ProviderError(
            f"{WHO} answered {status}: {redact(said)}; the account's money or limit is used up",
            "top the account up or raise its limit, then run again: nothing is lost",
        )
    if status == 400 and any(name in lower for name in ("temperature", "top_p", "top_k")):
        return ProviderError(
            f"{WHO} answered 400: {redact(said)}; {model} takes no such sampling",
            "set temperature = 1.0 and top_p = 1.0 in [collect], and temperature = 1.0 in [baseline]",
        )
    if status == 400 and "thinking" in lower:
        return ProviderError(f"{WHO} answered 400: {redact(said)}", f'set teacher.thinking = "auto" for {model}')
    if status == 400 and "max_tokens" in lower and "prompt" not in lower:
        return ProviderError(f"{WHO} answered 400: {redact(said)}", "lower max_new_tokens")
    known = status_error(status, redact(said), who=WHO, key=key, headers=headers)
    if error.get("type") == "authentication_error" and isinstance(known, RequestRefusedError):
        return status_error(401, redact(said), who=WHO, key=key)
    return known
