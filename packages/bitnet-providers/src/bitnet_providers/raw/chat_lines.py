"""A line of a dump as chats: request and response in OpenAI's chat-completions shape, as servers write them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.common.tokens import Candidate, Token

_FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}
_FORMAT = "write logprobs as OpenAI does ({token, bytes, logprob, top_logprobs}), or remove the line"


@attrs.frozen
class Chat:
    """One choice of one response."""

    messages: tuple[Mapping[str, str], ...]
    source_id: str | None
    format: str | None
    content: str
    tokens: tuple[Token, ...]
    finish_reason: str
    model: str
    prompt_tokens: int
    tokens_said: float | None
    """How many tokens the provider counted."""
    sampling: Mapping[str, Any]
    top_k: int


def read_chats(dump: Path, counted: Counter[str]) -> Iterator[Chat]:
    """Every answer of a dump; adds to `counted`. Raises ProviderError naming the line for what can't be read."""
    try:
        with dump.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _chats_of_line(line, f"{dump}: line {number}", counted)
    except OSError as error:
        raise ProviderError(f"{dump}: cannot be read ({error.strerror})", "name a JSONL file") from error


def _chats_of_line(line: bytes, where: str, counted: Counter[str]) -> Iterator[Chat]:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ProviderError(
            f"{where}: no JSON ({error})", "write one JSON object a line, or remove the line"
        ) from error
    if not isinstance(record, dict):
        raise ProviderError(f"{where}: {_kind(record)}, not a JSON object", "correct or remove the line")
    request, response = _body(record.get("request")), _body(record.get("response", record))
    if response is None or response.get("error") is not None or (record.get("error") and "choices" not in response):
        counted["failed_requests"] += 1
        return
    request = request or {}
    messages = _messages(request, response, record, where)
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ProviderError(f"{where}: no choices in the response", "give a request with its response")
    usage = response.get("usage") or {}
    name = record.get("id") if "response" in record else None
    source_id = record.get("custom_id") or record.get("source_id") or name
    wanted = request.get("top_logprobs")
    json_mode = (request.get("response_format") or {}).get("type") in ("json_object", "json_schema")
    model = response.get("model") or request.get("model") or record.get("model")
    if not isinstance(model, str):
        raise ProviderError(f"{where}: no model", "add the name of the model that answered as response.model")
    for choice in choices:
        message = _mapping(_mapping(choice, where, "a choice").get("message") or {}, where, "message")
        tokens = _tokens(choice, where)
        widest = max((len(token.top_logprobs or ()) for token in tokens), default=0)
        yield Chat(
            messages=messages,
            source_id=None if source_id is None else str(source_id),
            format="json" if json_mode else None,
            content=_text(message.get("content"), where),
            tokens=tokens,
            finish_reason=_FINISH.get(choice.get("finish_reason") or "stop", "stop"),
            model=model,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
            tokens_said=usage.get("completion_tokens"),
            sampling={
                name: request[name]
                for name in ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed")
                if request.get(name) is not None
            },
            top_k=max(widest, wanted if isinstance(wanted, int) else 0),
        )


def _body(value: Any) -> dict[str, Any] | None:
    """A request or response, out of the ``body`` of a batch job where it lies in one."""
    if not isinstance(value, dict):
        return None
    body = value.get("body")
    return body if isinstance(body, dict) else value


def _messages(
    request: Mapping[str, Any], response: Mapping[str, Any], record: Mapping[str, Any], where: str
) -> tuple[Mapping[str, str], ...]:
    found = next((each["messages"] for each in (request, response, record) if each.get("messages")), None)
    if not isinstance(found, list):
        raise ProviderError(
            f"{where}: no messages",
            'put the request beside the response ({"request": {"messages": [...]}, "response": {...}})',
        )
    messages = []
    for message in found:
        fields = _mapping(message, where, "a message")
        if not isinstance(fields.get("role"), str):
            raise ProviderError(f"{where}: a message without a role", "add it: system, user or assistant")
        messages.append({"role": fields["role"], "content": _text(fields.get("content"), where)})
    return tuple(messages)


def _text(content: Any, where: str) -> str:
    """A message's text, out of its parts where it has parts."""
    if content is None:
        return ""
    if isinstance(content, str):
        return content
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        return "".join(str(part.get("text", "")) for part in content)
    raise ProviderError(f"{where}: a message's content is not text, and only text can be distilled", "remove the line")


def _tokens(choice: Mapping[str, Any], where: str) -> tuple[Token, ...]:
    block = choice.get("logprobs")
    content = block.get("content") if isinstance(block, dict) else None
    if not content:
        return ()
    if not isinstance(content, list):
        raise ProviderError(f"{where}: logprobs.content is {_kind(content)}, not a list", _FORMAT)
    return tuple(_token(token, where) for token in content)


def _token(token: Any, where: str) -> Token:
    fields = _mapping(token, where, "an entry of logprobs.content")
    own = _candidate(fields, where)
    top = fields.get("top_logprobs") or []
    if not isinstance(top, list):
        raise ProviderError(f"{where}: top_logprobs is {_kind(top)}, not a list", _FORMAT)
    candidates = [_candidate(_mapping(each, where, "a candidate"), where) for each in top]
    return Token(own.token, own.logprob, own.bytes, own.id, candidates)


def _candidate(fields: Mapping[str, Any], where: str) -> Candidate:
    text, raw, logprob, number = (fields.get(name) for name in ("token", "bytes", "logprob", "id"))
    if not isinstance(text, str):
        raise ProviderError(f"{where}: a token without its text", _FORMAT)
    if isinstance(logprob, bool) or not isinstance(logprob, int | float | None):
        raise ProviderError(f"{where}: the log-probability of {text!r} is {_kind(logprob)}, not a number", _FORMAT)
    try:
        given = None if raw is None else list(bytes(raw))
    except (TypeError, ValueError) as error:
        raise ProviderError(
            f"{where}: the bytes of {text!r} are no list of numbers from 0 to 255 ({error})", _FORMAT
        ) from error
    return Candidate(text, None if logprob is None else float(logprob), given, number if type(number) is int else None)


def _mapping(value: Any, where: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProviderError(f"{where}: {what} is {_kind(value)}, not a JSON object", "correct or remove the line")
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", dict: "an object", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )
