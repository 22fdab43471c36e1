"""Other people's dumps of OpenAI-shaped chat completions (JSONL) as raw shards: what was paid for is used again.

A line holds a request and its response, in one of these shapes: ``{"request": {...}, "response": {...}}``, a response
that carries its ``messages``, or a line of a batch job's output joined with its ``body``. The candidates are those of
``choices[].logprobs.content[].top_logprobs``.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import pyarrow as pa

from bitnet_providers.contract import Completion, ProviderError, check_answer, with_counts_mended
from bitnet_providers.raw.no_answer import FILTERED, Ending, begins_in_thought, ending_of, no_answer
from bitnet_providers.raw.write_shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard
from bitnet_providers.teachers.common.logprobs import REPAIRS, token_list
from bitnet_providers.teachers.common.token_bytes import whole_characters
from bitnet_providers.teachers.openai_compatible.answer import Response, Usage, completion_of, decode

COMPLETIONS_PER_SHARD = 512
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


def import_chat_dump(dump: Path, raw_folder: Path) -> dict[str, Any]:
    """Write the completions of `dump` into ``shard_NNN.parquet`` of `raw_folder`; returns counts (plain JSON values).

    Prompts are numbered in the order of their first appearance; several answers to the same messages are samples of one
    prompt. An answer becomes what it would have become live (`completion_of`); responses without log-probabilities are
    kept as text. What can't be used, or holds no answer, is left out and told (``skipped``: the first of them by line,
    with the reason; ``counted.skipped``: how many). Memory: one shard and a digest of each prompt.
    Raises ProviderError for a dump without anything to use, for two models in one dump, and for a folder that holds
    shards already; then no shard is left.
    """
    if list(raw_folder.glob("shard_*.parquet")):
        raise ProviderError(f"{raw_folder}: holds raw shards already", "name an empty folder, so that dumps don't mix")
    # The metadata names K and the sampling of all lines, and stands in the first shard too: hence two passes.
    survey = _survey(dump)
    samplings = survey.samplings
    metadata = raw_metadata(
        teacher={"model": survey.model},
        kind="import",
        sampling=samplings[0] if len(samplings) == 1 else {"mixed": samplings},
        top_k=survey.top_k,
        capabilities={"max_top_logprobs": survey.top_k, "token_ids": False, "token_bytes": True, "scoring": False},
    )
    taken = _Taken()
    rows = _rows(dump, survey.in_thought, taken)
    written: list[Path] = []
    try:
        while part := list(islice(rows, COMPLETIONS_PER_SHARD)):
            written.append(_write(raw_folder, len(written), part, metadata))
    except BaseException:
        for path in written:
            path.unlink()
        raise
    taken.counted["skipped"] = len(taken.skipped)
    return {
        "completions": taken.samples.total(),
        "prompts": len(taken.samples),
        "tokens": taken.tokens,
        "top_k": survey.top_k,
        "model": survey.model,
        "shards": [path.name for path in written],
        "counted": dict.fromkeys(COUNTED, 0) | taken.counted,
        "skipped": [attrs.asdict(each) for each in taken.skipped[:LISTED]],
    }


COUNTED = ("failed_requests", "skipped", "without_logprobs", *REPAIRS)
"""What `import_chat_dump` always counts; docs/traces.md says what each means."""
LISTED = 100
"""Skipped lines that are named one by one, and ways of sampling."""


@attrs.define
class _Taken:
    """What has become of the lines that were read."""

    samples: Counter[str] = attrs.field(factory=Counter)
    """Answers by the digest of their messages."""
    tokens: int = 0
    """With a log-probability."""
    counted: Counter[str] = attrs.field(factory=Counter)
    skipped: list[Skipped] = attrs.field(factory=list)


def _rows(dump: Path, in_thought: bool, taken: _Taken) -> Iterator[dict[str, Any]]:
    """The columns of RAW_SCHEMA for each answer; adds to `taken`."""
    prompt_idx: dict[str, int] = {}
    for chat, completion in _answers(dump, in_thought, taken):
        digest = _digest(chat.messages)
        sample_idx = taken.samples[digest]
        taken.samples[digest] += 1
        taken.counted.update(completion.repairs)
        taken.tokens += 0 if np.isnan(completion.token_logprobs).all() else len(completion.token_logprobs)
        yield {
            "prompt_idx": prompt_idx.setdefault(digest, len(prompt_idx)),
            "sample_idx": sample_idx,
            "request_sha256": _digest([digest, chat.model, chat.sampling, sample_idx]),
            "source_id": chat.source_id or digest[:16],
            "kind": "sample",
            "format": chat.format,
            "messages": json.dumps(list(chat.messages), ensure_ascii=False),
            **completion_columns(completion),
        }


def _answers(dump: Path, in_thought: bool, taken: _Taken) -> Iterator[tuple[Chat, Completion]]:
    """What can be used; adds to what is counted and skipped. `in_thought`: this teacher's answers begin so."""
    for chat in read_chats(dump, taken.counted):
        if isinstance(chat, Skipped):
            taken.skipped.append(chat)
            continue
        try:
            completion = _completion(chat)
        except ProviderError as error:
            taken.skipped.append(Skipped(chat.line, error.why, error.fix))
            continue
        reason = no_answer(completion.finish_reason, json.dumps(dict(completion.repairs)), in_thought)
        if reason is None:
            yield chat, completion
        else:
            taken.skipped.append(Skipped(chat.line, reason))


