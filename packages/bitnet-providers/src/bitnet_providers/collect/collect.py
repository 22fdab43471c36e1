"""The collector: asks the teacher for every completion that is not on disk yet, then writes the raw shards."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa

from bitnet_providers.collect.ask_and_retry import Desk, Tally, TimeLimit, ask_in_turn
from bitnet_providers.collect.estimate import Estimate, estimate
from bitnet_providers.collect.journal_to_shards import check_others, shard_names, write_shards
from bitnet_providers.collect.plan_requests import Plan, of_shard, plan_collection
from bitnet_providers.collect.progress import OnProgress, Progress
from bitnet_providers.collect.rate_limits import RateLimits
from bitnet_providers.collect.servers import Server, WorkQueue, servers_to_ask
from bitnet_providers.collect.stop import Stop
from bitnet_providers.collect.summary import Outcome, check_gathered, refused_of, summarise
from bitnet_providers.collect.targets_and_capabilities import candidates_at_most, target_record
from bitnet_providers.config import CollectConfig, PriceConfig
from bitnet_providers.contract import Teacher, template_of
from bitnet_providers.raw.journal import GroupCommit, Journal, JournalWriter, read_journal
from bitnet_providers.raw.ledger import Ledger, LedgerWriter, read_ledger
from bitnet_providers.raw.write_shard import raw_metadata
from bitnet_providers.spending.budget import Budget, Spent, check_budget, price_of
from bitnet_providers.spending.token_counts import at_most
from bitnet_providers.teachers.common.retry import RetryPolicy

FILE_BYTES = 64 * 2**20
"""Of a journal's file: a store sends a file that has grown whole, again and again."""


@attrs.frozen(kw_only=True)
class Prepared:
    """A collection before its first call."""

    planned: Plan
    """What this machine is to have."""
    missing: Plan
    """What of that has to be asked for."""
    journal: Journal
    ledger: Ledger
    price: PriceConfig | None
    estimate: Estimate


def prepare(teacher: Teacher, config: CollectConfig, raw_folder: Path, teacher_kind: str, seed: int) -> Prepared:
    """Read what is there and see what is missing; asks the teacher nothing. Raises ProviderError."""
    planned = of_shard(plan_collection(config, teacher, teacher_kind, seed), config.shard)
    price = price_of(config.prices, teacher.description.get("model"))
    journal = read_journal(raw_folder)
    ledger = read_ledger(raw_folder, journal, price)
    check_budget(config.budget, price, ledger.spent)
    places = journal.rows.find(planned.ids)
    there = places >= 0
    if config.retry_failed:
        there &= ~journal.rows.is_filtered(places)
    missing = planned.take(~there & ~planned.with_keys({} if config.retry_failed else ledger.refused))
    check_others(
        raw_folder,
        shard_names(raw_folder, len(planned), config.completions_per_shard, config.shard),
        journal.rows,
        config.shard,
        journal.damaged,
    )
    asked = ((each.request, 1) for each in missing)
    return Prepared(
        planned=planned,
        missing=missing,
        journal=journal,
        ledger=ledger,
        price=price,
        estimate=estimate(asked, price, _answer_tokens(planned, journal)),
    )


Asking = Callable[[Prepared, Tally, Stop, Progress], Awaitable[Spent]]


async def collect(
    teacher: Teacher,
    config: CollectConfig,
    raw_folder: Path,
    teacher_kind: str,
    seed: int,
    on_progress: OnProgress = lambda done, total, note: None,
    before: Prepared | None = None,
    probe: Mapping[str, Any] | None = None,
    on_notice: Callable[[str], None] = lambda line: None,
    asking: "Asking | None" = None,
) -> dict[str, Any]:
    """Gather every prompt × sample and every text into ``raw_folder/shard_NNN.parquet``; returns a summary.

    A completion is in the journal before it counts, and is never asked for again: cancelled, failed or killed, a later
    call goes on from there. `teacher_kind` is the manifest's name for the teacher; `seed` is the run's; `before`
    is what `prepare` gave for the same arguments; `probe` is what the shards' metadata says of the teacher
    (`Verdict.for_metadata`); `on_notice` hears once of each server of several (`servers_to_ask`) that is given up.
    `asking` asks for what is missing, so that it is in `raw_folder`'s journal, and returns what was spent; None: this
    process. Stopped by its budget, it writes what there is, and the summary says what is missing. Requests that the
    teacher refuses, or whose answer can't be kept, are left out and told. Completions that are damaged on the disk are
    asked again; the first note of `on_progress` and the summary say so (``damaged``: frames of the journal that are not
    what was written, earlier ones too; ``ledger_damaged``: lines of the ledger, counted at the worst).
    Raises ProviderError (with all answers kept), and OSError for a disk that takes no more.
    """
    started = time.perf_counter()
    if before is None:
        before = await asyncio.to_thread(prepare, teacher, config, raw_folder, teacher_kind, seed)
    tally, stop, spent = Tally(), Stop(), before.ledger.spent
    servers = servers_to_ask(teacher, config, stop) if asking is None else []
    progress = Progress(on_progress, before.planned, before.missing, before.journal, before.ledger, tally)
    if before.missing:
        _check_limits(config, before.missing)
        asking = asking or partial(_ask, servers, config, raw_folder, on_notice)
        spent = await asking(before, tally, stop, progress)
    asking_s = time.perf_counter() - started
    if stop.error is not None and stop.failed:
        raise stop.error

    rows = read_journal(raw_folder).rows if before.missing else before.journal.rows
    outcome = Outcome(
        planned=before.planned,
        missing=before.missing,
        damaged=before.journal.damaged,
        ledger_damaged=before.ledger.damaged,
        rows=rows,
        refused=refused_of(before.planned, rows, before.ledger.refused | tally.refused),
        tally=tally,
        spent=spent,
        stop=stop,
    )
    check_gathered(outcome)
    metadata = _metadata(teacher, config, teacher_kind, seed, probe, before.planned.test_from)
    per_shard, shard = config.completions_per_shard, config.shard
    counts = await asyncio.to_thread(write_shards, raw_folder, outcome.completed, rows, metadata, per_shard, shard)
    return summarise(outcome, config, counts, servers) | {
        "seconds": time.perf_counter() - started,
        "tokens_per_second": progress.tokens / asking_s if progress.tokens else None,
    }


