"""The rows of a data file: JSON lines, JSON, CSV, plain text; for Parquet and datasets see `table_rows`.

A row is what its file says, unchecked: an object (a mapping by column), or a string where a row has no columns. What it
asks is found in `row_shapes`. Any of UTF-8, UTF-16 and UTF-32, with or without a byte-order mark; ``.gz``, ``.bz2`` and
``.zst`` around any of them.
"""

import csv
import io
import json
from collections.abc import Callable, Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.contract import ProviderError

COMPRESSED = (".gz", ".bz2", ".zst")
NAMES = ".jsonl, .json, .csv, .tsv, .parquet or .txt (also with .gz behind it)"
"""What a data file may be called."""


@attrs.frozen
class Row:
    """One row of a file."""

    place: str
    """For people: ``line 3``, ``row 3``."""
    id: str
    """What it is called where it says nothing itself."""
    value: Any
    """A mapping by column, a string, or a ProviderError: why it can't be read."""


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``chats.JSONL.gz``."""
    return (Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix).lower()


def rows_of_text(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a text file; `columns` are those that may be wanted. Raises ProviderError where it can't be read."""
    read = _READERS.get(ending_of(path))
    if read is None:
        raise ProviderError(
            f"{path}: the ending says nothing about the format",
            f"name it {NAMES}, or name a folder that `datasets` saved",
        )
    return read(_text(path), path, columns)


def _text(path: Path) -> str:
    try:
        data = _decompressed(path) if path.suffix.lower() in COMPRESSED else path.read_bytes()
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except OSError as error:
        reason = error.strerror or " ".join(str(error).split())[:200]
        raise ProviderError(
            f"{path}: can't be read: {reason}", "see that it is a whole file, and that you may read it"
        ) from None
    encoding = json.detect_encoding(data)
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise ProviderError(f"{path}:{line}: not {encoding.upper()[:6]}", "save the file in UTF-8") from None
    if "\0" in text:
        line = text[: text.index("\0")].count("\n") + 1
        raise ProviderError(f"{path}:{line}: holds a NUL character, as no text does", "save the file in UTF-8")
    return text


def _decompressed(path: Path) -> bytes:
    import pyarrow as pa  # here: `bitnet plan` is quick without it

    with pa.input_stream(str(path), compression="detect") as stream:
        return bytes(stream.read())


def _plain_lines(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    # Not splitlines(): it also cuts at U+2028 and others, which JSON strings and prompts may hold.
    for number, line in enumerate(text.split("\n"), 1):
        if line := line.strip():
            yield Row(f"line {number}", str(number), line)


def _json_lines(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    for row in _plain_lines(text, path, columns):
        try:
            value = json.loads(row.value)
        except (ValueError, RecursionError) as error:
            value = ProviderError(f"not JSON ({_reason(error)})", "write one object a line")
        yield attrs.evolve(row, value=value)


def _json(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """A list of rows; or an object that holds one, as ``{"data": [...]}``; or JSON lines under this name."""
    if text.lstrip().startswith("["):
        yield from _json_list(text, path)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        if reason == "Extra data":
            yield from _json_lines(text, path, columns)
            return
        raise ProviderError(
            f"{path}:{getattr(error, 'lineno', 1)}: not JSON ({reason})", "mend the file there"
        ) from None
    lists = [each for each in value.values() if isinstance(each, list)] if isinstance(value, dict) else []
    if len(lists) == 1 and not value.keys() & set(columns):
        for number, item in enumerate(lists[0], 1):
            yield Row(f"row {number}", str(number), item)
    else:
        yield Row("line 1", "1", value)


def _json_list(text: str, path: Path) -> Iterator[Row]:
    """Item by item, so that each has its line."""
    decoder = json.JSONDecoder()
    at, line, counted = _behind_space(text, text.index("[") + 1), 1, 0
    number = 0
    while text[at : at + 1] != "]" or number:
        line, counted = line + text.count("\n", counted, at), at
        number += 1
        try:
            value, at = decoder.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            wrong = getattr(error, "lineno", line)
            raise ProviderError(f"{path}:{wrong}: not JSON ({_reason(error)})", "mend the file there") from None
        yield Row(f"line {line}", str(number), value)
        at = _behind_space(text, at)
        if text[at : at + 1] == "]":
            break
        if text[at : at + 1] != ",":
            wrong = line + text.count("\n", counted, at)
            raise ProviderError(f"{path}:{wrong}: not JSON (no comma or ] behind a row)", "mend the file there")
        at = _behind_space(text, at + 1)
    if text[at + 1 :].strip():
        wrong = line + text.count("\n", counted, at)
        raise ProviderError(f"{path}:{wrong}: not JSON (more behind the list)", "mend the file there")


def _behind_space(text: str, at: int) -> int:
    while text[at : at + 1] in (" ", "\n", "\r", "\t"):
        at += 1
    return at


def _reason(error: Exception) -> str:
    return error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or a number too long"


def _csv(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever the header has; fields in quotes may hold lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    header = text.lstrip().partition("\n")[0]
    delimiter = max(",;\t", key=lambda each: (len({*_names(header, each)} & set(columns)), header.count(each)))
    table = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    names: list[str] = []
    before = 0
    while True:
        try:
            fields = next(table, None)
        except csv.Error as error:
            raise ProviderError(
                f"{path}:{before + 1}: not CSV ({error})",
                'mend the row that begins there: a field with a quote in it is written "so ""quoted"" it is"',
            ) from None
        line, before = before + 1, table.line_num
        if fields is None:
            return
        if not any(each.strip() for each in fields):
            continue
        if not names:
            names = [each.strip() for each in fields]
            if twice := sorted({each for each in names if names.count(each) > 1}):
                raise ProviderError(
                    f"{path}:{line}: two columns are called {twice[0]!r}", "give each column a name of its own"
                )
            continue
        value: Any = dict(zip(names, (each or None for each in fields), strict=False))
        if len(fields) > len(names):
            value = ProviderError(f"{len(fields)} fields, and the header has {len(names)}", "quote fields with commas")
        yield Row(f"line {line}", str(line), value)


def _names(header: str, delimiter: str) -> list[str]:
    return [each.strip().strip('"') for each in header.split(delimiter)]


_READERS: Mapping[str, Callable[[str, Path, Collection[str]], Iterator[Row]]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".txt": _plain_lines,
}
