"""Completions on their way to the disk: many of them, one fsync, in a thread, so that requests go on meanwhile."""

import asyncio
import contextlib
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

from bitnet_providers.raw.journal import JournalWriter
from bitnet_providers.raw.ledger import LedgerWriter

WAITING_AT_MOST = 256
"""Completions between the network and the disk; a slow disk slows the questions down, it does not fill the memory."""

Row = tuple[Mapping[str, Any], int]
"""(columns of the raw shard, response tokens)"""


class GroupCommit:
    """Takes rows from the requests and keeps them; one event loop's."""

    def __init__(self, journal: JournalWriter, ledger: LedgerWriter, on_kept: Callable[[int, int], None]) -> None:
        """`on_kept` hears of each group: completions, response tokens. Only then do they count."""
        self._journal, self._ledger, self._on_kept = journal, ledger, on_kept
        self._arrived: asyncio.Queue[Row | None] = asyncio.Queue()
        self._room = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "journal")
        self._group: list[Row] = []
        self._saving: Future[None] | None = None

    async def put(self, row: Mapping[str, Any], tokens: int) -> None:
        """Hand over a finished completion: from the call on it will be kept. Then wait until there is room for more."""
        self._arrived.put_nowait((row, tokens))
        while self._arrived.qsize() > WAITING_AT_MOST:
            self._room.clear()
            await self._room.wait()

    def end(self) -> None:
        """Nothing more will come."""
        self._arrived.put_nowait(None)

    async def run(self) -> None:
        """Keep what comes until `end`. Raises OSError for a disk that takes no more."""
        more = True
        while more:
            first = await self._arrived.get()
            arrived = [first, *self._rest()]
            self._room.set()
            more = None not in arrived
            self._group = [row for row in arrived if row is not None]
            self._saving = self._thread.submit(self._save, self._group)
            await asyncio.shield(asyncio.wrap_future(self._saving))
            kept, self._group, self._saving = self._group, [], None
            if kept:
                self._on_kept(len(kept), sum(tokens for _, tokens in kept))

    def close(self) -> None:
        """After a stop or a failure too: keep what has arrived, and let the thread go.

        Raises nothing: who is told of a failing disk is told by `run`.
        """
        with contextlib.suppress(OSError):
            if self._saving is not None:
                self._saving.result()
                self._group = []
        self._group += [row for row in self._rest() if row is not None]
        with contextlib.suppress(OSError):
            self._thread.submit(self._save, self._group).result()
        self._thread.shutdown()

    def _rest(self) -> list[Row | None]:
        return [self._arrived.get_nowait() for _ in range(self._arrived.qsize())]

    def _save(self, group: Sequence[Row]) -> None:
        self._journal.append([row for row, _ in group])
        self._ledger.sync()
