"""The collector: asks the teacher for every completion that is not on disk yet, then writes the raw shards."""

import asyncio
import contextlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs
import numpy as np
import pyarrow as pa

from bitnet_providers.collect_plan import Planned, plan_collection
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Completion, GenerateRequest, ProviderError, Teacher
from bitnet_providers.journal import JournalRow, JournalWriter, Key, read_journal
from bitnet_providers.raw_shard import RAW_SCHEMA, completion_columns, raw_metadata, shard_path, write_raw_shard
from bitnet_providers.targets import candidates_at_most, target_record

OnProgress = Callable[[int, int, str], None]
"""(completions done, completions in all, a short note)"""


async def collect(
    teacher: Teacher,
    config: CollectConfig,
    raw_folder: Path,
    teacher_kind: str,
    seed: int,
    on_progress: OnProgress = lambda done, total, note: None,
) -> dict[str, Any]:
    """Gather every prompt × sample and every text into ``raw_folder/shard_NNN.parquet``; returns a summary.

    A completion is in the journal before it counts, and is never asked for again: cancelled, failed or killed, a later
    call goes on from there. `teacher_kind` is the manifest's name for the teacher; `seed` is the run's.
    Completions that are damaged on the disk are asked again; the first note of `on_progress` and the summary say so
    (``damaged``: frames of the journal that are not what was written, earlier ones too).
    Raises ProviderError, and OSError for a disk that takes no more.
    """
    started = time.perf_counter()
    planned = plan_collection(config, teacher, teacher_kind, seed)
    journal = read_journal(raw_folder)
    gathered, damaged = journal.rows, journal.damaged
    missing = [each for each in planned if each.key not in gathered]
    # Damage that an earlier call has mended stays in the journal: it is told, but not as work to come.
    asked_again = min(damaged, len(missing))
    again = f"{_many(asked_again, 'damaged completion')} will be asked again" if asked_again else ""
    new_tokens = await _ask(teacher, missing, len(planned), raw_folder, config.concurrency, on_progress, again)
    asking_s = time.perf_counter() - started

    if missing:
        gathered = read_journal(raw_folder).rows
    metadata = raw_metadata(
        teacher=teacher.description,
        kind=teacher_kind,
        sampling={
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_new_tokens": config.max_new_tokens,
            "samples_per_prompt": config.samples_per_prompt,
            "max_text_tokens": config.max_text_tokens,
            "system_prompt": config.system_prompt,
            "seed": seed,
        },
        top_k=candidates_at_most(config, teacher.capabilities),
        capabilities=attrs.asdict(teacher.capabilities),
        target=target_record(config),
    )
    counts = await asyncio.to_thread(
        _write_shards, raw_folder, planned, gathered, metadata, config.completions_per_shard
    )
    speed = new_tokens / asking_s if new_tokens else None
    reused = len(planned) - len(missing)
    already = f" ({reused:,} already there)" if reused else ""
    headline = f"{counts['completions']:,} completions{already}, {counts['kd_positions']:,} KD positions"
    if not counts["kd_positions"]:
        why = "the teacher gives no top log-probabilities" if config.top_k else "collect.top_k = 0"
        headline += f"; no candidates: {why}, so a student learns by CE alone"
    if asked_again:
        headline += f"; {_many(asked_again, 'damaged completion')} in the journal asked again"
    return {
        "headline": headline,
        **counts,
        "reused": reused,
        "damaged": damaged,
        "seconds": time.perf_counter() - started,
        "tokens_per_second": speed,
    }


