"""Completions reach the disk in groups, whatever stops the collection."""

import asyncio
import threading
from typing import Any

import pytest

from bitnet_providers.raw.group_commit import WAITING_AT_MOST, GroupCommit


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
    return GroupCommit(disk, disk, on_kept)  # type: ignore[arg-type]


def test_what_comes_while_the_disk_is_busy_goes_together() -> None:
    disk, kept = Disk(busy=True), []

    async def main() -> None:
        keeper = commit(disk, lambda completions, tokens: kept.append((completions, tokens)))
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper.run())
            await keeper.put({"n": 0}, 2)
            await asyncio.to_thread(disk.begun.wait)
            for n in range(1, 100):
                await keeper.put({"n": n}, 2)
            disk.free.set()
            keeper.end()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == list(range(100))
    assert len(disk.groups) == 2
    assert sum(completions for completions, _ in kept) == 100
    assert sum(tokens for _, tokens in kept) == 200


def test_cancelled_in_the_middle_of_a_write_nothing_is_lost_or_written_twice() -> None:
    disk = Disk(busy=True)

    async def main() -> None:
        keeper = commit(disk)
        run = asyncio.create_task(keeper.run())
        await keeper.put({"n": 0}, 1)
        await asyncio.to_thread(disk.begun.wait)
        await keeper.put({"n": 1}, 1)
        run.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        disk.free.set()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == [0, 1]
    assert disk.synced >= 1


def test_a_slow_disk_makes_them_wait_and_who_waits_has_handed_over() -> None:
    disk = Disk()

    async def main() -> None:
        keeper = commit(disk)
        for n in range(WAITING_AT_MOST):
            await keeper.put({"n": n}, 1)
        waiting = asyncio.create_task(keeper.put({"n": WAITING_AT_MOST}, 1))
        await asyncio.sleep(0)
        assert not waiting.done()
        waiting.cancel()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == list(range(WAITING_AT_MOST + 1))


def test_a_full_disk_is_told_by_run_and_not_by_close() -> None:
    async def main() -> None:
        keeper = commit(Disk(fail=True))
        await keeper.put({"n": 0}, 1)
        with pytest.raises(OSError, match="No space left"):
            await keeper.run()
        keeper.close()

    asyncio.run(main())
