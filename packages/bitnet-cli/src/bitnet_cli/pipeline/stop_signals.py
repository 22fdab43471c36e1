"""SIGTERM and SIGHUP end a run as Ctrl-C does: Slurm, spot machines, `docker stop` and lost terminals send them."""

import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import attrs

from bitnet_cli.errors import EXIT_STOPPED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))
ONCE_S = 10.0
"""Seconds in which what comes again is the same (to the process, then to its group): a second Ctrl-C is a hard one."""


@attrs.define
class Told:
    """Which of the signals has come."""

    by: int | None = None
    at: float = 0.0
    """When, on the monotonic clock."""

    def exit_code(self, code: int) -> int:
        """`code`, but 128 + the signal, as shells have it, where that is what stopped the run."""
        return 128 + self.by if code == EXIT_STOPPED and self.by is not None else code


@contextmanager
def end_as_ctrl_c() -> Iterator[Told]:
    """Inside, the signals do what Ctrl-C does, also where asyncio has taken that over. For the main thread.

    One that is ignored (nohup) stays so.
    """
    told = Told()
    # A shell's `&` has SIGINT ignored: Ctrl-C is meant for others. So it is kept away, but there is a handler for it.
    background = signal.getsignal(signal.SIGINT) == signal.SIG_IGN and hasattr(signal, "pthread_sigmask")

    def as_ctrl_c(number: int, frame: FrameType | None) -> None:
        now = time.monotonic()
        if told.by is not None and now - told.at < ONCE_S:
            return
        told.by, told.at = number, now
        signal.raise_signal(signal.SIGINT)
        if background:
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})

    if background:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        signal.signal(signal.SIGINT, signal.default_int_handler)
    mine = [number for number in SIGNALS if signal.getsignal(number) == signal.SIG_DFL]
    for number in mine:
        signal.signal(number, as_ctrl_c)
        _TAKEN.add(number)
    try:
        yield told
    finally:
        for number in mine:
            signal.signal(number, signal.SIG_DFL)
            _TAKEN.discard(number)
        if background:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})


_TAKEN: set[int] = set()
"""The signals that `end_as_ctrl_c` has taken over."""


def ignore_more() -> None:
    """The run is ending: what is sent once more (to the process, then to its group) doesn't cut off its last push.

    Ctrl-C still does.
    """
    for number in _TAKEN:
        signal.signal(number, signal.SIG_IGN)
