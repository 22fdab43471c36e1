"""Workers on other machines: where what they keep waits, and how it comes to the run.

With a store that many machines reach, a worker keeps its journal in a folder of its own machine and pushes it, now and
then, to the run's incoming files; who holds the run takes them. Without one, the run folder must be on a disk that all
machines see, and workers write there.
"""

import asyncio
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import attrs
from filelock import FileLock, Timeout

from bitnet_cli.errors import UserError
from bitnet_providers.collect.shared_budget_and_limits import Ask
from bitnet_providers.collect.worker import CollectWorker, WorkerSettings, open_worker
from bitnet_providers.raw.journal import FILES
from bitnet_storage.contract import SharedStore, Store
from bitnet_storage.sync.incoming import forget_incoming, put_incoming, take_incoming

_LOCK = "lock"
_HELD: list[FileLock] = []
"""Of this process's folder: the operating system lets it go when the process dies, however it dies."""


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
            for file in other.glob(FILES):
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
