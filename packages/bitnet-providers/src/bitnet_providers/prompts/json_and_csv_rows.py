"""The rows of a JSON, CSV or text file, by its ending.

A row is what its file says, unchecked: an object (a mapping by column), or a string where a row has no columns. What it
asks is found in `row_shapes`.
"""

import csv
import io
import json
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.decompress_and_decode import COMPRESSED, lines_of, text_of
from bitnet_providers.prompts.row_shapes import BESIDE


@attrs.frozen
class Row:
    """One row of a file."""

    place: str
    """For people: ``line 3``, ``row 3``."""
    id: str
    """What it is called where it says nothing itself."""
    value: Any
    """A mapping by column, a string, or a ProviderError: why it can't be read."""
    unread: Collection[str] = ()
    """Columns that its table has beside."""


_SEPARATOR = re.compile(r"\s*sep=([,;\t|])\r?\n")


def csv_rows(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """Comma, semicolon or tab, whichever the header has; fields in quotes may hold lines."""
    csv.field_size_limit(max(csv.field_size_limit(), len(text)))
    said = _SEPARATOR.match(text)  # Excel's own line before the header
    text = text if said is None else "\n" + text[said.end() :]
    header = text.lstrip().partition("\n")[0]
    delimiter = _likely_delimiter(header, columns) if said is None else said[1]
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
            if twice := sorted({each for each in names if each and names.count(each) > 1}):
                raise ProviderError(
                    f"{path}:{line}: two columns are called {twice[0]!r}", "give each column a name of its own"
                )
            continue
        value: Any = dict(zip(names, (each or None for each in fields), strict=False))
        if len(fields) > len(names):
            value = ProviderError(f"{len(fields)} fields, and the header has {len(names)}", "quote fields with commas")
        yield Row(f"line {line}", str(line), value)


def _likely_delimiter(header: str, columns: Collection[str]) -> str:
    return max(",;\t", key=lambda each: (len({*_names(header, each)} & set(columns)), header.count(each)))


def _names(header: str, delimiter: str) -> list[str]:
    return [each.strip().strip('"') for each in header.split(delimiter)]


_LIST_OF_ROWS = re.compile(r"\s*\[\s*[{\"]")


def line_rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line := line.strip().removeprefix("\ufeff"):  # files that were put together have one inside
            yield Row(f"line {number}", str(number), line)


def prompt_lines(lines: Iterable[str], path: Path, columns: Collection[str]) -> Iterator[Row]:
    """A prompt a line. Rows of another format under this name would be asked as they stand: ProviderError."""
    first, lines = _peeked(lines)
    named = next((each for each in ",;\t" if len({*first.split(each)} & set(columns)) > 1), None)
    ending = ".csv" if named else None
    if first.startswith(("{", "[")):
        parts = [first]
        if first in ("{", "[", "[{") or first.startswith("[{"):
            lines = list(lines)
            parts.append("\n".join(lines))
        for part in parts:
            try:
                value = json.loads(part)
            except (ValueError, RecursionError):
                continue
            row = value[0] if isinstance(value, list) and value else value
            if isinstance(row, dict) and row.keys() & set(columns):
                ending = ".json" if isinstance(value, list) or part is not first else ".jsonl"
                break
    if ending is not None:
        why = f"{path}: its lines are no prompts but {ending[1:].upper()}"
        raise ProviderError(why, f"name it {path.name.replace('.txt', ending, 1)}")
    yield from line_rows(lines)


def _peeked(lines: Iterable[str]) -> tuple[str, Iterable[str]]:
    """The first line that says something, and all of them."""
    rest = iter(lines)
    before: list[str] = []
    for line in rest:
        before.append(line)
        if line.strip():
            break
    return (before[-1].strip() if before else ""), chain(before, rest)


def json_line_rows(lines: Iterable[str], path: Path, columns: Collection[str]) -> Iterator[Row]:
    """An object a line; or a list of them, as JSON has it, under this name."""
    first, lines = _peeked(lines)
    if first == "[" or _LIST_OF_ROWS.match(first):
        lines = [each.removesuffix("\n") for each in lines]
        if not _is_json(first) or "".join(lines).strip() == first:  # else a list a line, which is no row
            yield from _json_list("\n".join(lines), path)
            return
    for row in line_rows(lines):
        try:
            value = json.loads(row.value)
        except (ValueError, RecursionError) as error:
            fix = "take the comma off its end" if row.value.endswith("},") else "write one object a line"
            value = ProviderError(f"not JSON ({_reason(error)})", fix)
        yield attrs.evolve(row, value=value)


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def json_rows(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """A list of rows; or an object that holds one, as ``{"data": [...]}`` or ``{"train": [...]}``; or an object of
    columns (pandas); or JSON lines under this name."""
    if not text.strip():
        return
    if text.lstrip().startswith("["):
        yield from _json_list(text, path)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        if reason == "Extra data":
            yield from json_line_rows(text.split("\n"), path, columns)
            return
        raise ProviderError(
            f"{path}:{getattr(error, 'lineno', 1)}: not JSON ({reason})", "mend the file there"
        ) from None
    rows = _rows_within(value, columns) if isinstance(value, dict) else None
    if rows is None:
        yield Row("line 1", "1", value)
    for number, item in enumerate(rows or [], 1):
        yield Row(f"row {number}", str(number), item)


def _rows_within(value: Mapping[str, Any], columns: Collection[str]) -> list[Any] | None:
    """The rows that an object holds; None: it is a row itself."""
    named = [value[each] for each in value if each in columns]
    if not value.keys() & set(columns) - BESIDE:  # a context or an id alone is no row
        lists = [each for name, each in value.items() if name not in BESIDE and _may_be_rows(each)]
        if len(lists) > 1 and isinstance(value.get("train"), list):  # splits, as `datasets` has them
            return list(value["train"])
        if lists or not named:
            return lists[0] if len(lists) == 1 else None
    cells = list(value.values())
    if all(isinstance(each, dict) and each and all(map(str.isdigit, each)) for each in cells):  # by column, by index
        return [{name: each.get(index) for name, each in value.items()} for index in cells[0]]
    lengths = {len(each) if isinstance(each, list) else 0 for each in cells}
    if len(lengths) == 1 and 0 not in lengths and not any(isinstance(cell, dict) for each in named for cell in each):
        return [dict(zip(value, each, strict=True)) for each in zip(*cells, strict=True)]
    return None


def _may_be_rows(value: Any) -> bool:
    return isinstance(value, list) and any(isinstance(each, dict | str) for each in value)


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


NAMES = ".jsonl, .json, .csv, .tsv, .parquet or .txt (also with .gz behind it)"
"""What a data file may be called."""


def ending_of(path: Path) -> str:
    """``.jsonl`` of ``chats.JSONL.gz``."""
    return (Path(path.stem).suffix if path.suffix.lower() in COMPRESSED else path.suffix).lower()


def rows_of_text(path: Path, columns: Collection[str]) -> Iterator[Row]:
    """The rows of a text file; `columns` are those that may be wanted. Raises ProviderError where it can't be read."""
    ending = ending_of(path)
    if ending in _BY_LINE:
        return _BY_LINE[ending](lines_of(path), path, columns)
    read = _WHOLE.get(ending)
    if read is None and not path.exists():
        raise ProviderError(f"{path}: there is no such file or folder", "correct the path, relative to the manifest")
    if read is None:
        raise ProviderError(
            f"{path}: the ending says nothing about the format",
            f"name it {NAMES}, or name a folder that `datasets` saved",
        )
    return read(text_of(path), path, columns)


_BY_LINE: Mapping[str, Callable[[Iterable[str], Path, Collection[str]], Iterator[Row]]] = {
    ".jsonl": json_line_rows,
    ".jsonlines": json_line_rows,
    ".ndjson": json_line_rows,
    ".txt": prompt_lines,
}
"""Read as far as rows are wanted: a corpus may be larger than the memory."""
_WHOLE: Mapping[str, Callable[[str, Path, Collection[str]], Iterator[Row]]] = {
    ".json": json_rows,
    ".csv": csv_rows,
    ".tsv": csv_rows,
}
