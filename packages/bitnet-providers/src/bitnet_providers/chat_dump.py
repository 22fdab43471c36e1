"""Other people's dumps of OpenAI-shaped chat completions (JSONL) as raw shards: what was paid for is used again.

A line holds a request and its response, in one of these shapes: ``{"request": {...}, "response": {...}}``, a response
that carries its ``messages``, or a line of a batch job's output joined with its ``body``. The candidates are those of
``choices[].logprobs.content[].top_logprobs``.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa

from bitnet_providers.contract import Completion, ProviderError
from bitnet_providers.openai_shape.normalise import REPAIRS, columns
from bitnet_providers.openai_shape.wire import Candidate, Token
from bitnet_providers.raw_shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard

COMPLETIONS_PER_SHARD = 512
_FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


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


def import_chat_dump(dump: Path, raw_folder: Path) -> dict[str, Any]:
    """Write the completions of `dump` into ``shard_NNN.parquet`` of `raw_folder`; returns counts (plain JSON values).

    Prompts are numbered in the order of their first appearance; several answers to the same messages are samples of one
    prompt. Nothing is made up: see `openai_shape.normalise` for what becomes of tokens without bytes. Responses without
    log-probabilities are kept as text. Memory: one shard and a digest of each prompt.
    Raises ProviderError naming the line for what can't be read, for two models in one dump, and for a folder that
    holds shards already; then no shard is left.
    """
    if list(raw_folder.glob("shard_*.parquet")):
        raise ProviderError(f"{raw_folder}: holds raw shards already; name an empty folder, so that dumps don't mix")
    counted = Counter[str]()
    prompts: dict[str, int] = {}
    samples = Counter[int]()
    # The metadata names K and the sampling of all lines, and stands in the first shard too: hence two passes.
    model, top_k, samplings = _survey(dump)
    metadata = raw_metadata(
        teacher={"model": model},
        kind="import",
        sampling=samplings[0] if len(samplings) == 1 else {"mixed": samplings},
        top_k=top_k,
        capabilities={"max_top_logprobs": top_k, "token_ids": False, "token_bytes": True, "scoring": False},
    )
    rows: list[dict[str, Any]] = []
    written: list[Path] = []
    tokens = 0
    try:
        for chat in _chats(dump, counted):
            digest = _digest(chat.messages)
            prompt_idx = prompts.setdefault(digest, len(prompts))
            sample_idx = samples[prompt_idx]
            samples[prompt_idx] += 1
            completion = completion_of(chat, counted)
            tokens += len(completion.token_logprobs) if chat.tokens else 0
            rows.append(
                {
                    "prompt_idx": prompt_idx,
                    "sample_idx": sample_idx,
                    "request_sha256": _digest([digest, chat.model, chat.sampling, sample_idx]),
                    "source_id": chat.source_id or digest[:16],
                    "kind": "sample",
                    "format": chat.format,
                    "messages": json.dumps(list(chat.messages), ensure_ascii=False),
                    **completion_columns(completion),
                }
            )
            if len(rows) == COMPLETIONS_PER_SHARD:
                written.append(_write(raw_folder, len(written), rows, metadata))
                rows = []
        if rows:
            written.append(_write(raw_folder, len(written), rows, metadata))
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return {
        "completions": sum(samples.values()),
        "prompts": len(prompts),
        "tokens": tokens,
        "top_k": top_k,
        "model": model,
        "shards": [path.name for path in written],
        "counted": {name: counted[name] for name in COUNTED},
    }


COUNTED = ("failed_requests", "without_logprobs", *REPAIRS)
"""What `import_chat_dump` counts; docs/traces.md says what each means."""


def completion_of(chat: Chat, counted: Counter[str]) -> Completion:
    """One answer as the collector would have kept it; adds to `counted`."""
    counted["without_logprobs"] += not chat.tokens
    repairs = Counter[str]()
    told = columns(chat.content, chat.tokens, chat.top_k, repairs, chat.tokens_said)
    counted.update(repairs)
    return Completion(
        text=told.text,
        token_logprobs=told.token_logprobs,
        candidate_counts=told.candidate_counts,
        candidate_logprobs=told.candidate_logprobs,
        finish_reason=chat.finish_reason,  # type: ignore[arg-type]
        model=chat.model,
        prompt_tokens=chat.prompt_tokens,
        latency_s=float("nan"),
        token_bytes=told.token_bytes,
        candidate_bytes=told.candidate_bytes,
        repairs={name: count for name, count in repairs.items() if count},
    )


# --- reading ---------------------------------------------------------------------------------------------------------


def _survey(dump: Path) -> tuple[str, int, list[Mapping[str, Any]]]:
    """Model, K and the distinct sampling parameters of all lines."""
    model, top_k, samplings, first = "", 0, [], 0
    for number, chat in enumerate(_chats(dump, Counter())):
        if number == 0:
            model, first = chat.model, number
        elif chat.model != model:
            raise ProviderError(
                f'{dump}: completion {number + 1} is of model "{chat.model}", completion {first + 1} of "{model}"; '
                "split the dump and import each model into its own folder"
            )
        top_k = max(top_k, chat.top_k)
        if chat.sampling not in samplings:
            samplings.append(chat.sampling)
    if not samplings:
        raise ProviderError(f"{dump}: no completion in it; a line is a JSON object with messages and choices")
    return model, top_k, samplings


def _chats(dump: Path, counted: Counter[str]) -> Iterator[Chat]:
    try:
        with dump.open("rb") as file:
            for number, line in enumerate(file, start=1):
                if line.strip():
                    yield from _chats_of_line(line, f"{dump}: line {number}", counted)
    except OSError as error:
        raise ProviderError(f"{dump}: cannot be read ({error.strerror}); name a JSONL file") from error


def _chats_of_line(line: bytes, where: str, counted: Counter[str]) -> Iterator[Chat]:
    try:
        record = json.loads(line.removeprefix(b"\xef\xbb\xbf"))
    except (ValueError, RecursionError) as error:
        raise ProviderError(f"{where}: no JSON ({error}); a line is one JSON object, correct or remove it") from error
    if not isinstance(record, dict):
        raise ProviderError(f"{where}: {_kind(record)}, not a JSON object; correct or remove the line")
    request, response = _body(record.get("request")), _body(record.get("response", record))
    if response is None or response.get("error") is not None or (record.get("error") and "choices" not in response):
        counted["failed_requests"] += 1
        return
    request = request or {}
    messages = _messages(request, response, record, where)
    choices = response.get("choices")
    if not isinstance(choices, list) or not choices:
        raise ProviderError(f"{where}: no choices in the response; a line is a request with its response")
    usage = response.get("usage") or {}
    name = record.get("id") if "response" in record else None
    source_id = record.get("custom_id") or record.get("source_id") or name
    wanted = request.get("top_logprobs")
    json_mode = (request.get("response_format") or {}).get("type") in ("json_object", "json_schema")
    model = response.get("model") or request.get("model") or record.get("model")
    if not isinstance(model, str):
        raise ProviderError(f"{where}: no model; add the name of the model that answered as response.model")
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
            f"{where}: no messages; put the request beside the response "
            '({"request": {"messages": [...]}, "response": {...}})'
        )
    messages = []
    for message in found:
        fields = _mapping(message, where, "a message")
        if not isinstance(fields.get("role"), str):
            raise ProviderError(f"{where}: a message without a role; it is system, user or assistant")
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
    raise ProviderError(f"{where}: a message's content is not text; only text can be distilled: remove the line")


def _tokens(choice: Mapping[str, Any], where: str) -> tuple[Token, ...]:
    block = choice.get("logprobs")
    content = block.get("content") if isinstance(block, dict) else None
    if not content:
        return ()
    if not isinstance(content, list):
        raise ProviderError(f"{where}: logprobs.content is {_kind(content)}, not a list; this is another format")
    return tuple(_token(token, where) for token in content)


def _token(token: Any, where: str) -> Token:
    fields = _mapping(token, where, "an entry of logprobs.content")
    own = _candidate(fields, where)
    top = fields.get("top_logprobs") or []
    if not isinstance(top, list):
        raise ProviderError(f"{where}: top_logprobs is {_kind(top)}, not a list; this is another format")
    candidates = [_candidate(_mapping(each, where, "a candidate"), where) for each in top]
    return Token(own.token, own.logprob, own.bytes, own.id, candidates)


def _candidate(fields: Mapping[str, Any], where: str) -> Candidate:
    text, raw, logprob, number = (fields.get(name) for name in ("token", "bytes", "logprob", "id"))
    if not isinstance(text, str):
        raise ProviderError(f"{where}: a token without its text; an entry is {{token, bytes, logprob}}")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float | None):
        raise ProviderError(f"{where}: the log-probability of {text!r} is {_kind(logprob)}, not a number")
    try:
        given = None if raw is None else list(bytes(raw))
    except (TypeError, ValueError) as error:
        raise ProviderError(f"{where}: the bytes of {text!r} are no list of numbers from 0 to 255 ({error})") from error
    return Candidate(text, None if logprob is None else float(logprob), given, number if type(number) is int else None)


def _mapping(value: Any, where: str, what: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise ProviderError(f"{where}: {what} is {_kind(value)}, not a JSON object; correct or remove the line")
    return value


def _kind(value: Any) -> str:
    return {list: "a list", str: "a text", dict: "an object", type(None): "null", bool: "true or false"}.get(
        type(value), "a number"
    )


# --- writing ---------------------------------------------------------------------------------------------------------


def _write(folder: Path, number: int, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> Path:
    path = shard_path(folder, number)
    try:
        write_raw_shard(path, pa.Table.from_pylist(list(rows), schema=RAW_SCHEMA), metadata)
    except OSError as error:
        raise ProviderError(f"{path}: cannot be written ({error}); free space or name another folder") from error
    return path


def _digest(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()