def _check_limits(config: CollectConfig, missing: Plan) -> None:
    """Raises ProviderError for a request that would not fit in an empty minute."""
    limits = RateLimits(config.requests_per_minute, config.tokens_per_minute)
    for each in missing:
        limits.check(at_most(each.request))


async def _ask(
    servers: list[Server],
    config: CollectConfig,
    raw_folder: Path,
    on_notice: Callable[[str], None],
    before: Prepared,
    tally: Tally,
    stop: Stop,
    progress: Progress,
) -> Spent:
    """Ask for what is missing; returns what the folder has used in all."""
    budget = Budget(config.budget, before.price, before.ledger.spent)
    queue = WorkQueue(iter(before.missing), servers)
    stop.also(budget.close)
    stop.also(queue.close)
    # Arrow imports pandas (seconds) with the first list that it is given, where there is one: not behind a paid answer.
    await asyncio.to_thread(pa.array, [])
    with JournalWriter(raw_folder, FILE_BYTES) as journal, LedgerWriter(raw_folder, before.price) as ledger:
        keeper = GroupCommit(
            journal,
            ledger.sync,
            lambda completions, tokens: progress.kept(
                completions, tokens, sum(each.pacer.at_once for each in servers), budget.spent.dollars
            ),
        )
        desk = Desk(
            queue=queue,
            budget=budget,
            ledger=ledger,
            retry=RetryPolicy(config.retries, config.retry_wait_s),
            limit=TimeLimit(config.request_timeout_s if servers[0].teacher.capabilities.paced else None),
            stop=stop,
            tally=tally,
            keeper=keeper,
            on_notice=on_notice,
        )

        places = min(config.concurrency, len(before.missing))
        asking = places * len(servers)

        async def ask(server: Server) -> None:
            nonlocal asking
            await ask_in_turn(desk, server)
            asking -= 1
            if asking == 0:
                keeper.end()

        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(keeper.run())
                for server in servers * places:
                    group.create_task(ask(server))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        finally:  # stopped or failed: what has been answered is kept
            keeper.close()
    return budget.spent


def _answer_tokens(planned: Plan, journal: Journal, enough: int = 500) -> float | None:
    """The mean length of the answers that are there, in tokens; None: there are none."""
    places = journal.rows.find(planned.ids[planned.is_sample])
    rows = [journal.rows.row(place) for place in places[places >= 0][:enough].tolist()]
    return sum(len(row.batch.column("token_logprobs")[row.index]) for row in rows) / len(rows) if rows else None


def _metadata(
    teacher: Teacher,
    config: CollectConfig,
    teacher_kind: str,
    seed: int,
    probe: Mapping[str, Any] | None,
    test_from: int | None,
) -> dict[str, Any]:
    return raw_metadata(
        # Where a server listens is no part of what it says: one that moved, or several, leave the same shard.
        teacher={name: value for name, value in teacher.description.items() if name != "base_url"},
        kind=teacher_kind,
        sampling={
            "temperature": config.temperature,
            "top_p": config.top_p,
            "max_new_tokens": config.max_new_tokens,
            "samples_per_prompt": config.samples_per_prompt,
            "max_text_tokens": config.max_text_tokens,
            "system_prompt": config.system_prompt,
            "prompt_template": config.prompt_template,
            "seed": seed,
        },
        top_k=candidates_at_most(config, teacher.capabilities),
        capabilities=attrs.asdict(teacher.capabilities),
        probe=probe,
        target=target_record(config),
        template=template_of(teacher),
        test_from=test_from,
    )


def first_failure(failures: BaseExceptionGroup[BaseException]) -> BaseException:
    """The one failure to tell; with many requests under way the others say the same."""
    error = failures.exceptions[0]
    return first_failure(error) if isinstance(error, BaseExceptionGroup) else error
