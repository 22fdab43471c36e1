"""Answers in OpenAI's shape, whole and as the events of a stream: chat completions, legacy completions.

Sources: OpenAI's API reference of both, as typed in its SDK. Beyond it, tokens carry their `id`.
"""

import math
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any

import attrs

from bitnet_core.runtime.contract import Candidate, Ending, Piece, Token

UNKNOWN = -9999.0
"""OpenAI's value of a log-probability that is not known."""

Json = dict[str, Any]


@attrs.frozen(kw_only=True)
class ChatShape:
    """One chat completion's answer."""

    model: str
    logprobs: bool
    id: str = attrs.field(factory=lambda: f"chatcmpl-{secrets.token_hex(12)}")
    created: int = attrs.field(factory=lambda: int(time.time()))

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> Json:
        message = {"role": "assistant", "content": "".join(piece.text for piece in pieces), "refusal": None}
        logprobs = self._logprobs([token for piece in pieces for token in piece.tokens])
        choice = {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": ending.reason}
        return self._envelope("chat.completion", choice) | {"usage": usage(ending)}

    def first(self) -> Json:
        return self._event({"role": "assistant", "content": "", "refusal": None})

    def piece(self, piece: Piece) -> Json:
        return self._event({"content": piece.text}, piece.tokens)

    def last(self, ending: Ending) -> Json:
        return self._event({}, finish_reason=ending.reason)

    def usage(self, ending: Ending) -> Json:
        return self._envelope("chat.completion.chunk") | {"usage": usage(ending)}

    def _event(self, delta: Json, tokens: Sequence[Token] = (), finish_reason: str | None = None) -> Json:
        logprobs = self._logprobs(tokens) if tokens else None
        choice = {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._envelope("chat.completion.chunk", choice)

    def _logprobs(self, tokens: Sequence[Token]) -> Json | None:
        return {"content": [_token(token) for token in tokens], "refusal": None} if self.logprobs else None

    def _envelope(self, kind: str, *choices: Mapping[str, Any]) -> Json:
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model, "choices": list(choices)}


@attrs.define(kw_only=True)
class TextShape:
    """One legacy completion's answer; it counts the characters that were sent."""

    model: str
    logprobs: bool
    id: str = attrs.field(factory=lambda: f"cmpl-{secrets.token_hex(12)}")
    created: int = attrs.field(factory=lambda: int(time.time()))
    _sent_characters: int = 0

    def whole(self, pieces: Sequence[Piece], ending: Ending) -> Json:
        tokens = [token for piece in pieces for token in piece.tokens]
        return self._event("".join(piece.text for piece in pieces), tokens, ending.reason) | {"usage": usage(ending)}

    def first(self) -> None:
        """A legacy stream begins with its text."""

    def piece(self, piece: Piece) -> Json:
        return self._event(piece.text, piece.tokens)

    def last(self, ending: Ending) -> Json:
        return self._event("", (), ending.reason)

    def usage(self, ending: Ending) -> Json:
        return self._envelope() | {"usage": usage(ending)}

    def _event(self, text: str, tokens: Sequence[Token], finish_reason: str | None = None) -> Json:
        logprobs = self._columns(tokens) if self.logprobs and tokens else None
        choice = {"index": 0, "text": text, "logprobs": logprobs, "finish_reason": finish_reason}
        return self._envelope(choice)

    def _columns(self, tokens: Sequence[Token]) -> Json:
        offsets = []
        for token in tokens:
            offsets.append(self._sent_characters)
            self._sent_characters += sum(byte & 0xC0 != 0x80 for byte in token.raw)  # beginnings of characters
        return {
            "tokens": [_escaped(token.raw) for token in tokens],
            "token_logprobs": [_number(token.logprob) for token in tokens],
            "top_logprobs": [
                # Two that are spelt alike: the likelier one, which comes first.
                {_escaped(each.raw): _number(each.logprob) for each in reversed(token.top)}
                for token in tokens
            ],
            "text_offset": offsets,
        }

    def _envelope(self, *choices: Mapping[str, Any]) -> Json:
        return {
            "id": self.id,
            "object": "text_completion",
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
        }


def usage(ending: Ending) -> Json:
    return {
        "prompt_tokens": ending.prompt_tokens,
        "completion_tokens": ending.tokens,
        "total_tokens": ending.prompt_tokens + ending.tokens,
    }


def _token(token: Token) -> Json:
    return _candidate(token) | {"top_logprobs": [_candidate(each) for each in token.top]}


def _candidate(each: Candidate) -> Json:
    return {
        "token": each.raw.decode("utf-8", "replace"),
        "bytes": list(each.raw),
        "logprob": _number(each.logprob),
        "id": each.id,
    }


def _number(logprob: float) -> float:
    return logprob if math.isfinite(logprob) else UNKNOWN


def _escaped(raw: bytes) -> str:
    r"""Legacy completions write a token that is no text as ``bytes:\xe7\x8c``."""
    try:
        return raw.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in raw)
