"""Completions reach the disk in groups, whatever stops the collection."""

import asyncio
import threading
from typing import Any

import pytest

from bitnet_providers.raw.journal import GroupCommit


class Disk:
    """Stands for journal and ledger; a `busy` one writes when it is `free`, and it fails when told to."""

    def __init__(self, busy: bool = False, fail: bool = False) -> None:
        self.fail = fail
        self.begun, self.free = threading.Event(), threading.Event()
        if not busy:
            self.free.set()
        self.groups: list[list[Any]] = []
        self.synced = 0

    def append(self, rows: list[Any]) -> None:
        self.begun.set()
        assert self.free.wait(100)
        if self.fail:
            raise OSError(28, "No space left on device")
        if rows:
            self.groups.append(rows)

    def sync(self) -> None:
        self.synced += 1

    @property
    def rows(self) -> list[int]:
        return [row["n"] for group in self.groups for row in group]


def commit(disk: Disk, on_kept: Any = lambda completions, tokens: None) -> GroupCommit:
    return GroupCommit(disk, disk.sync, on_kept)  # type: ignore[arg-type]


def test_what_comes_while_the_disk_is_busy_goes_together() -> None:
    disk, kept = Disk(busy=True), []

    async def main() -> None:
        keeper = commit(disk, lambda completions, tokens: kept.append((completions, tokens)))
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper.run())
            async with asyncio.TaskGroup() as requests:
                requests.create_task(keeper.put({"n": 0}, 2))
                await asyncio.to_thread(disk.begun.wait)
                for n in range(1, 100):
                    requests.create_task(keeper.put({"n": n}, 2))
                await asyncio.sleep(0)  # each has handed over
                disk.free.set()
            keeper.end()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == list(range(100))
    assert len(disk.groups) == 2
    assert sum(completions for completions, _ in kept) == 100
    assert sum(tokens for _, tokens in kept) == 200


def test_who_hands_over_waits_until_the_disk_has_it() -> None:
    """So a kill takes no more than there are requests under way."""
    disk = Disk()

    async def main() -> None:
        keeper = commit(disk)
        waiting = [asyncio.create_task(keeper.put({"n": n}, 1)) for n in range(8)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert disk.rows == []
        keeper.end()
        await keeper.run()
        assert disk.rows == list(range(8))
        await asyncio.gather(*waiting)
        keeper.close()

    asyncio.run(main())


def test_cancelled_in_the_middle_of_a_write_nothing_is_lost_or_written_twice() -> None:
    disk = Disk(busy=True)

    async def main() -> None:
        keeper = commit(disk)
        run = asyncio.create_task(keeper.run())
        waiting = [asyncio.create_task(keeper.put({"n": 0}, 1))]
        await asyncio.to_thread(disk.begun.wait)
        waiting.append(asyncio.create_task(keeper.put({"n": 1}, 1)))
        await asyncio.sleep(0)
        for task in (run, *waiting):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        disk.free.set()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == [0, 1]
    assert disk.synced >= 1


def test_a_full_disk_is_told_by_run_and_not_by_close() -> None:
    async def main() -> None:
        keeper = commit(Disk(fail=True))
        waiting = asyncio.create_task(keeper.put({"n": 0}, 1))
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="No space left"):
            await keeper.run()
        keeper.close()
        waiting.cancel()

    asyncio.run(main())
