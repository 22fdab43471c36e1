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

import pyarrow as pa

from bitnet_providers.contract import Completion, ProviderError
from bitnet_providers.raw.chat_lines import Chat, read_chats
from bitnet_providers.raw.shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard
from bitnet_providers.teachers.common.normalise import REPAIRS, columns

COMPLETIONS_PER_SHARD = 512


def import_chat_dump(dump: Path, raw_folder: Path) -> dict[str, Any]:
    """Write the completions of `dump` into ``shard_NNN.parquet`` of `raw_folder`; returns counts (plain JSON values).

    Prompts are numbered in the order of their first appearance; several answers to the same messages are samples of one
    prompt. Nothing is made up: see `openai_shape.normalise` for what becomes of tokens without bytes. Responses without
    log-probabilities are kept as text. Memory: one shard and a digest of each prompt.
    Raises ProviderError naming the line for what can't be read, for two models in one dump, and for a folder that
    holds shards already; then no shard is left.
    """
    if list(raw_folder.glob("shard_*.parquet")):
        raise ProviderError(f"{raw_folder}: holds raw shards already", "name an empty folder, so that dumps don't mix")
    # The metadata names K and the sampling of all lines, and stands in the first shard too: hence two passes.
    model, top_k, samplings = _survey(dump)
    metadata = raw_metadata(
        teacher={"model": model},
        kind="import",
        sampling=samplings[0] if len(samplings) == 1 else {"mixed": samplings},
        top_k=top_k,
        capabilities={"max_top_logprobs": top_k, "token_ids": False, "token_bytes": True, "scoring": False},
    )
    counted = Counter[str]()
    samples: Counter[str] = Counter()
    rows = _rows(dump, samples, counted)
    written: list[Path] = []
    try:
        while part := list(islice(rows, COMPLETIONS_PER_SHARD)):
            written.append(_write(raw_folder, len(written), part, metadata))
    except BaseException:
        for path in written:
            path.unlink()
        raise
    return {
        "completions": samples.total(),
        "prompts": len(samples),
        "tokens": counted["tokens"],
        "top_k": top_k,
        "model": model,
        "shards": [path.name for path in written],
        "counted": {name: counted[name] for name in COUNTED},
    }


def _rows(dump: Path, samples: Counter[str], counted: Counter[str]) -> Iterator[dict[str, Any]]:
    """The columns of RAW_SCHEMA for each answer; adds to `samples` (answers by the digest of their messages)."""
    prompt_idx: dict[str, int] = {}
    for chat in read_chats(dump, counted):
        digest = _digest(chat.messages)
        sample_idx = samples[digest]
        samples[digest] += 1
        completion = completion_of(chat, counted)
        counted["tokens"] += len(completion.token_logprobs) if chat.tokens else 0
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


def _survey(dump: Path) -> tuple[str, int, list[Mapping[str, Any]]]:
    """Model, K and the distinct sampling parameters of all lines."""
    model, top_k, samplings, first = "", 0, [], 0
    for number, chat in enumerate(read_chats(dump, Counter())):
        if number == 0:
            model, first = chat.model, number
        elif chat.model != model:
            raise ProviderError(
                f'{dump}: completion {number + 1} is of model "{chat.model}", completion {first + 1} of "{model}"',
                "split the dump and import each model into its own folder",
            )
        top_k = max(top_k, chat.top_k)
        if chat.sampling not in samplings:
            samplings.append(chat.sampling)
    if not samplings:
        raise ProviderError(f"{dump}: no completion in it", "write a JSON object with messages and choices a line")
    return model, top_k, samplings


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
