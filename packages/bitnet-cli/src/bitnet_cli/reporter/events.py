"""A run as events for programs: one JSON object a line. docs/events.md lists their fields."""

import contextlib
import io
import os
import sys
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TextIO

from bitnet_cli.wording.hide_secrets import plain_json

FORMAT = 1
"""The version of the events; named in the first one. New fields and events may come without a new version."""


def utc_now() -> str:
    return datetime.now(UTC).isoformat("T", "milliseconds")


class Events:
    """Writes events to a stream that somebody reads while the run goes on."""

    def __init__(self, stream: TextIO, now: Callable[[], str] = utc_now) -> None:
        self._stream: TextIO | None = stream
        self._now = now

    def emit(self, event: str, **fields: Any) -> None:
        """Write one line. Where nobody reads any more, nothing is written from then on: the run matters more."""
        if self._stream is None:
            return
        line = plain_json({"event": event, "time": self._now(), **fields})
        line = line.encode("utf-8", "backslashreplace").decode("utf-8")  # half a surrogate pair: JSON's own escape
        try:
            self._stream.write(line + "\n")
            self._stream.flush()
        except (OSError, ValueError):
            self._stream = None


@contextlib.contextmanager
def events_on_stdout() -> Iterator[Events]:
    """Events have stdout for themselves: whatever else is printed, by libraries and child processes, goes to stderr."""
    try:
        number = sys.stdout.fileno()
    except (OSError, io.UnsupportedOperation):  # no file, as in a notebook
        stream = sys.stdout
        with contextlib.redirect_stdout(sys.stderr):
            yield Events(stream)
        return
    sys.stdout.flush()
    own = os.dup(number)
    os.dup2(sys.stderr.fileno(), number)
    try:
        with contextlib.suppress(OSError), os.fdopen(os.dup(own), "w", encoding="utf-8") as stream:
            yield Events(stream)
    finally:
        sys.stdout.flush()
        os.dup2(own, number)
        os.close(own)
