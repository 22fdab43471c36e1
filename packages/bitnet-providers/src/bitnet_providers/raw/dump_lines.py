"""A line of a dump as chats: request and response in OpenAI's chat-completions shape, as servers write them."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs
import msgspec

from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.no_answer import FILTERED
from bitnet_providers.teachers.common.logprobs import token_list
from bitnet_providers.teachers.common.token_bytes import whole_characters
from bitnet_providers.teachers.openai_compatible.wire import Response, Usage, decode

_ONE_A_LINE = "write one JSON object a line"


@attrs.frozen
class Chat:
    """One choice of one response."""

    line: int
    """From 1."""
    messages: tuple[Mapping[str, str], ...]
    source_id: str | None
    format: str | None
    response: Response
    """With this choice alone."""
    model: str
    sampling: Mapping[str, Any]
    top_k: int
    most_tokens: int
    """0: the request doesn't say."""


@attrs.frozen
class Skipped:
    """A line, or a choice of it, that can't be used."""

    line: int
    why: str
    fix: str = ""


def read_chats(dump: Path, counted: Counter[str]) -> Iterator[Chat | Skipped]:
    """Every answer of a dump; adds to `counted`. Raises ProviderError for a file that can't be read."""
    try:
        with dump.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if not line.strip():
                    continue
                try:
                    yield from _chats_of_line(line, number, counted)
                except ProviderError as error:
                    yield Skipped(number, error.why, error.fix)
    except OSError as error:
        raise ProviderError(f"{dump}: cannot be read ({error.strerror})", "name a JSONL file") from error


def _chats_of_line(line: bytes, number: int, counted: Counter[str]) -> Iterator[Chat]:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"no JSON ({error})", _ONE_A_LINE) from error
    if not isinstance(record, dict):
        raise ProviderError(f"{_kind(record)}, not a JSON object", _ONE_A_LINE)
    request, answer = _body(record.get("request")), _body(record.get("response", record))
    if answer is None or answer.get("error") is not None or (record.get("error") and "choices" not in answer):
        counted["failed_requests"] += 1
        return
    request = request or {}
    messages = _messages(request, answer, record)
    try:
        response = decode(json.dumps(answer))
    except (ValueError, msgspec.MsgspecError) as error:
        raise ProviderError(
            f"the response has another shape than a completion's: {error}",
            "write it as OpenAI does, with {token, bytes, logprob, top_logprobs} in logprobs.content",
        ) from error
    choices = response.choices
    if choices == []:
        raise ProviderError(FILTERED, "leave the line out")
    if choices is None:
        raise ProviderError("no choices in the response", "give a request with its response")
    name = record.get("id") if "response" in record else None
    source_id = record.get("custom_id") or record.get("source_id") or name
    wanted = request.get("top_logprobs")
    form = request.get("response_format")
    json_mode = isinstance(form, dict) and form.get("type") in ("json_object", "json_schema")
    model = response.model or request.get("model") or record.get("model")
    if not isinstance(model, str):
        raise ProviderError("no model", "add the name of the model that answered as response.model")
    model = whole_characters(model)
    if len(choices) > 1 and response.usage is not None:  # it counts the tokens of all of them
        response.usage = Usage(prompt_tokens=response.usage.prompt_tokens)
    most_tokens = request.get("max_completion_tokens") or request.get("max_tokens")
    for choice in choices:
        tokens = token_list(choice.logprobs) or token_list(choice.logprobs, "refusal")
        widest = max((len(token.top_logprobs or ()) for token in tokens), default=0)
        counted["without_logprobs"] += not tokens
        yield Chat(
            line=number,
            messages=messages,
            source_id=None if source_id is None else whole_characters(str(source_id)),
            format="json" if json_mode else None,
            response=msgspec.structs.replace(response, choices=[choice]),
            model=model,
            sampling={
                name: request[name]
                for name in ("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed")
                if isinstance(request.get(name), int | float)
            },
            top_k=max(widest, wanted if isinstance(wanted, int) else 0),
            most_tokens=most_tokens if isinstance(most_tokens, int) else 0,
        )


def _body(value: Any) -> dict[str, Any] | None:
    """A request or response, out of the ``body`` of a batch job where it lies in one."""
    if not isinstance(value, dict):
        return None
    body = value.get("body")
    return body if isinstance(body, dict) else value


def _messages(
    request: Mapping[str, Any], response: Mapping[str, Any], record: Mapping[str, Any]
) -> tuple[Mapping[str, str], ...]:
    found = next((each["messages"] for each in (request, response, record) if each.get("messages")), None)
    if not isinstance(found, list):
        raise ProviderError(
            "no messages",
            'put the request beside the response ({"request": {"messages": [...]}, "response": {...}})',
        )
    messages = []
    for message in found:
        fields = _mapping(message, "a message")
        if not isinstance(fields.get("role"), str):
            raise ProviderError("a message without a role", "add it: system, user or assistant")
        messages.append({"role": _whole(fields["role"]), "content": _text(fields.get("content"))})
    return tuple(messages)


def _text(content: Any) -> str:
    """A prompt message's text, out of its parts where it has parts."""
    if content is None:
        return ""
    if isinstance(content, list) and all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        content = "".join(str(part.get("text", "")) for part in content)
    if not isinstance(content, str):
        raise ProviderError("a message's content is not text, and only text can be distilled", "remove the line")
    return _whole(content)


def _whole(text: str) -> str:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ProviderError("a message holds half a surrogate pair", "write whole characters") from None
    return text


def _mapping(value: Any, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProviderError(f"{what} is {_kind(value)}, not a JSON object", "correct the line")
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", dict: "an object", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )
