"""What reaches a terminal: text that drives none, and no password. Our own colours and bars pass."""

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, BinaryIO, TextIO

from bitnet_cli.wording.hide_secrets import printable

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer as Buffer
    from rich.console import Console


class PrintableBytes:
    """The ``buffer`` of a `PrintableStream`."""

    def __init__(self, stream: BinaryIO, encoding: str) -> None:
        self._stream = stream
        self._encoding = encoding

    def write(self, content: "Buffer") -> int:
        text = bytes(content).decode(self._encoding, "surrogateescape")
        self._stream.write(_shown(text).encode(self._encoding, "surrogateescape"))
        return memoryview(content).nbytes

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


class PrintableStream:
    """A text stream that shows what is written to it by `printable`.

    A carriage return passes: libraries move their bars with it.
    """

    def __init__(self, stream: TextIO) -> None:
        self.rich_proxied_file = stream
        """Where a console of rich writes, which has its own colours: see `open_console`."""

    def write(self, text: str) -> int:
        if not isinstance(text, str):
            raise TypeError(f"write() argument must be str, not {type(text).__name__}")
        self.rich_proxied_file.write(_shown(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        found = getattr(self.rich_proxied_file, name)
        return PrintableBytes(found, self.rich_proxied_file.encoding) if name == "buffer" else found


def _shown(text: str) -> str:
    return "\r".join(map(printable, text.split("\r")))


@contextmanager
def printable_output() -> Iterator[None]:
    """Everything that is printed meanwhile is `printable`, errors and other libraries' lines among it."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = (PrintableStream(stream) for stream in before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


def open_console(*, stderr: bool = False, **options: Any) -> "Console":
    """A console of rich for stdout or stderr (or the `file` that `options` name): its texts are `printable`."""
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment

    class PrintableConsole(Console):
        def render(self, renderable: RenderableType, options: ConsoleOptions | None = None) -> Iterable[Segment]:
            for segment in super().render(renderable, options):
                yield segment if segment.control else segment._replace(text=printable(segment.text))

    stream = sys.stderr if stderr else sys.stdout
    options.setdefault("file", getattr(stream, "rich_proxied_file", stream))
    return PrintableConsole(stderr=stderr, **options)
