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
import numpy as np
import pyarrow as pa

from bitnet_providers.contract import Completion, ProviderError, check_answer, with_counts_mended
from bitnet_providers.raw.dump_lines import Chat, Skipped, read_chats
from bitnet_providers.raw.no_answer import Ending, begins_in_thought, ending_of, no_answer
from bitnet_providers.raw.write_shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard
from bitnet_providers.teachers.common.logprobs import REPAIRS
from bitnet_providers.teachers.openai_compatible.answer import completion_of

COMPLETIONS_PER_SHARD = 512


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