def _completion(chat: Chat) -> Completion:
    """One answer as the collector would have kept it. Raises ProviderError for one that it would have asked again."""
    completion = with_counts_mended(
        completion_of(
            chat.response,
            model=chat.model,
            top_k=chat.top_k,
            reasoning="drop",
            most_tokens=chat.most_tokens,
            latency_s=float("nan"),
        )
    )
    check_answer(completion)
    return completion


@attrs.frozen
class _Survey:
    """What all lines of a dump have in common."""

    model: str
    top_k: int
    samplings: list[Mapping[str, Any]]
    """The distinct ones, the first `LISTED`; the seed is among them where all lines have one."""
    in_thought: bool


def _survey(dump: Path) -> _Survey:
    model, top_k, line = "", 0, 0
    endings = Counter[Ending]()
    samplings: dict[str, Mapping[str, Any]] = {}
    seeds: set[Any] = set()  # often each line has its own
    taken = _Taken()
    for chat, completion in _answers(dump, False, taken):
        if not samplings:
            model, line = chat.model, chat.line
        elif chat.model != model:
            raise ProviderError(
                f'{dump}: line {chat.line} is of model "{chat.model}", line {line} of "{model}"',
                "split the dump and import each model into its own folder",
            )
        top_k = max(top_k, chat.top_k)
        endings[ending_of(completion.finish_reason, json.dumps(dict(completion.repairs)))] += 1
        if len(seeds) < 2:
            seeds.add(chat.sampling.get("seed"))
        if len(samplings) < LISTED:
            sampling = {name: value for name, value in chat.sampling.items() if name != "seed"}
            samplings.setdefault(json.dumps(sampling, sort_keys=True), sampling)
    if not samplings:
        first = next(iter(taken.skipped), None)
        found = "" if first is None else f"; line {first.line}: {first.why}"
        raise ProviderError(
            f"{dump}: no completion in it that can be used{found}",
            (first and first.fix) or "write a JSON object with messages and choices a line",
        )
    seed = {} if len(seeds) > 1 or None in seeds else {"seed": seeds.pop()}
    return _Survey(model, top_k, [{**each, **seed} for each in samplings.values()], begins_in_thought(endings))


def _write(folder: Path, number: int, rows: Sequence[Mapping[str, Any]], metadata: Mapping[str, Any]) -> Path:
    path = shard_path(folder, number)
    try:
        write_raw_shard(path, pa.Table.from_pylist(list(rows), schema=RAW_SCHEMA), metadata)
    except OSError as error:
        raise ProviderError(f"{path}: cannot be written ({error})", "free space or name another folder") from error
    return path


def _digest(value: Any) -> str:
    return hashlib.sha256(
        json.dumps(value, sort_keys=True, ensure_ascii=False).encode("utf-8", "surrogatepass")
    ).hexdigest()


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
