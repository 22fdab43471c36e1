"""A worker of `bitnet_cli.launching.local`, in a process of its own, and its messages: pickled, over stdin and stdout.

It ends when told to, and when who started it is gone.
"""

import asyncio
import itertools
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Awaitable, Callable
from typing import IO, Any

from bitnet_cli.contract import Worker
from bitnet_cli.launching.lost_workers import told

_LENGTH_BYTES = 8


def send(pipe: IO[bytes], message: Any) -> None:
    """Raises OSError where nobody is left to read it."""
    body = pickle.dumps(message)
    pipe.write(len(body).to_bytes(_LENGTH_BYTES, "little") + body)
    pipe.flush()


def receive(pipe: IO[bytes]) -> Any:
    """The next message. Raises EOFError where the other end is gone."""
    return pickle.loads(_exactly(pipe, int.from_bytes(_exactly(pipe, _LENGTH_BYTES), "little")))


def _exactly(pipe: IO[bytes], length: int) -> bytes:
    body = pipe.read(length)
    if len(body) < length:
        raise EOFError
    return body


class _Process:
    """The worker's side of the conversation; one event loop's."""

    def __init__(self, source: IO[bytes], target: IO[bytes]) -> None:
        self._source, self._target = source, target
        self._loop = asyncio.get_running_loop()
        self._arrived: asyncio.Queue[tuple[Any, ...]] = asyncio.Queue()
        self._calls: dict[int, asyncio.Future[Any]] = {}
        self._numbers = itertools.count()
        self._tasks: set[asyncio.Task[None]] = set()

    async def ask(self, method: str, *arguments: Any) -> Any:
        number = next(self._numbers)
        self._calls[number] = self._loop.create_future()
        send(self._target, ("call", number, method, arguments))
        try:
            return await self._calls[number]
        finally:
            del self._calls[number]

    async def serve(self) -> None:
        threading.Thread(target=self._listen, name="messages", daemon=True).start()
        _, open_worker, number = await self._arrived.get()
        worker: Worker | None = await self._told("opened", lambda: open_worker(number, self.ask))
        while (message := await self._arrived.get())[0] != "close":
            assert worker is not None
            _, task_number, task = message
            doing = self._loop.create_task(self._do(worker, task_number, task))
            self._tasks.add(doing)
            doing.add_done_callback(self._tasks.discard)
        for doing in self._tasks:
            doing.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        if worker is not None:
            await worker.aclose()

    async def _do(self, worker: Worker, number: int, task: Any) -> None:
        await self._told("done", lambda: worker.do(task), number, returns=True)

    async def _told(self, what: str, work: Callable[[], Awaitable[Any]], *where: Any, returns: bool = False) -> Any:
        """Do it and tell how it went; what it gives, or None where it failed."""
        try:
            result = await work()
            send(self._target, (what, *where, None, result if returns else None))
            return result
        except Exception as error:
            traceback.print_exc()
            send(self._target, (what, *where, told(error), None))
            return None

    def _listen(self) -> None:
        try:
            while True:
                message = receive(self._source)
                if message[0] == "told":
                    self._loop.call_soon_threadsafe(self._answer, *message[1:])
                else:
                    self._loop.call_soon_threadsafe(self._arrived.put_nowait, message)
                    if message[0] == "close":
                        return
        except Exception as error:
            if not isinstance(error, EOFError):
                traceback.print_exc()
            _end_with_children()

    def _answer(self, number: int, problem: tuple[str, str] | None, value: Any) -> None:
        waiting = self._calls.get(number)
        if waiting is None or waiting.done():
            return
        if problem is None:
            waiting.set_result(value)
        else:
            from bitnet_cli.errors import UserError

            waiting.set_exception(UserError(*problem))


def _end_with_children() -> None:
    """At once: nobody is left who wants what is done here."""
    if hasattr(os, "killpg"):
        os.killpg(0, signal.SIGTERM)  # the group is its own: see `bitnet_cli.launching.local`
    os._exit(1)


def main() -> None:
    source, target = os.fdopen(os.dup(0), "rb"), os.fdopen(os.dup(1), "wb")
    nothing = os.open(os.devnull, os.O_RDONLY)
    os.dup2(nothing, 0)
    os.dup2(2, 1)  # what libraries print goes to the log

    async def serve() -> None:
        await _Process(source, target).serve()

    asyncio.run(serve())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(0)  # threads of libraries don't keep it


if __name__ == "__main__":
    main()
