"""One model, many clients: answers are made one at a time, in the order of asking; a bounded number may wait."""

import asyncio
import math
import threading
import time
from collections.abc import AsyncGenerator, Callable
from concurrent.futures import ThreadPoolExecutor

import attrs

from bitnet_cli.serving.openai_request import ApiError
from bitnet_core.runtime.contract import Ending, Piece, Prompt, Runtime, RuntimeEndedError, Sampling

Item = Piece | Ending | BaseException


@attrs.define(eq=False)
class Turns:
    """The model's thread, and the line before it. To be used from one event loop."""

    runtime: Runtime
    queue_size: int
    """How many may wait beside the one that is answered."""
    _thread: ThreadPoolExecutor = attrs.field(factory=lambda: ThreadPoolExecutor(1, "model"), init=False)
    _inside: "dict[asyncio.Queue[Item], threading.Event]" = attrs.field(factory=dict, init=False)
    """Of each request that waits or is answered, what it reads from: set where nobody does any more."""
    _computing: bool = attrs.field(default=False, init=False)
    """The model's thread is at work."""
    _seconds: float = attrs.field(default=1.0, init=False)
    """That the answer before took."""
    _closed: bool = attrs.field(default=False, init=False)
    ended: bool = attrs.field(default=False, init=False)
    """The runtime has ended: nothing will be answered any more."""

    @property
    def waiting(self) -> int:
        return max(0, len(self._inside) - 1)

    async def answer(self, prompt: Prompt, sampling: Sampling) -> AsyncGenerator[Piece | Ending, None]:
        """Pieces, and last the Ending. Closing it, or cancelling, ends the answer at its next token.

        A Piece may be empty. Raises ApiError (429: the line is full; 503: `close` was called) and what the runtime
        raises.
        """
        if self._closed:
            raise _closing()
        if len(self._inside) > self.queue_size:
            raise ApiError(
                429,
                f"{len(self._inside)} requests are being answered or wait, which is all that this server takes",
                "ask again later, or with fewer at once",
                code="queue_full",
                retry_after_s=max(1, math.ceil(self._seconds)),
            )
        loop = asyncio.get_running_loop()
        items: asyncio.Queue[Item] = asyncio.Queue()
        left = threading.Event()
        self._inside[items] = left

        def put(item: Item) -> None:
            loop.call_soon_threadsafe(items.put_nowait, item)

        made = loop.run_in_executor(self._thread, self._make, prompt, sampling, put, left)
        made.add_done_callback(lambda _: self._inside.pop(items, None))
        try:
            while True:
                item = await items.get()
                if isinstance(item, BaseException):
                    raise item
                yield item
                if isinstance(item, Ending):
                    return
        finally:
            left.set()
            made.cancel()  # leaves the line where it has not begun

    def _make(self, prompt: Prompt, sampling: Sampling, put: Callable[[Item], None], left: threading.Event) -> None:
        """In the model's thread, which never waits for a client that reads slowly."""
        start, self._computing = time.monotonic(), True
        pieces = self.runtime.pieces(prompt, sampling)
        try:
            while not left.is_set():
                put(next(pieces))
            put(_closing())
        except StopIteration as end:
            put(end.value)
        except BaseException as error:  # sent to the client; the thread stays
            self.ended = self.ended or isinstance(error, RuntimeEndedError)
            put(error)
        finally:
            pieces.close()
            self._seconds, self._computing = time.monotonic() - start, False

    async def close(self, patience_s: float = 60.0) -> bool:
        """Tell everybody, end the answer at its next token, and let no new one begin.

        Whether the model's thread has ended in that time: only then may the runtime be closed.
        """
        self._closed = True
        for items, left in self._inside.items():
            left.set()
            items.put_nowait(_closing())
        self._thread.shutdown(wait=False, cancel_futures=True)
        until = time.monotonic() + patience_s
        while self._computing and time.monotonic() < until:
            await asyncio.sleep(0.01)
        return not self._computing


def _closing() -> ApiError:
    return ApiError(503, "the server is stopping", "ask again when it is back", code="stopping")
