"""A worker's part of a collection: it asks for the requests that it is given, with books that all workers share.

What it keeps goes into a journal of its own. Who started the workers deals the requests out (leases), and writes the
shards from all journals at the end.
"""

import asyncio
import threading
import traceback
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pyarrow as pa

from bitnet_providers.collect.ask_and_retry import Desk, Tally, TimeLimit, ask_in_turn
from bitnet_providers.collect.collect import first_failure
from bitnet_providers.collect.plan_requests import Planned
from bitnet_providers.collect.servers import WorkQueue, servers_to_ask
from bitnet_providers.collect.shared_budget_and_limits import Ask, BooksClient, LimitsClient
from bitnet_providers.collect.stop import Stop
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError, Teacher
from bitnet_providers.raw.journal import FILES, GroupCommit, JournalWriter, in_order
from bitnet_providers.teachers.common.retry import RetryPolicy

FILE_BYTES = 4 * 2**20
"""Of a journal's file: a store pushes small ones as they are, while they grow."""
OF_TEACHER = ("model", "fingerprint", "template_sha256")
"""What the teachers of all workers have in common."""


@attrs.frozen(kw_only=True)
class WorkerSettings:
    """What a worker needs to know; goes to it pickled."""

    open_teacher: Callable[[], Teacher]
    expected: dict[str, Any]
    """The description of the teacher that the collection was planned with."""
    config: CollectConfig
    journal_folder: Path
    deliver: Callable[[Path], None] | None = None
    """Brings a file of the journal, which is whole then, to where all workers' come together; None: it lies there."""
    deliver_every_s: float = 60.0


@attrs.frozen(eq=False)
class Lease:
    """Requests that a worker is to ask for."""

    places: tuple[int, ...]
    """In the plan of what is missing."""
    planned: tuple[Planned, ...]


@attrs.frozen
class LeaseEnd:
    """What a worker says when it has been through a lease."""

    tally: Tally
    """Of all that it has asked up to now."""
    error: ProviderError | None = None
    """Why it stopped before the end; what it was given and has not answered is still to be asked."""
    failed: bool = False
    """Nothing else will work either. False: the budget is used up."""


class CollectWorker:
    """Asks lease after lease; several may be in hand, so that none waits for the slowest request of the one before."""

    def __init__(self, number: int, ask: Ask, settings: WorkerSettings, teacher: Teacher) -> None:
        self._settings, self._config, self._teacher = settings, settings.config, teacher
        self._stop = Stop()
        self._books = BooksClient(number, ask)
        limited = (settings.config.requests_per_minute, settings.config.tokens_per_minute) != (None, None)
        limits = LimitsClient(number, ask, self._books.tell) if limited else None
        self._servers = servers_to_ask(teacher, settings.config, self._stop, limits)
        self.journal = JournalWriter(settings.journal_folder, FILE_BYTES)
        self._keeper = GroupCommit(
            self.journal, self._books.sync, lambda completions, tokens: self._books.tell("kept", completions, tokens)
        )
        self._keeping = asyncio.get_running_loop().create_task(self._keeper.run())
        self._one_at_a_time = asyncio.Lock()
        self._delivery = threading.Lock()
        self._delivering = asyncio.get_running_loop().create_task(self._deliver_now_and_then())
        self._tally = Tally()

    async def do(self, lease: Lease) -> LeaseEnd:
        """Ask for every request of a lease, and wait until the disk has what was answered and the books know it."""
        queue = WorkQueue(iter(lease.planned), self._servers)
        self._stop.also(queue.close)
        desk = Desk(
            queue=queue,
            budget=self._books,
            ledger=self._books,
            retry=RetryPolicy(self._config.retries, self._config.retry_wait_s),
            limit=TimeLimit(self._config.request_timeout_s if self._teacher.capabilities.paced else None),
            stop=self._stop,
            tally=self._tally,
            keeper=self._keeper,
            on_notice=print,  # into the worker's log
        )
        try:
            async with asyncio.TaskGroup() as group:
                for server in self._servers * min(self._config.concurrency, len(lease.planned)):
                    group.create_task(self._unless_the_disk_fails(ask_in_turn(desk, server)))
        except BaseExceptionGroup as failures:
            raise first_failure(failures) from None
        await self._books.told()
        return LeaseEnd(self._tally, self._stop.error, self._stop.failed)

    async def _unless_the_disk_fails(self, asking: Awaitable[None]) -> None:
        """The keeper's error, where it has one: who waits for it would wait for ever."""
        done = asyncio.ensure_future(asking)
        await asyncio.wait({done, self._keeping}, return_when=asyncio.FIRST_COMPLETED)
        if not done.done():
            done.cancel()
            await self._keeping
        await done

    async def aclose(self) -> None:
        """What has been answered is kept."""
        for task in (self._delivering, self._keeping):
            task.cancel()
        await asyncio.gather(self._delivering, self._keeping, return_exceptions=True)
        self._keeper.close()
        self.journal.close()
        try:
            await asyncio.to_thread(self._deliver, self._files())
            await self._books.told()
        finally:
            await self._teacher.aclose()

    async def _deliver_now_and_then(self) -> None:
        while self._settings.deliver is not None:
            await asyncio.sleep(self._settings.deliver_every_s)
            try:
                await self.deliver()
            except Exception:  # the next time
                traceback.print_exc()

    async def deliver(self) -> None:
        """All that is kept up to now. Raises what `WorkerSettings.deliver` raises."""
        files = await self._keeper.between_groups(self._finished_files)
        async with self._one_at_a_time:
            await asyncio.to_thread(self._deliver, files)

    def _finished_files(self) -> list[Path]:
        self.journal.close()
        return self._files()

    def _files(self) -> list[Path]:
        return in_order(self._settings.journal_folder.glob(FILES))

    def _deliver(self, files: Sequence[Path]) -> None:
        if self._settings.deliver is None:
            return
        with self._delivery:  # a delivery that was cancelled goes on in its thread
            for file in filter(Path.exists, files):
                self._settings.deliver(file)
                file.unlink()


async def open_worker(settings: WorkerSettings, number: int, ask: Ask) -> CollectWorker:
    """Open the teacher, which must be the one that the collection was planned with. Raises ProviderError."""
    teacher = settings.open_teacher()
    for name in OF_TEACHER:
        ours, expected = teacher.description.get(name), settings.expected.get(name)
        if ours != expected:
            await teacher.aclose()
            raise ProviderError(
                f"worker {number} has another teacher: its {name} is {ours!r}, not {expected!r}",
                "let every machine have the same model and the same versions",
            )
    # Arrow imports pandas (seconds) with the first list that it is given, where there is one: not behind a paid answer.
    await asyncio.to_thread(pa.array, [])
    return CollectWorker(number, ask, settings, teacher)
