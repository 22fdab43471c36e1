"""Collection by several workers: requests are dealt out in leases; budget, ledger and limits are those of the run.

A worker on another machine: with a store that many machines reach it keeps its journal in a folder of its own machine
and pushes it, now and then, to the run's incoming files; who holds the run takes them. Without such a store the run
folder must be on a disk that all machines see, and workers write there.
"""

import asyncio
import hashlib
import math
import os
import secrets
import shutil
import tempfile
from collections import deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import numpy as np
from filelock import FileLock, Timeout

from bitnet_cli.contract import ClusterConfig, Crew, Done, ElsewhereConfig, Failed, Launcher, Lost, Team
from bitnet_cli.errors import UserError
from bitnet_cli.stages.probe import left_out
from bitnet_providers.collect.ask_and_retry import Tally
from bitnet_providers.collect.progress import Progress
from bitnet_providers.collect.shared_budget_and_limits import Ask, Kept, SharedBooks
from bitnet_providers.collect.stop import Stop
from bitnet_providers.collect.worker import CollectWorker, Lease, LeaseEnd, WorkerSettings, open_worker
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Capabilities, ProviderError, Teacher, template_of
from bitnet_providers.raw import journal
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.spending.budget import Spent
from bitnet_storage.contract import SharedStore, Store
from bitnet_storage.sync.incoming import forget_incoming, put_incoming, take_incoming

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_cli.stages.stage import Context
    from bitnet_providers.collect.collect import Prepared


LEASES_IN_HAND = 2
"""Of each worker: it goes on with one while the last requests of the other end."""
PROGRESS_S = 0.5
_LOCK = "lock"
_HELD: list[FileLock] = []
"""Of this process's folder: the operating system lets it go when the process dies, however it dies."""


@attrs.frozen
class TeacherFacts:
    """What is known of a teacher that is open elsewhere: stands for it where nothing is asked."""

    capabilities: Capabilities
    description: Mapping[str, Any]
    chat_template: str | None
    left_out: tuple[str, ...]
    """Base URLs of servers that the probe could not reach: nobody knows what they would answer."""


def facts_of(teacher: Teacher) -> TeacherFacts:
    return TeacherFacts(teacher.capabilities, dict(teacher.description), template_of(teacher), tuple(left_out(teacher)))


def open_probed(open_: Callable[[Any], Teacher], options: Any, left_out: Sequence[str]) -> Teacher:
    """The teacher, without the servers that the probe has left out."""
    teacher = open_(options)
    if left_out:
        teacher.leave_out(left_out)  # type: ignore[attr-defined]  # only one with several servers has any
    return teacher


def launcher_of(manifest: "Manifest", plugins: "Plugins") -> tuple[Launcher, ClusterConfig] | None:
    """Who starts this collection's workers; None: it needs none. Raises UserError."""
    if manifest.cluster is not None:
        options: ClusterConfig = manifest.cluster.options
        launcher: Launcher = plugins.require_launcher(manifest.cluster.kind).open(options)
        return launcher, options
    devices = 1 if manifest.teacher is None else getattr(manifest.teacher.options, "devices", 1)
    if devices == 1:
        return None
    from bitnet_cli.launching.local import LocalLauncher
    from bitnet_providers.teachers.local.device_and_dtype import pick_device

    assert manifest.teacher is not None
    on_gpus = pick_device(manifest.teacher.options.device).type == "cuda"
    cores = (os.cpu_count() or 1) / devices
    config = ClusterConfig(workers=devices, cpus_per_worker=max(1.0, cores), gpus_per_worker=float(on_gpus))
    return LocalLauncher(config), config


@attrs.frozen(kw_only=True)
class Elsewhere:
    """What a worker on another machine is told; goes to it pickled."""

    run: str
    open_store: Callable[[], Store] | None
    """None: the run folder itself is where all workers' answers come together."""
    push_every: float
    scratch: Path | None
    store: str
    """What tells the store from others: its settings."""
    marker: str
    """A file in the raw folder, by which a worker knows that it sees this very folder."""

    async def open(self, settings: WorkerSettings, number: int, ask: Ask) -> CollectWorker:
        """As `bitnet_providers.collect.worker.open_worker`; what a process of this machine left behind is pushed."""
        if self.open_store is None:
            if not (settings.journal_folder / self.marker).exists():
                raise UserError(
                    f"worker {number} does not see {settings.journal_folder}: it is on another machine",
                    "use a store that all machines reach (docs/stores.md), or put store.root on a disk that all share",
                )
            return await open_worker(settings, number, ask)
        store = await asyncio.to_thread(self.open_store)
        assert isinstance(store, SharedStore)
        # A run of the same name in another store has other answers.
        of_run = f"{self.run}-{hashlib.sha256(self.store.encode()).hexdigest()[:12]}"
        folder = own_folder((self.scratch or Path(tempfile.gettempdir())) / workers_folder() / of_run)
        worker = await open_worker(
            attrs.evolve(
                settings,
                journal_folder=folder,
                deliver=partial(put_incoming, store.objects, self.run),
                deliver_every_s=self.push_every,
            ),
            number,
            ask,
        )
        await worker.deliver()
        return worker


