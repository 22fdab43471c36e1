"""Requests that wait together run together."""

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import pytest
import torch

from bitnet_providers.contract import ProviderError
from bitnet_providers.teachers.local.batching import BatchAbandonedError, Batcher


class Recorder:
    """Runs a batch by doubling its numbers, and remembers the batches."""

    def __init__(self) -> None:
        self.batches: list[tuple[Hashable, list[int]]] = []
        self.threads: set[str] = set()

    def __call__(self, group: Hashable, items: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        self.batches.append((group, list(items)))
        self.threads.add(threading.current_thread().name)
        return [2 * item for item in items]


def submit_all(batcher: Batcher, requests: Sequence[tuple[Hashable, int]]) -> list[Any]:
    async def main() -> list[Any]:
        try:
            return await asyncio.gather(*(batcher.submit(group, item, item) for group, item in requests))
        finally:
            await batcher.aclose()

    return asyncio.run(main())


def test_a_batch_holds_neighbours_in_length() -> None:
    run = Recorder()
    numbers = [50, 3, 41, 1, 2, 40]
    assert submit_all(Batcher(run, 3, "cpu"), [("g", number) for number in numbers]) == [
        2 * number for number in numbers
    ]
    assert run.batches == [("g", [40, 41, 50]), ("g", [1, 2, 3])]
    assert len(run.threads) == 1
    assert "MainThread" not in run.threads


def test_groups_do_not_mix() -> None:
    run = Recorder()
    submit_all(Batcher(run, 8, "cpu"), [("a", 1), ("b", 2), ("a", 3), ("b", 4)])
    assert run.batches == [("a", [1, 3]), ("b", [2, 4])]


def test_a_failed_batch_fails_its_own_requests_only() -> None:
    def run(group: Hashable, items: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        if group == "bad":
            raise RuntimeError("no")
        return list(items)

    async def main() -> list[Any]:
        batcher = Batcher(run, 4, "cpu")
        answers = await asyncio.gather(
            batcher.submit("bad", 1, 1), batcher.submit("good", 1, 7), return_exceptions=True
        )
        await batcher.aclose()
        return answers

    bad, good = asyncio.run(main())
    assert isinstance(bad, RuntimeError)
    assert good == 7


def test_a_batch_that_nobody_waits_for_is_told_to_stop() -> None:
    """Ctrl-C in the event loop reaches the worker thread, and the batcher works on in a new loop."""
    started, stopped = threading.Event(), threading.Event()

    def run(group: Hashable, items: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        if group == "quick":
            return list(items)
        started.set()
        for _ in range(2000):
            if abandoned():
                stopped.set()
                raise BatchAbandonedError
            threading.Event().wait(0.005)
        return list(items)

    batcher = Batcher(run, 4, "cpu")

    async def cancelled() -> None:
        task = asyncio.create_task(batcher.submit("slow", 1, 1))
        await asyncio.to_thread(started.wait, 10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    asyncio.run(cancelled())
    assert stopped.wait(10)

    async def again() -> Any:
        try:
            return await batcher.submit("quick", 1, 5)
        finally:
            await batcher.aclose()

    assert asyncio.run(again()) == 5


def test_closing_stops_what_runs_and_leaves_nobody_waiting() -> None:
    started = threading.Event()

    def run(group: Hashable, items: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        started.set()
        while not abandoned():
            threading.Event().wait(0.005)
        raise BatchAbandonedError

    async def main() -> None:
        batcher = Batcher(run, 1, "cpu")
        tasks = [asyncio.create_task(batcher.submit("g", 1, number)) for number in range(3)]
        await asyncio.to_thread(started.wait, 10)
        await batcher.aclose()
        for task in tasks:
            with pytest.raises(asyncio.CancelledError):
                await asyncio.wait_for(task, 10)

    asyncio.run(main())


def test_a_full_memory_is_told_with_the_size_of_the_batch() -> None:
    def run(group: Hashable, items: Sequence[int], abandoned: Callable[[], bool]) -> list[int]:
        raise torch.OutOfMemoryError

    with pytest.raises(ProviderError) as caught:
        submit_all(Batcher(run, 4, "cuda:1"), [("g", 1), ("g", 2)])
    assert str(caught.value) == ("out of memory on cuda:1 with 2 requests together  → lower teacher.batch_size (now 4)")
