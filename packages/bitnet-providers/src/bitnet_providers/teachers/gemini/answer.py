"""Gemini's JSON read into a completion; both of Google's SDKs are asked in the same way and end here.

What the records below don't list is skipped unread (https://ai.google.dev/api/generate-content).
T tokens of a response. The columns are made by the normaliser that the OpenAI-compatible teachers use.
"""

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any

import msgspec

from bitnet_providers.contract import Completion, Message, ProviderError, RequestRefusedError, is_count
from bitnet_providers.teachers.common import token_bytes
from bitnet_providers.teachers.common.http_errors import answer_lost
from bitnet_providers.teachers.common.logprobs import columns
from bitnet_providers.teachers.common.mended_json import mended, text_of
from bitnet_providers.teachers.common.token_bytes import answer_tokens, encoded
from bitnet_providers.teachers.gemini.options import GEMINI_CAPABILITIES


class LogprobsCandidate(msgspec.Struct, rename="camel", gc=False):
    token: str | None = None
    token_id: int | None = None
    log_probability: float | str | None = None
    """Google's JSON writes infinities and NaN as strings."""


class TopCandidates(msgspec.Struct, rename="camel", gc=False):
    candidates: list[LogprobsCandidate] | None = None


class LogprobsResult(msgspec.Struct, rename="camel"):
    chosen_candidates: list[LogprobsCandidate] | None = None
    top_candidates: list[TopCandidates] | None = None


class Part(msgspec.Struct, rename="camel"):
    text: str | None = None
    thought: bool | None = None
    function_call: Any = None


class Content(msgspec.Struct, rename="camel"):
    parts: list[Part] | None = None


class Candidate(msgspec.Struct, rename="camel"):
    content: Content | None = None
    finish_reason: str | int | None = None
    """A number where an old SDK doesn't know the name."""
    logprobs_result: LogprobsResult | None = None


class PromptFeedback(msgspec.Struct, rename="camel"):
    block_reason: str | int | None = None
    block_reason_message: str | None = None


class UsageMetadata(msgspec.Struct, rename="camel"):
    prompt_token_count: int | None = None
    candidates_token_count: int | None = None
    thoughts_token_count: int | None = None
    cached_content_token_count: int | None = None
    tool_use_prompt_token_count: int | None = None


class Response(msgspec.Struct, rename="camel"):
    candidates: list[Candidate] | None = None
    prompt_feedback: PromptFeedback | None = None
    usage_metadata: UsageMetadata | None = None
    model_version: str | None = None


_DECODER = msgspec.json.Decoder(Response)


def decode(body: bytes | str) -> Response:
    """Raises msgspec.DecodeError for what is no JSON, its kind msgspec.ValidationError for another shape."""
    try:
        return _DECODER.decode(body)
    except msgspec.ValidationError:
        raise
    except (msgspec.DecodeError, UnicodeError, RecursionError):
        try:
            plain = mended(text_of(body))[1]
        except ValueError as error:
            raise msgspec.DecodeError(str(error)) from None
        return _DECODER.decode(plain)


_FINISH = {"STOP": "stop", "MAX_TOKENS": "length", "CONTINUATION": "length"}


_BLOCKED = ("SAFETY", "RECITATION", "LANGUAGE", "BLOCKLIST", "PROHIBITED_CONTENT", "SPII", "MODEL_ARMOR", "ESCALATION")


_TOOLS = ("MALFORMED_FUNCTION_CALL", "UNEXPECTED_TOOL_CALL", "TOO_MANY_TOOL_CALLS")


_BYTE = re.compile(r"<0x([0-9A-Fa-f]{2})>")
"""How SentencePiece writes a token that is one byte of a character."""


def read_answer(response: Response, *, who: str, top_k: int, model: str, latency_s: float) -> Completion:
    """The first candidate into a completion.

    Without log-probabilities it is one token of unknown log-probability. Raises RequestRefusedError for a prompt that
    was blocked, RetryableError for an answer that holds nothing.
    """
    if not response.candidates:
        feedback = response.prompt_feedback
        if feedback is not None:  # it is there only where a filter has something to say of the prompt
            why = f": {feedback.block_reason_message}" if feedback.block_reason_message else ""
            raise RequestRefusedError(
                f"{who} blocked the prompt ({feedback.block_reason or 'no reason told'}){why}",
                "reword the prompt, or leave it out",
            )
        raise answer_lost(who, "the JSON has no candidates", answered=True)
    candidate = response.candidates[0]
    repairs: Counter[str] = Counter()
    text = _text(candidate, repairs)
    tokens = _tokens(candidate.logprobs_result)
    _bytes_for_fallback(tokens, text)
    usage = _usage(response.usage_metadata)
    if usage.get("reasoning_tokens") and len(tokens) > 1 and _spelt(tokens) != encoded(text):
        answer = answer_tokens(tokens, text)  # the tokens begin with those of the thoughts
        if answer is not None:
            repairs["reasoning_dropped"] += len(tokens) - len(answer)
            tokens = answer
    if top_k and not tokens and text:
        repairs["logprobs_missing"] += 1
    finish = _finish(candidate, repairs)
    made = columns(text, tokens, top_k, repairs, ended=finish == "stop")
    return Completion(
        text=made.text,
        token_logprobs=made.token_logprobs,
        candidate_counts=made.candidate_counts,
        candidate_logprobs=made.candidate_logprobs,
        finish_reason=finish,
        model=response.model_version or model,
        prompt_tokens=int(prompt) if is_count(prompt := usage.get("prompt_tokens", 0)) else 0,
        latency_s=latency_s,
        token_bytes=made.token_bytes,
        candidate_bytes=made.candidate_bytes,
        usage=usage,
        repairs={name: count for name, count in repairs.items() if count},
    )


