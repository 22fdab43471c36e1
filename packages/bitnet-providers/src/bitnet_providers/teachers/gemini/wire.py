"""Gemini's JSON as typed records; what is not listed here is skipped unread.

The wire format: https://ai.google.dev/api/generate-content (GenerateContentResponse).
"""

from typing import Any

import msgspec

from bitnet_providers.teachers.common.mended_json import mended, text_of


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
