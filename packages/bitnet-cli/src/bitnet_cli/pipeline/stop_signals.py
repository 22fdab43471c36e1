"""SIGTERM and SIGHUP end a run as Ctrl-C does: Slurm, spot machines, `docker stop` and lost terminals send them."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

import attrs

from bitnet_cli.errors import EXIT_STOPPED

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name))


@attrs.define
class Told:
    """Which of the signals has come."""

    by: int | None = None

    def exit_code(self, code: int) -> int:
        """`code`, but 128 + the signal, as shells have it, where that is what stopped the run."""
        return 128 + self.by if code == EXIT_STOPPED and self.by is not None else code


@contextmanager
def end_as_ctrl_c() -> Iterator[Told]:
    """Inside, the signals do what Ctrl-C does, also where asyncio has taken that over. For the main thread.

    One that is ignored (nohup) stays so.
    """
    told = Told()

    def as_ctrl_c(number: int, frame: FrameType | None) -> None:
        told.by = number
        signal.raise_signal(signal.SIGINT)

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


_TAKEN: set[int] = set()
"""The signals that `end_as_ctrl_c` has taken over."""


def ignore_more() -> None:
    """The run is ending: what is sent once more (to the process, then to its group) doesn't cut off its last push.

    Ctrl-C still does.
    """
    for number in _TAKEN:
        signal.signal(number, signal.SIG_IGN)
