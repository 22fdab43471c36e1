"""A data file's bytes as text: UTF-8, UTF-16 or UTF-32, with or without a byte-order mark, compressed or not."""

import io
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bitnet_providers.contract import ProviderError

COMPRESSED = (".gz", ".bz2", ".zst")
_BEGINS = {b"\x1f\x8b": ".gz", b"\x28\xb5\x2f\xfd": ".zst", b"BZh": ".bz2", b"PAR1": ".parquet"}
"""What a file begins with whose name should end so."""


def text_of(path: Path) -> str:
    """All of a file. Raises ProviderError where it can't be read, or is no text."""
    with _opened(path) as stream:
        data = stream.read()
    _check_beginning(path, data[:4])
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
        beginning = stream.peek(4)[:4]
        _check_beginning(path, beginning)
        encoding = json.detect_encoding(beginning)
        if not encoding.startswith("utf-8"):  # there a line's end is no single byte
            text = text_of(path)
            yield from text.split("\n" if "\n" in text else "\r")
            return
        for number, line in enumerate(stream, 1):
            try:
                text = line.decode(encoding if number == 1 else "utf-8")
            except UnicodeDecodeError:
                raise _no_text(path, number, encoding) from None
            if "\0" in text:
                raise _holds_nul(path, number)
            if number == 1 and not text.endswith("\n"):  # all of the file: an old Mac's lines
                yield from text.split("\r")
            else:
                yield text


@contextmanager
def _opened(path: Path) -> Iterator[io.BufferedReader]:
    """Raises ProviderError where it can't be opened, and where reading fails."""
    try:
        with _decompressed(path) if path.suffix.lower() in COMPRESSED else path.open("rb") as stream:
            yield stream
    except FileNotFoundError:
        fix = "correct the path, relative to the manifest"
        if any(each in path.name for each in "*?["):
            fix = "patterns are not filled in: name one file, or a folder of Parquet, JSON or CSV files"
        raise ProviderError(f"{path}: there is no such file", fix) from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ProviderError(
            f"{path}: can't be read: {reason}", "see that it is a whole file, and that you may read it"
        ) from None


def _decompressed(path: Path) -> io.BufferedReader:
    import pyarrow as pa  # here: `bitnet plan` is quick without it

    return io.BufferedReader(pa.input_stream(str(path), compression="detect"))


def _check_beginning(path: Path, data: bytes) -> None:
    ending = next((each for start, each in _BEGINS.items() if data.startswith(start)), None)
    if ending is not None:
        name = path.stem + ending if ending == ".parquet" else path.name + ending
        raise ProviderError(f"{path}: holds no text; it begins as a {ending} file does", f"name it {name}")


def _no_text(path: Path, line: int, encoding: str) -> ProviderError:
    return ProviderError(f"{path}:{line}: not {encoding.upper()[:6]}", "save the file in UTF-8")


def _holds_nul(path: Path, line: int) -> ProviderError:
    return ProviderError(f"{path}:{line}: holds a NUL character, as no text does", "save the file in UTF-8")
