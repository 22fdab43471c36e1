"""Completions on their way to the disk: many of them, one fsync, in a thread, so that requests go on meanwhile.

Who hands one over waits until the disk has it, and asks nothing new before. So a kill takes no more completions than
there are requests under way (`collect.concurrency`), and a slow disk slows the questions down.
"""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import attrs
import pyarrow as pa

from bitnet_providers.raw.journal import JournalWriter

Result = TypeVar("Result")


@attrs.frozen(eq=False)
class _Waiting:
    """A completion that somebody has handed over."""

    row: pa.RecordBatch
    tokens: int
    kept: "asyncio.Future[None]"


class GroupCommit:
    """Takes rows from the requests and keeps them; one event loop's."""

    def __init__(self, journal: JournalWriter, sync: Callable[[], None], on_kept: Callable[[int, int], None]) -> None:
        """`sync` waits until the disk has the ledger's lines; it runs in a thread.

        `on_kept` hears of each group: completions, response tokens. Only then do they count.
        """
        self._journal, self._sync, self._on_kept = journal, sync, on_kept
        self._arrived: asyncio.Queue[_Waiting | None] = asyncio.Queue()
        self._thread = ThreadPoolExecutor(1, "journal")
        self._group: list[_Waiting] = []
        self._saving: Future[None] | None = None

    async def put(self, row: pa.RecordBatch, tokens: int) -> None:
        """Hand over a finished completion: from the call on it will be kept. Then wait until the disk has it."""
        kept = asyncio.get_running_loop().create_future()
        self._arrived.put_nowait(_Waiting(row, tokens, kept))
        await kept

    async def between_groups(self, work: Callable[[], Result]) -> Result:
        """Do something with the journal's files, in the thread, while nothing is written."""
        return await asyncio.wrap_future(self._thread.submit(work))

    def end(self) -> None:
        """Nothing more will come."""
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Keep what comes until `end`. Raises OSError for a disk that takes no more."""
        more = True
        while more:
            first = await self._arrived.get()
            arrived = [first, *self._rest()]
            more = None not in arrived
            self._group = [each for each in arrived if each is not None]
            self._saving = self._thread.submit(self._save, self._group)
            await asyncio.shield(asyncio.wrap_future(self._saving))
            kept, self._group, self._saving = self._group, [], None
            if kept:
                self._on_kept(len(kept), sum(each.tokens for each in kept))
            for each in kept:
                if not each.kept.done():  # who waited may have been cancelled
                    each.kept.set_result(None)

    def close(self) -> None:
        """After a stop or a failure too: keep what has arrived, and let the thread go.

        Raises nothing: who is told of a failing disk is told by `run`.
        """
        with contextlib.suppress(OSError):
            if self._saving is not None:
                self._saving.result()
                self._group = []
        self._group += [each for each in self._rest() if each is not None]
        with contextlib.suppress(OSError):
            self._thread.submit(self._save, self._group).result()
        self._thread.shutdown()

    def _rest(self) -> list[_Waiting | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    def _save(self, group: Sequence[_Waiting]) -> None:
        self._journal.append([each.row for each in group])
        self._sync()
