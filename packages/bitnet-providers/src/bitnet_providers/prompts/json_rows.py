"""The rows of JSON lines, and of a JSON file."""

import json
from collections.abc import Collection, Iterable, Iterator
from pathlib import Path

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.row import Row


def line_rows(lines: Iterable[str]) -> Iterator[Row]:
    for number, line in enumerate(lines, 1):
        if line := line.strip():
            yield Row(f"line {number}", str(number), line)


def json_line_rows(lines: Iterable[str]) -> Iterator[Row]:
    for row in line_rows(lines):
        try:
            value = json.loads(row.value)
        except (ValueError, RecursionError) as error:
            value = ProviderError(f"not JSON ({_reason(error)})", "write one object a line")
        yield attrs.evolve(row, value=value)


def json_rows(text: str, path: Path, columns: Collection[str]) -> Iterator[Row]:
    """A list of rows; or an object that holds one, as ``{"data": [...]}``; or JSON lines under this name."""
    if text.lstrip().startswith("["):
        yield from _json_list(text, path)
        return
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        reason = _reason(error)
        if reason == "Extra data":
            yield from json_line_rows(text.split("\n"))
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
