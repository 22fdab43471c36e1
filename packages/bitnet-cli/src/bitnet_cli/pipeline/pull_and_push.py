"""Between a run and its store's durable place: pulled before the first stage, pushed when something is finished.

Stages know nothing of it. With a store whose working folder is the durable place (``local``) nothing happens here.
"""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from bitnet_cli.pipeline.stop_signals import ignore_more
from bitnet_cli.reporter.progress import Reporter
from bitnet_storage.contract import DurableStore, StorageError, Store


@attrs.define
class Durable:
    """The durable place of one run, leased for as long as the run is at work."""

    run: str
    folder: Path
    reporter: Reporter
    store: DurableStore | None
    """None: the working folder is the durable place."""
    pushed_at: float = attrs.Factory(time.monotonic)

    def push_stage(self, stage: str) -> None:
        """A stage is done: make it durable before the next begins. Raises StorageError."""
        if self.store is None:
            return
        try:
            moved = self.store.push(self.run)
        except StorageError as error:
            raise StorageError(
                f"{stage} is done in {self.folder}, but not durable yet: {error.why}", error.fix
            ) from error
        self.pushed_at = time.monotonic()
        self.reporter.stage_line(
            stage, f"durable: {_amount(moved.files, moved.size)} to {self.store.location}", "green"
        )

    def push_meanwhile(self, stage: str) -> None:
        """A stage is at work: now and then, what it can go on from. A push that fails stops no stage."""
        if self.store is None or time.monotonic() - self.pushed_at < self.store.push_every:
            return
        try:
            moved = self.store.push(self.run)
            if moved.changed:
                self.reporter.stage_line(stage, f"durable so far: {_amount(moved.files, moved.size)} pushed", "dim")
        except StorageError as error:
            self.reporter.stage_line(stage, f"not durable yet, the stage goes on: {error}", "yellow")
        self.pushed_at = time.monotonic()

    def push_end(self) -> None:
        """The log and what else was written after the last stage. Raises StorageError."""
        if self.store is not None:
            self.store.push(self.run)

    def push_what_there_is(self) -> None:
        """The run stops with an error, which is what counts: this one may fail."""
        if self.store is None:
            return
        try:
            if self.store.push(self.run).changed:
                self.reporter.run_line(f"what there is so far is durable in {self.store.location}", "dim")
        except StorageError as error:
            self.reporter.run_line(f"what there is so far is only in {self.folder}: {error}", "yellow")


@contextmanager
def durable(store: Store, run: str, folder: Path, reporter: Reporter) -> Iterator[Durable]:
    """Lease the run, bring the working folder up to what is durable, and push what there is if the run fails.

    Raises StorageError where another machine is at work on the run, or has moved on while this folder has work of its
    own.
    """
    if not isinstance(store, DurableStore):
        yield Durable(run, folder, reporter, None)
        return
    with store.lease(run, notify=lambda text: reporter.run_line(text, "yellow")):
        moved = store.pull(run, notify=lambda text: reporter.run_line(text, "yellow"))
        if moved.changed:
            reporter.run_line(f"pulled {_amount(moved.files, moved.size)} from {store.location}", "cyan")
        place = Durable(run, folder, reporter, store)
        try:
            yield place
        except StorageError:
            raise
        except BaseException:
            ignore_more()
            place.push_what_there_is()
            raise


def _amount(files: int, size: int) -> str:
    """``1 file, 3.2 MB``"""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if size >= scale:
            return f"{files} {'file' if files == 1 else 'files'}, {size / scale:.1f} {unit}"
    return f"{files} {'file' if files == 1 else 'files'}, {size} bytes"