def workers_folder() -> str:
    """This user's, in a folder that all users may share."""
    return f"bitnet-workers-{os.getuid()}" if hasattr(os, "getuid") else "bitnet-workers"


def own_folder(of_run: Path) -> Path:
    """A new folder of this process, with what dead processes of the run have left unpushed on this machine."""
    of_run.mkdir(parents=True, exist_ok=True)
    with FileLock(
        of_run.with_name(f"{of_run.name}.lock")
    ):  # one process at a time makes a folder and looks into the others'
        folder = of_run / secrets.token_hex(8)
        folder.mkdir()
        lock = FileLock(folder / _LOCK)
        lock.acquire()
        _HELD.append(lock)
        for other in filter(Path.is_dir, of_run.iterdir()):
            if other == folder:
                continue
            theirs = FileLock(other / _LOCK)
            try:
                theirs.acquire(timeout=0)
            except (Timeout, OSError):  # at work
                continue
            for file in other.glob(journal.FILES):
                file.replace(folder / file.name)
            theirs.release()
            shutil.rmtree(other, ignore_errors=True)
    return folder


def marked(raw_folder: Path) -> str:
    """Write a marker and return its name."""
    raw_folder.mkdir(parents=True, exist_ok=True)
    name = f".seen-by-workers-{secrets.token_hex(8)}"
    (raw_folder / name).touch()
    return name


def take_answers(store: Store, run: str, raw_folder: Path) -> None:
    """What workers have pushed comes into the raw folder; what a snapshot of the run has by now is taken no more."""
    if not isinstance(store, SharedStore):
        return
    taken = take_incoming(store.objects, run, raw_folder)
    snapshot = store.snapshot(run)
    if snapshot is not None and not taken:
        durable = {
            path.removeprefix("raw/")
            for path, file in snapshot.files.items()
            if path.startswith("raw/") and _size(raw_folder / path.removeprefix("raw/")) == file.size
        }
        forget_incoming(store.objects, run, frozenset(durable))


def _size(path: Path) -> int | None:
    return path.stat().st_size if path.exists() else None


@attrs.frozen
class Probed:
    """A collection that is about to begin on workers."""

    teacher: TeacherFacts
    before: "Prepared"
    probe: Mapping[str, Any] | None


async def gather_on_workers(
    context: "Context",
    config: CollectConfig,
    launched: tuple[Launcher, ClusterConfig],
    ready: Probed,
    gather: Callable[..., Awaitable[dict[str, Any]]],
) -> dict[str, Any]:
    """`gather` (of `bitnet_providers.collect.collect`), with workers that ask."""
    plugin, tagged = context.teacher.plugin, context.manifest.teacher
    assert plugin is not None
    assert tagged is not None
    launcher, options = launched
    raw, run, store = context.folder / "raw", context.manifest.run.name, context.store
    elsewhere = None
    if isinstance(options, ElsewhereConfig):
        plugin_of_store = context.plugins.require_store(context.manifest.store.kind)
        elsewhere = Elsewhere(
            run=run,
            open_store=partial(plugin_of_store.open, context.manifest.store.options)
            if isinstance(store, SharedStore)
            else None,
            push_every=options.push_every,
            scratch=options.scratch,
            store=repr(context.manifest.store.options),
            marker=marked(raw),
        )
    workers = OnWorkers(
        launcher=launcher,
        options=options,
        open_teacher=partial(open_probed, plugin.open, tagged.options, ready.teacher.left_out),
        teacher=ready.teacher,
        config=config,
        raw_folder=raw,
        logs=context.folder / "logs",
        notify=context.notify,
        elsewhere=elsewhere,
        take_answers=partial(take_answers, store, run, raw),
    )
    try:
        return await gather(ready.teacher, before=ready.before, probe=ready.probe, asking=workers.ask)
    finally:
        if elsewhere is not None:
            (raw / elsewhere.marker).unlink(missing_ok=True)


