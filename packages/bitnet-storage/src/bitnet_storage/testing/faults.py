"""Objects that fail on demand, in front of real ones."""

import threading
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Literal

import attrs

from bitnet_storage.contract import Objects, StorageError


class Killed(BaseException):
    """Stands for the process's end: nothing of ours may catch it."""


Cut = Literal["before", "half", "after"]
"""Where in the fatal call: nothing has happened, half of a put has arrived, or all has and only the answer is lost."""


@attrs.define
class FaultyObjects:
    """`Objects` that end with an error after `calls_left` writing calls; None: never. A push makes some at once."""

    inner: Objects
    prefix: str = ""
    """Put before every key, so that one place serves many tests."""
    calls_left: int | None = None
    cut: Cut = "before"
    error: type[BaseException] = Killed
    puts: int = 0
    """Objects that were stored so far."""
    _counting: threading.Lock = attrs.field(factory=threading.Lock, init=False, eq=False, repr=False)

    @property
    def location(self) -> str:
        return f"{self.inner.location}/{self.prefix}"

    def put(self, key: str, source: Path | bytes) -> None:
        if self._fatal():
            content = source if isinstance(source, bytes) else source.read_bytes()
            if self.cut == "half" and len(content) > 1:
                self.inner.put(self.prefix + key, content[: len(content) // 2])
            elif self.cut == "after":
                self.inner.put(self.prefix + key, source)
            self._end()
        self.inner.put(self.prefix + key, source)
        with self._counting:
            self.puts += 1

    def create(self, key: str, content: bytes) -> bool:
        if self._fatal():
            if self.cut == "half":
                self.inner.create(self.prefix + key, content[: len(content) // 2])
            elif self.cut == "after":
                self.inner.create(self.prefix + key, content)
            self._end()
        return self.inner.create(self.prefix + key, content)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            fatal = self._fatal()
            if not fatal or self.cut == "after":
                self.inner.delete([self.prefix + key])
            if fatal:
                self._end()

    def chunks(self, key: str, start: int) -> Iterator[bytes]:
        return self.inner.chunks(self.prefix + key, start)

    def sizes(self, folder: str) -> dict[str, int]:
        found = self.inner.sizes(self.prefix + folder)
        return {key.removeprefix(self.prefix): size for key, size in found.items()}

    def folders(self, folder: str) -> list[str]:
        return self.inner.folders((self.prefix + folder).rstrip("/"))

    def _fatal(self) -> bool:
        with self._counting:
            if self.calls_left is None:
                return False
            self.calls_left -= 1
            return self.calls_left < 0

    def _end(self) -> None:
        if self.error is Killed:
            raise Killed
        if issubclass(self.error, StorageError):
            raise self.error("a fault was injected; there is nothing to fix")
        raise self.error
