"""A data file's bytes as text: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, compressed or not."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitnet_providers.contract import ProviderError

COMPRESSED = (".gz", ".bz2", ".zst")


def text_of(path: Path) -> str:
    """All of a file. Raises ProviderError where it can't be read, or is no text."""
    with _opened(path) as stream:
        data = stream.read()
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        raise _no_text(path, data[: error.start].count(b"\n") + 1, encoding) from None
    if "\0" in text:
        raise _holds_nul(path, text[: text.index("\0")].count("\n") + 1)
    return text


def lines_of(path: Path) -> Iterator[str]:
    """The lines of a file one after the other, however large it is. Raises ProviderError as `text_of`.

    Not splitlines(): it also cuts at U+2028 and others, which JSON strings and prompts may hold.
    """
    with _opened(path) as stream:
        encoding = json.detect_encoding(stream.peek(4)[:4])
        if not encoding.startswith("utf-8"):  # there a line's end is no single byte
            yield from text_of(path).split("\n")
            return
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode(encoding if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _no_text(path, number, encoding) from None
            if "\0" in text:
                raise _holds_nul(path, number)
            yield text


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Raises ProviderError where it can't be opened, and where reading fails."""
    try:
        with _decompressed(path) if path.suffix.lower() in COMPRESSED else path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ProviderError(
            f"{path}: can't be read: {reason}", "see that it is a whole file, and that you may read it"
        ) from None


def _decompressed(path: Path) -> io.BufferedReader:
    import pyarrow as pa  # here: `bitnet plan` is quick without it

    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def _no_text(path: Path, line: int, encoding: str) -> ProviderError:
    return ProviderError(f"{path}:{line}: not {encoding.upper()[:6]}", "save the file in UTF-8")


def _holds_nul(path: Path, line: int) -> ProviderError:
    return ProviderError(f"{path}:{line}: holds a NUL character, as no text does", "save the file in UTF-8")