class Dealer:
    """Deals out what is missing: the leases get smaller towards the end, so that no worker is left behind with many."""

    def __init__(self, before: "Prepared", workers: int, lease: int) -> None:
        self._missing, self._most = before.missing, lease
        self._share = workers * LEASES_IN_HAND
        self._waiting = deque(range(len(before.missing)))
        self._done: dict[int, list[int]] = {}
        """Worker → the places that it has been through."""
        self._stopped = False

    def next(self) -> Lease | None:
        if self._stopped or not self._waiting:
            return None
        size = max(1, min(self._most, math.ceil(len(self._waiting) / (2 * self._share))))
        places = tuple(self._waiting.popleft() for _ in range(min(size, len(self._waiting))))
        return Lease(places, tuple(self._missing[place] for place in places))

    def stop(self) -> None:
        self._stopped = True

    def drop(self, rows: journal.Rows) -> None:
        """What turns out to be there need not be asked."""
        found = rows.find(self._missing.ids) >= 0
        self._waiting = deque(place for place in self._waiting if not found[place])

    def done(self, worker: int, lease: Lease) -> None:
        self._done.setdefault(worker, []).extend(lease.places)

    def lost(self, worker: int, leases: tuple[Lease, ...], rows: journal.Rows, tally: Tally) -> int:
        """Put back what a lost worker was to answer and no journal has; how many."""
        places = self._done.pop(worker, []) + [place for lease in leases for place in lease.places]
        found = self._missing.take(np.array(places, np.int64))
        again = (rows.find(found.ids) < 0) & ~found.with_keys(tally.refused) & ~found.with_keys(tally.unanswered)
        back = [place for place, is_missing in zip(places, again, strict=True) if is_missing]
        self._waiting.extendleft(reversed(back))
        return len(back)


@attrs.frozen(kw_only=True)
class OnWorkers:
    """How the workers of a collection are started, and where what they keep comes together."""

    launcher: Launcher
    options: ClusterConfig
    open_teacher: Callable[[], Teacher]
    teacher: TeacherFacts
    config: CollectConfig
    raw_folder: Path
    logs: Path
    notify: Callable[[str], None]
    elsewhere: Elsewhere | None = None
    """How workers on other machines bring what they keep; None: they write into the raw folder."""
    take_answers: Callable[[], None] = lambda: None
    """Brings into the raw folder what workers have pushed."""

    async def ask(self, before: "Prepared", tally: Tally, stop: Stop, progress: Progress) -> Spent:
        """As `bitnet_providers.collect.collect` wants it."""
        there = frozenset(self.raw_folder.glob(journal.FILES))
        dealer = Dealer(before, self.launcher.workers, self.options.lease)
        settings = WorkerSettings(
            open_teacher=self.open_teacher,
            expected=dict(self.teacher.description),
            config=self.config,
            journal_folder=self.raw_folder,
        )
        crew = Crew(
            open_worker=partial(open_worker if self.elsewhere is None else self.elsewhere.open, settings),
            open_shared=partial(SharedBooks, self.raw_folder, self.config, before.price, before.ledger.spent),
            logs=self.logs,
            at_once=LEASES_IN_HAND,
        )
        tallies: dict[int, Tally] = {}
        lost = False
        async with self.launcher.launch(crew) as team:
            dealer.drop(await asyncio.to_thread(self._rows, there))  # a dead process had left it on its machine
            progress.begins_now()
            watching = asyncio.create_task(_watch(team, progress))
            try:
                async for event in team.run(dealer.next):
                    match event:
                        case Done(worker, lease, LeaseEnd() as end):
                            dealer.done(worker, lease)
                            tallies[worker] = end.tally
                            tally.become_sum(tallies.values())
                            if end.error is not None and not stop:
                                stop.now(end.error, failed=end.failed)
                                dealer.stop()
                                await team.ask("stop", end.error.why, end.error.fix)
                        case Failed(_, _, why, fix):
                            raise ProviderError(f"[collect] {why}", fix)
                        case Lost(worker, leases, why):
                            lost = True
                            await team.ask("lose", worker)
                            rows = await asyncio.to_thread(self._rows, there)
                            count = dealer.lost(worker, leases, rows, tally)
                            self.notify(why + (f"; {count:,} of its requests go to others" if count else ""))
            finally:
                watching.cancel()
            spent: Spent = await team.ask("close")
        await asyncio.to_thread(self.take_answers)
        return await asyncio.to_thread(self._spent, before) if lost else spent

    def _rows(self, but_not: frozenset[Path]) -> journal.Rows:
        """What has been kept since the workers were started, as far as it can be reached."""
        self.take_answers()
        return journal.read_journal(self.raw_folder, but_not).rows

    def _spent(self, before: "Prepared") -> Spent:
        """By what is on the disk: a lost worker has kept answers that the books heard nothing of any more."""
        return read_ledger(self.raw_folder, journal.read_journal(self.raw_folder), before.price).spent


async def _watch(team: Team, progress: Progress) -> None:
    """Tell how far the workers are."""
    before = Kept(0, 0, 0, Spent())
    while True:
        await asyncio.sleep(PROGRESS_S)
        kept: Kept = await team.ask("progress")
        if kept.completions > before.completions:
            more, tokens = kept.completions - before.completions, kept.tokens - before.tokens
            progress.kept(more, tokens, kept.at_once, kept.spent.dollars)
            before = kept
