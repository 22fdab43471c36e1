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
import numpy as np
import pyarrow as pa

from bitnet_providers.contract import Completion, ProviderError
from bitnet_providers.raw_shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard

COMPLETIONS_PER_SHARD = 512
REPLACEMENT = "\ufffd"
"""What a decoder puts where bytes are no whole character: the bytes can't be told from the text."""
_FINISH = {"stop": "stop", "length": "length", "content_filter": "content_filter"}


@attrs.frozen
class Entry:
    """One token of a response as the dump has it."""

    text: str
    raw: bytes | None
    """None: the dump doesn't say."""
    logprob: float
    """nats; NaN where the dump has none."""
    top: tuple[tuple[str, bytes | None, float], ...]
    """(text, bytes, log-probability), sentinels and duplicates included."""


@attrs.frozen
class Chat:
    """One choice of one response."""

    messages: tuple[Mapping[str, str], ...]
    source_id: str | None
    format: str | None
    content: str
    entries: tuple[Entry, ...]
    finish_reason: str
    model: str
    prompt_tokens: int
    sampling: Mapping[str, Any]
    top_k: int


def import_chat_dump(dump: Path, raw_folder: Path) -> dict[str, Any]:
    """Write the completions of `dump` into ``shard_NNN.parquet`` of `raw_folder`; returns counts (plain JSON values).

    Prompts are numbered in the order of their first appearance; several answers to the same messages are samples of one
    prompt. Nothing is made up: see `columns_of` for what becomes of tokens without bytes. Responses without
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
            columns = columns_of(chat, counted)
            tokens += len(columns["token_logprobs"])
            rows.append(
                {
                    "prompt_idx": prompt_idx,
                    "sample_idx": sample_idx,
                    "request_sha256": _digest([digest, chat.model, chat.sampling, sample_idx]),
                    "source_id": chat.source_id or digest[:16],
                    "kind": "sample",
                    "format": chat.format,
                    "messages": json.dumps(list(chat.messages), ensure_ascii=False),
                    **columns,
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


COUNTED = (
    "failed_requests",
    "without_logprobs",
    "without_provable_bytes",
    "bytes_rebuilt",
    "tokens_joined",
    "candidates_without_bytes",
    "sentinel_logprobs",
    "missing_logprobs",
    "duplicate_candidates",
    "short_positions",
    "sampled_outside_candidates",
    "texts_differing",
)
"""What `import_chat_dump` counts; docs/traces.md says what each means."""


# --- tokens and their bytes ------------------------------------------------------------------------------------------


def columns_of(chat: Chat, counted: Counter[str]) -> dict[str, Any]:
    """A completion's columns of the raw shard; adds to `counted`.

    A token's bytes are the dump's. Where it has none they are rebuilt from the texts only if that is proved: the texts
    of the tokens, one after the other, must give the response, with every replacement character standing for bytes that
    the tokens around it enclose. Several tokens inside one such gap become one entry: its bytes are the gap's, its
    log-probability their sum, its candidates those of the first. A candidate without bytes is rebuilt where its text
    has no replacement character and the response is proved to be the tokens' texts; else it is left out, so that its
    mass falls to other, and is counted. A response whose bytes can't be proved keeps its text and no tokens.
    """
    text = chat.content.encode("utf-8", "surrogatepass")
    entries: Sequence[Entry] | None = chat.entries
    plain = False
    if not chat.entries:
        counted["without_logprobs"] += 1
    elif all(entry.raw is not None for entry in chat.entries):
        spoken = b"".join(entry.raw or b"" for entry in chat.entries)
        counted["texts_differing"] += spoken != text
        text = spoken
        plain = all(entry.text.encode("utf-8", "surrogatepass") == entry.raw for entry in _whole(chat.entries))
    else:
        entries = rebuilt(chat.entries, text, counted)
        plain = entries is not None
        if entries is None:
            counted["without_provable_bytes"] += 1
    used = entries or ()
    counts: list[int] = []
    candidate_bytes: list[bytes] = []
    candidate_logprobs: list[float] = []
    for entry in used:
        seen: set[bytes] = set()
        kept = 0
        for candidate_text, raw, logprob in entry.top:
            if raw is None and plain and REPLACEMENT not in candidate_text:
                raw = candidate_text.encode("utf-8", "surrogatepass")
            counted["sentinel_logprobs"] += logprob < -9000
            if raw is None:
                counted["candidates_without_bytes"] += 1
                continue
            counted["duplicate_candidates"] += raw in seen
            seen.add(raw)
            candidate_bytes.append(raw)
            candidate_logprobs.append(logprob)
            kept += 1
        counts.append(kept)
        counted["short_positions"] += len(entry.top) < chat.top_k
        counted["sampled_outside_candidates"] += bool(entry.top) and entry.raw not in seen
        counted["missing_logprobs"] += entry.logprob != entry.logprob or entry.logprob < -9000
    return completion_columns(
        Completion(
            text=text,
            token_logprobs=np.array([entry.logprob for entry in used], dtype=np.float32),
            candidate_counts=np.array(counts, dtype=np.int32),
            candidate_logprobs=np.array(candidate_logprobs, dtype=np.float32),
            finish_reason=chat.finish_reason,  # type: ignore[arg-type]
            model=chat.model,
            prompt_tokens=chat.prompt_tokens,
            latency_s=float("nan"),
            token_bytes=tuple(entry.raw or b"" for entry in used),
            candidate_bytes=tuple(candidate_bytes),
        )
    )


def _whole(entries: Sequence[Entry]) -> Iterator[Entry]:
    return (entry for entry in entries if REPLACEMENT not in entry.text)


def rebuilt(entries: Sequence[Entry], text: bytes, counted: Counter[str]) -> list[Entry] | None:
    """The entries with bytes that spell `text`, or None where that can't be proved.

    A token is known by its bytes, or by a text without replacement characters. Unknown ones between two known ones (or
    the text's end) take the bytes that lie between those; the place of the next known run must be the only one possible
    up to it, so its bytes may not occur earlier in what is left (for the last run: it must end the text).
    """
    result: list[Entry] = []
    place, index = 0, 0
    while index < len(entries):
        known = _known(entries[index])
        if known is not None:
            if not text.startswith(known, place):
                return None
            counted["bytes_rebuilt"] += entries[index].raw is None
            result.append(attrs.evolve(entries[index], raw=known))
            place += len(known)
            index += 1
            continue
        stop = next((i for i in range(index, len(entries)) if _known(entries[i]) is not None), len(entries))
        following = b""
        for entry in entries[stop:]:
            known = _known(entry)
            if known is None:
                break
            following += known
        end = len(text) if stop == len(entries) else _only_place(text, following, place, entries[stop:])
        gap = entries[index:stop]
        if end is None or end <= place:
            return None
        counted["bytes_rebuilt"] += 1
        counted["tokens_joined"] += len(gap) - 1
        result.append(attrs.evolve(gap[0], raw=text[place:end], logprob=sum(entry.logprob for entry in gap)))
        place, index = end, stop
    return result if place == len(text) else None


def _known(entry: Entry) -> bytes | None:
    if entry.raw is not None:
        return entry.raw
    return None if REPLACEMENT in entry.text else entry.text.encode("utf-8", "surrogatepass")


def _only_place(text: bytes, following: bytes, place: int, rest: Sequence[Entry]) -> int | None:
    """Where the known run `following` begins, if only one place fits."""
    if all(_known(entry) is not None for entry in rest):
        return len(text) - len(following) if following and text.endswith(following) else None
    first = text.find(following, place + 1) if following else -1
    return first if first >= 0 and text.find(following, first + 1) < 0 else None


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
        entries = _entries(choice, where)
        widest = max((len(entry.top) for entry in entries), default=0)
        yield Chat(
            messages=messages,
            source_id=None if source_id is None else str(source_id),
            format="json" if json_mode else None,
            content=_text(message.get("content"), where),
            entries=entries,
            finish_reason=_FINISH.get(choice.get("finish_reason") or "stop", "stop"),
            model=model,
            prompt_tokens=int(usage.get("prompt_tokens") or 0),
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


def _entries(choice: Mapping[str, Any], where: str) -> tuple[Entry, ...]:
    block = choice.get("logprobs")
    content = block.get("content") if isinstance(block, dict) else None
    if not content:
        return ()
    if not isinstance(content, list):
        raise ProviderError(f"{where}: logprobs.content is {_kind(content)}, not a list; this is another format")
    return tuple(_entry(token, where) for token in content)


def _entry(token: Any, where: str) -> Entry:
    fields = _mapping(token, where, "an entry of logprobs.content")
    text, raw, logprob = _token(fields, where)
    top = fields.get("top_logprobs") or []
    if not isinstance(top, list):
        raise ProviderError(f"{where}: top_logprobs is {_kind(top)}, not a list; this is another format")
    candidates = [_token(_mapping(each, where, "a candidate"), where) for each in top]
    return Entry(text, raw, logprob, tuple(candidates))


def _token(fields: Mapping[str, Any], where: str) -> tuple[str, bytes | None, float]:
    text, raw, logprob = fields.get("token"), fields.get("bytes"), fields.get("logprob")
    if not isinstance(text, str):
        raise ProviderError(f"{where}: a token without its text; an entry is {{token, bytes, logprob}}")
    if logprob is None:
        logprob = float("nan")
    if isinstance(logprob, bool) or not isinstance(logprob, int | float):
        raise ProviderError(f"{where}: the log-probability of {text!r} is {_kind(logprob)}, not a number")
    try:
        return text, None if raw is None else bytes(raw), float(logprob)
    except (TypeError, ValueError) as error:
        raise ProviderError(f"{where}: the bytes of {text!r} are no list of numbers from 0 to 255 ({error})") from error


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
