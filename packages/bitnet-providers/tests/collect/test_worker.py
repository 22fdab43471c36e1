"""A worker's part of a collection: what it hands over, and what it says where something fails."""

import asyncio
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from bitnet_providers.collect.collect import prepare
from bitnet_providers.collect.shared_budget_and_limits import SharedBooks
from bitnet_providers.collect.worker import CollectWorker, Lease, WorkerSettings, open_worker
from bitnet_providers.config import CollectConfig
from bitnet_providers.spending.budget import Spent

Teachers = Callable[..., Any]
SECOND_COMES_S = 0.3
"""How long a delivery waits for another one that must not begin; a slow machine can only let a fault through."""


def config_in(folder: Path) -> CollectConfig:
    (folder / "prompts.txt").write_text("one\ntwo\nthree")
    return CollectConfig(prompts=folder / "prompts.txt", top_k=2, max_new_tokens=8, concurrency=3)


async def opened(folder: Path, teacher: Any, ask: Any, **settings: Any) -> CollectWorker:
    journals = folder / "journals"
    journals.mkdir()
    plain = {"open_teacher": lambda: teacher, "expected": dict(teacher.description), "config": config_in(folder)}
    return await open_worker(WorkerSettings(**plain, journal_folder=journals, **settings), 0, ask)


def test_a_file_is_delivered_once_though_a_delivery_is_cancelled_in_the_middle(
    tmp_path: Path, counting_teacher: Teachers
) -> None:
    """Its thread goes on when nobody waits for it any more, and the end of the worker delivers what is there."""
    delivered: list[Path] = []
    begun, second = threading.Event(), threading.Event()

    def deliver(file: Path) -> None:
        delivered.append(file)
        if begun.is_set():
            second.set()
        begun.set()
        second.wait(SECOND_COMES_S)

    async def main() -> None:
        worker = await opened(tmp_path, counting_teacher(), None, deliver=deliver, deliver_every_s=3600.0)
        file = tmp_path / "journals/journal-000-aa.bin"
        file.write_bytes(b"answers")
        first = asyncio.create_task(worker.deliver())
        await asyncio.to_thread(begun.wait)
        first.cancel()
        await worker.aclose()
        assert delivered == [file]
        assert not file.exists()

    asyncio.run(main())


class RefusedError(Exception):
    """As another package's errors: `why` and `fix` apart."""

    why, fix = "the books can't be reached", "start them again"


@pytest.mark.parametrize("fails", ["reserve", "tell"])
def test_what_ends_the_requests_of_a_lease_is_one_error_with_its_fix(
    tmp_path: Path, counting_teacher: Teachers, fails: str
) -> None:
    """Not a group of as many as were under way, of which a launcher could tell neither."""
    teacher, config = counting_teacher(), config_in(tmp_path)
    before = prepare(teacher, config, tmp_path, "counting", 0)
    books = SharedBooks(tmp_path, config, None, Spent())

    async def ask(method: str, *arguments: Any) -> Any:
        if method == fails:
            raise RefusedError
        return await getattr(books, method)(*arguments)

    async def main() -> None:
        worker = await opened(tmp_path, teacher, ask)
        try:
            await worker.do(Lease((0, 1, 2), tuple(before.missing)))
        finally:
            await asyncio.gather(worker.aclose(), return_exceptions=True)

    with pytest.raises(RefusedError) as error:
        asyncio.run(main())
    assert error.value.fix == "start them again"