def _text(candidate: Candidate, repairs: Counter[str]) -> str:
    """The answer's text without thoughts; other parts are dropped and counted."""
    kept = []
    for part in (candidate.content.parts if candidate.content else None) or []:
        if part.thought:
            repairs["reasoning_dropped"] += 1
        elif part.text is None:
            repairs["parts_dropped"] += 1
        else:
            kept.append(part.text)
    return "".join(kept)


def _finish(candidate: Candidate, repairs: Counter[str]) -> Any:
    reason = str(candidate.finish_reason or "")
    if reason in _TOOLS or any(part.function_call for part in (candidate.content and candidate.content.parts) or []):
        return "tool_calls"
    if reason in _BLOCKED or reason.startswith("IMAGE_"):
        return "content_filter"
    if reason not in _FINISH:  # one that this version doesn't know, or none: the text may have been cut
        repairs["finish_unknown"] += 1
    return _FINISH.get(reason, "length")


def _tokens(result: LogprobsResult | None) -> list[token_bytes.Token]:
    """[T] in the shape of the common normaliser; a position without a list of candidates has none."""
    chosen = (result.chosen_candidates if result else None) or []
    tops = (result.top_candidates if result else None) or []
    return [
        token_bytes.Token(
            each.token or "",
            _logprob(each.log_probability),
            None,
            each.token_id,
            [
                token_bytes.Candidate(other.token or "", _logprob(other.log_probability), None, other.token_id)
                for other in (tops[position].candidates if position < len(tops) else None) or []
            ],
        )
        for position, each in enumerate(chosen)
    ]


def _logprob(value: float | str | None) -> float | None:
    """None where it is no number; what is not finite is left to the normaliser."""
    if type(value) is float:
        return value
    try:
        return float(value)  # type: ignore[arg-type] # None: a TypeError
    except (TypeError, ValueError):
        return None


def _bytes_for_fallback(tokens: Sequence[token_bytes.Token], text: str) -> None:
    """Give tokens written ``<0xE2>`` that one byte, where the whole text proves that this is what they mean."""
    if not any(_BYTE.fullmatch(token.token) for token in tokens):
        return
    spelt = b"".join(_one_byte(token.token) or encoded(token.token) for token in tokens)
    if spelt != encoded(text):
        return
    for token in tokens:
        for each in (token, *(token.top_logprobs or [])):
            raw = _one_byte(each.token)
            each.bytes = None if raw is None else list(raw)


def _one_byte(token: str) -> bytes | None:
    match = _BYTE.fullmatch(token)
    return bytes.fromhex(match[1]) if match else None


def _spelt(tokens: Sequence[token_bytes.Token]) -> bytes:
    return b"".join(encoded(token.token) if token.bytes is None else bytes(token.bytes) for token in tokens)


def _usage(usage: UsageMetadata | None) -> dict[str, float]:
    """Thoughts are counted apart by Google, and are part of the (billed) completion here."""
    if usage is None:
        return {}
    thoughts = usage.thoughts_token_count or 0
    found: dict[str, float] = {
        "prompt_tokens": (usage.prompt_token_count or 0) + (usage.tool_use_prompt_token_count or 0),
        "completion_tokens": (usage.candidates_token_count or 0) + thoughts,
    }
    if thoughts:
        found["reasoning_tokens"] = thoughts
    if usage.cached_content_token_count:
        found["cached_tokens"] = usage.cached_content_token_count
    return found


def role_of(turn: Message) -> str:
    return "model" if turn["role"] == "assistant" else "user"


def check_candidates(top_logprobs: int, who: str) -> None:
    """Raises ProviderError for more than the API gives."""
    most = GEMINI_CAPABILITIES.max_top_logprobs
    if top_logprobs > most:
        raise ProviderError(f"{who} gives at most {most} candidates, not {top_logprobs}", f"set collect.top_k = {most}")
