"""Requests that wait together run together: one worker thread computes, the event loop stays free."""

import asyncio
import threading
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import attrs
import torch

from bitnet_providers.contract import ProviderError

GATHER_S = 0.005
"""How long a free worker waits for one more request. A batch takes seconds, so this costs nothing."""


class BatchAbandonedError(Exception):
    """Nobody waits for this batch any more; what computes it stops at its next step."""


@attrs.frozen(eq=False)
class Waiting:
    """A request in the queue."""

    group: Hashable
    """Only requests of one group can run together."""
    length: int
    """Tokens; neighbours in length run together, so that little is padding."""
    item: Any
    answer: "asyncio.Future[Any]"


RunBatch = Callable[[Hashable, Sequence[Any], Callable[[], bool]], Sequence[Any]]
"""(group, items, abandoned) -> one result an item; runs in the worker thread and asks ``abandoned()`` now and then."""


class Batcher:
    """Collects requests and runs them in batches of at most `batch_size` on a device, which the errors name."""

    def __init__(self, run_batch: RunBatch, batch_size: int, device: str) -> None:
        self._run_batch = run_batch
        self._batch_size = batch_size
        self._device = device
        self._waiting: list[Waiting] = []
        self._pump: asyncio.Task[None] | None = None
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="local-teacher")
        self._closed = threading.Event()

    async def submit(self, group: Hashable, length: int, item: Any) -> Any:
        """The item's result, once its batch has run. Raises what the batch raised, ProviderError for a full memory."""
        loop = asyncio.get_running_loop()
        waiting = Waiting(group, length, item, loop.create_future())
        self._waiting.append(waiting)
        if self._pump is None or self._pump.done():
            self._pump = loop.create_task(self._run())
        return await waiting.answer

    async def aclose(self) -> None:
        """Stop at the next step of what is running, and wait for that."""
        self._closed.set()
        if self._pump is not None and not self._pump.done():
            self._pump.cancel()
        await asyncio.to_thread(self._worker.shutdown, cancel_futures=True)

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        batch: list[Waiting] = []

        def abandoned() -> bool:
            return self._closed.is_set() or all(each.answer.cancelled() for each in batch)

        try:
            while await self._gather():
                batch = self._take()
                items = [each.item for each in batch]
                try:
                    results = await loop.run_in_executor(
                        self._worker, self._within_memory, batch[0].group, items, abandoned
                    )
                except BatchAbandonedError:
                    results = []
                except Exception as error:
                    for each in batch:
                        if not each.answer.done():
                            each.answer.set_exception(error)
                    continue
                for each, result in zip(batch, results, strict=False):
                    if not each.answer.done():
                        each.answer.set_result(result)
        finally:  # on cancellation nobody is left waiting for ever
            for each in [*batch, *self._waiting]:
                each.answer.cancel()
            self._waiting.clear()

    def _within_memory(self, group: Hashable, items: Sequence[Any], abandoned: Callable[[], bool]) -> Sequence[Any]:
        try:
            return self._run_batch(group, items, abandoned)
        except torch.OutOfMemoryError as error:
            raise ProviderError(
                f"out of memory on {self._device} with {len(items)} requests together",
                f"lower teacher.batch_size (now {self._batch_size})",
            ) from error

    async def _gather(self) -> bool:
        """Wait while requests keep coming, up to a full batch. False: nobody waits."""
        seen = -1
        while seen < len(self._waiting) < self._batch_size:
            seen = len(self._waiting)
            await asyncio.sleep(GATHER_S)
        self._waiting = [each for each in self._waiting if not each.answer.cancelled()]
        return bool(self._waiting)

    def _take(self) -> list[Waiting]:
        """The oldest request and those of its group that are nearest in length."""
        oldest = self._waiting[0]
        group = sorted((each for each in self._waiting if each.group == oldest.group), key=lambda each: each.length)
        start = max(0, min(group.index(oldest) - self._batch_size // 2, len(group) - self._batch_size))
        batch = group[start : start + self._batch_size]
        taken = set(map(id, batch))
        self._waiting = [each for each in self._waiting if id(each) not in taken]
        return batch