async def _ask(
    teacher: Teacher,
    missing: Sequence[Planned],
    total: int,
    raw_folder: Path,
    concurrency: int,
    on_progress: OnProgress,
    warning: str,
) -> int:
    """Ask for what is missing, at most `concurrency` at once; returns the tokens that came."""
    waiting = iter(missing)
    finished: asyncio.Queue[tuple[dict[str, Any], int]] = asyncio.Queue()
    unsaved: list[tuple[dict[str, Any], int]] = []
    done, tokens, started = total - len(missing), 0, time.perf_counter()
    there = "all there" if done == total else f"{done} already there" if done else ""
    on_progress(done, total, "; ".join(filter(None, (there, warning))))

    async def ask_in_turn() -> None:
        for each in waiting:
            try:
                completion = await _answer(teacher, each)
                row = _row(each, completion)
            except ProviderError as error:
                raise ProviderError(f'[collect] {each.kind} "{each.source_id}": {error}') from error
            finished.put_nowait((row, len(completion.token_logprobs)))

    def save(journal: JournalWriter) -> None:
        nonlocal done, tokens
        unsaved.extend(finished.get_nowait() for _ in range(finished.qsize()))
        journal.append([row for row, _ in unsaved])
        done += len(unsaved)
        tokens += sum(count for _, count in unsaved)
        unsaved.clear()

    async def keep(journal: JournalWriter) -> None:
        while done < total:
            unsaved.append(await finished.get())
            save(journal)  # a local batch ends at once: one write, one fsync
            on_progress(done, total, f"{tokens:,} tokens, {tokens / (time.perf_counter() - started):.0f} tok/s")

    with JournalWriter(raw_folder) as journal:
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keep(journal))
                for _ in range(min(concurrency, len(missing))):
                    group.create_task(ask_in_turn())
        except BaseExceptionGroup as failures:
            raise _first(failures) from None
        finally:  # stopped or failed: what has been answered is kept
            with contextlib.suppress(OSError):
                save(journal)
    return tokens


async def _answer(teacher: Teacher, planned: Planned) -> Completion:
    if isinstance(planned.request, GenerateRequest):
        return await teacher.generate(planned.request)
    return await teacher.score(planned.request)


def _row(planned: Planned, completion: Completion) -> dict[str, Any]:
    sha256, draw = planned.key
    return {
        "prompt_idx": planned.prompt_idx,
        "sample_idx": draw,
        "request_sha256": sha256,
        "source_id": planned.source_id,
        "kind": planned.kind,
        "format": planned.format,
        "messages": json.dumps([dict(message) for message in planned.request.messages], ensure_ascii=False),
        **completion_columns(completion),
    }


def _many(count: int, thing: str) -> str:
    return f"{count:,} {thing}" if count == 1 else f"{count:,} {thing}s"


def _first(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure to tell; with many requests under way the others say the same."""
    error = failures.exceptions[0]
    return _first(error) if isinstance(error, BaseExceptionGroup) else error


def _write_shards(
    raw_folder: Path,
    planned: Sequence[Planned],
    gathered: Mapping[Key, JournalRow],
    metadata: Mapping[str, Any],
    completions_per_shard: int,
) -> dict[str, Any]:
    """Write the shards by prompt and sample, remove those of an earlier, longer collection, and count."""
    tokens_by: Counter[str] = Counter()
    completions_by: Counter[str] = Counter()
    kd_positions = 0
    for number, first in enumerate(range(0, len(planned), completions_per_shard)):
        part = planned[first : first + completions_per_shard]
        table = _shard_table(part, gathered)
        write_raw_shard(shard_path(raw_folder, number), table, metadata)
        for each, positions in zip(part, table["candidate_counts"].to_numpy(), strict=True):
            name = f"{each.kind} {each.format or 'plain'}"
            completions_by[name] += 1
            tokens_by[name] += len(positions)
            kd_positions += int(np.count_nonzero(positions))
    shards = -(-len(planned) // completions_per_shard)
    for path in raw_folder.glob("shard_*.parquet"):  # their rows are in the journal
        if path.name not in {shard_path(raw_folder, number).name for number in range(shards)}:
            path.unlink()
    return {
        "completions": len(planned),
        "tokens": sum(tokens_by.values()),
        "kd_positions": kd_positions,
        "completions_by": dict(sorted(completions_by.items())),
        "tokens_by": dict(sorted(tokens_by.items())),
        "shards": shards,
    }


def _shard_table(part: Sequence[Planned], gathered: Mapping[Key, JournalRow]) -> pa.Table:
    """The journal's rows in the plan's order; where they stand in the files is taken from the plan of today."""
    rows = [gathered[each.key] for each in part]
    table = pa.Table.from_batches([row.batch.slice(row.index, 1) for row in rows], RAW_SCHEMA)
    of_plan: dict[str, list[Any]] = {
        "prompt_idx": [each.prompt_idx for each in part],
        "sample_idx": [each.sample_idx for each in part],
        "source_id": [each.source_id for each in part],
        "kind": [each.kind for each in part],
        "format": [each.format for each in part],
    }
    for name, values in of_plan.items():
        index = RAW_SCHEMA.get_field_index(name)
        table = table.set_column(index, RAW_SCHEMA.field(name), pa.array(values, RAW_SCHEMA.field(name).type))
    return table.combine_chunks()
