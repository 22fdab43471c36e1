"""Reads the files that say what to ask: prompts (to be answered) and texts (to be scored).

``.jsonl``: one JSON object a line. A prompt is ``{"id", "prompt"}`` or ``{"id", "messages": [{"role", "content"}]}``; a
text is ``{"id", "text"}``, with ``"messages"`` where the text is the answer to a conversation. Both may say
``"format": "json"``. ``.txt``: one prompt (or text) a line, its id is the line's number. Empty lines are skipped.
``.parquet`` and Hugging Face datasets: see `bitnet_providers.prompts.tables`.
"""

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from bitnet_providers.config import ColumnsConfig, DatasetConfig
from bitnet_providers.contract import Message, ProviderError

ROLES = ("system", "user", "assistant")


@attrs.frozen
class Prompt:
    """A conversation that waits for its answer."""

    id: str
    messages: tuple[Message, ...]
    format: str | None = None
    """What the answer should be, e.g. ``"json"``."""


@attrs.frozen
class Text:
    """A text to score: as the answer to `messages`, or, with none, as plain text."""

    id: str
    text: str
    messages: tuple[Message, ...] = ()
    format: str | None = None


Item = TypeVar("Item", Prompt, Text)


def load_prompts(path: Path, columns: ColumnsConfig | None = None, limit: int | None = None) -> tuple[Prompt, ...]:
    """The prompts of a file, in its order, `limit` at most. Raises ProviderError with file, line and fix.

    `columns` names the columns of a Parquet file.
    """
    path = Path(path)
    if path.suffix == ".parquet":
        return _from_table(path, columns or ColumnsConfig(), "prompt", _prompt, limit)
    return _load(path, "prompt", _prompt, lambda number, line: Prompt(number, _user(line)))[:limit]


def load_texts(path: Path, columns: ColumnsConfig | None = None, limit: int | None = None) -> tuple[Text, ...]:
    """The texts of a file, in its order, `limit` at most. Raises ProviderError with file, line and fix."""
    path = Path(path)
    if path.suffix == ".parquet":
        return _from_table(path, columns or ColumnsConfig(), "text", _text, limit)
    return _load(path, "text", _text, lambda number, line: Text(number, line))[:limit]


def load_dataset_prompts(dataset: DatasetConfig, columns: ColumnsConfig, limit: int | None) -> tuple[Prompt, ...]:
    """The prompts of a Hugging Face dataset. Raises ProviderError with row and fix."""
    from bitnet_providers.prompts.tables import dataset_records

    return _gather(dataset_records(dataset, columns, "prompt", limit), "prompt", _prompt)


def load_dataset_texts(dataset: DatasetConfig, columns: ColumnsConfig, limit: int | None) -> tuple[Text, ...]:
    """The texts of a Hugging Face dataset. Raises ProviderError with row and fix."""
    from bitnet_providers.prompts.tables import dataset_records

    return _gather(dataset_records(dataset, columns, "text", limit), "text", _text)


def _from_table(
    path: Path,
    columns: ColumnsConfig,
    what: str,
    from_record: Callable[[Mapping[str, Any], str], Item],
    limit: int | None,
) -> tuple[Item, ...]:
    from bitnet_providers.prompts.tables import parquet_records

    items = _gather(parquet_records(path, columns, what, limit), what, from_record)
    if not items:
        raise ProviderError(f"{path}: there is no {what} in this file", "add one a row")
    return items


def _load(
    path: Path,
    what: str,
    from_record: Callable[[Mapping[str, Any], str], Item],
    from_line: Callable[[str, str], Item],
) -> tuple[Item, ...]:
    if path.suffix not in (".jsonl", ".txt"):
        raise ProviderError(f"{path}: the ending says nothing about the format", "name it .jsonl, .txt or .parquet")
    records = ((f"{path}:{number}", str(number), line) for number, line in _lines(path))
    if path.suffix == ".txt":
        items = tuple(from_line(number, line) for _, number, line in records)
    else:
        items = _gather(((where, _record(line, where)) for where, _, line in records), what, from_record)
    if not items:
        raise ProviderError(f"{path}: there is no {what} in this file", "add one a line")
    return items


def _gather(
    records: Iterable[tuple[str, Mapping[str, Any]]],
    what: str,
    from_record: Callable[[Mapping[str, Any], str], Item],
) -> tuple[Item, ...]:
    """(where, record) pairs as items; two of one id are refused."""
    items: list[Item] = []
    place_of_id: dict[str, str] = {}
    for where, record in records:
        item = from_record(record, where)
        if item.id in place_of_id:
            raise ProviderError(
                f'{where}: the id "{item.id}" is taken by {place_of_id[item.id]}', f"give each {what} an id of its own"
            )
        place_of_id[item.id] = _short(where)
        items.append(item)
    return tuple(items)


def _short(where: str) -> str:
    """``prompts.jsonl:3`` is line 3, ``prompts.parquet, row 3`` is row 3."""
    return where.rpartition(", ")[2] if ", row " in where else f"line {where.rpartition(':')[2]}"


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    try:
        # Not splitlines(): it also cuts at U+2028 and others, which JSON strings and prompts may hold.
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except FileNotFoundError:
        raise ProviderError(f"{path}: there is no such file", "correct the path, relative to the manifest") from None
    except UnicodeDecodeError as error:
        raise ProviderError(f"{path}: not UTF-8 (byte {error.start})", "save the file in UTF-8") from None
    except OSError as error:
        raise ProviderError(
            f"{path}: can't be read: {error.strerror}", "see that it is a file, and that you may read it"
        ) from None
    for number, line in enumerate(lines, 1):
        if line := line.strip():
            yield number, line


def _record(line: str, where: str) -> Mapping[str, Any]:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        reason = error.msg if isinstance(error, json.JSONDecodeError) else "nested too deep or a number too long"
        raise ProviderError(f"{where}: not JSON ({reason})", "write one object a line") from None
    if not isinstance(record, dict):
        raise ProviderError(f"{where}: expected an object, got {_name(record)}", "write one object a line")
    return record


def _prompt(record: Mapping[str, Any], where: str) -> Prompt:
    _check_keys(record, ("id", "prompt", "messages", "format"), where)
    if ("prompt" in record) == ("messages" in record):
        raise ProviderError(f'{where}: it has both "prompt" and "messages", or neither', "give one of them")
    messages = _messages(record, where) if "messages" in record else _user(_string(record, "prompt", where))
    return Prompt(_string(record, "id", where), messages, _format(record, where))


def _text(record: Mapping[str, Any], where: str) -> Text:
    _check_keys(record, ("id", "text", "messages", "format"), where)
    messages = _messages(record, where) if "messages" in record else ()
    return Text(_string(record, "id", where), _string(record, "text", where), messages, _format(record, where))


def _user(text: str) -> tuple[Message, ...]:
    return ({"role": "user", "content": text},)


def _check_keys(record: Mapping[str, Any], known: tuple[str, ...], where: str) -> None:
    for key in record:
        if key not in known:
            raise ProviderError(f'{where}: unknown key "{key}"', f"use only these keys: {', '.join(known)}")


def _string(record: Mapping[str, Any], key: str, where: str) -> str:
    if key not in record:
        raise ProviderError(f'{where}: "{key}" is missing', "add it")
    value = record[key]
    if not isinstance(value, str):
        raise ProviderError(f'{where}: "{key}" is {_name(value)}', "write a string")
    if not value.strip():
        raise ProviderError(f'{where}: "{key}" is empty', "fill it, or take the line out")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ProviderError(f'{where}: "{key}" holds half a surrogate pair', "write whole characters") from None
    return value


def _format(record: Mapping[str, Any], where: str) -> str | None:
    return None if record.get("format") is None else _string(record, "format", where)


def _messages(record: Mapping[str, Any], where: str) -> tuple[Message, ...]:
    messages = record["messages"]
    if not isinstance(messages, list) or not messages:
        raise ProviderError(f'{where}: "messages" is {_name(messages)}', 'write a list of {"role", "content"} objects')
    checked: list[Message] = []
    for index, message in enumerate(messages):
        place = f"{where}: messages[{index}]"
        if not isinstance(message, dict) or set(message) != {"role", "content"}:
            raise ProviderError(
                f'{place}: expected an object with "role" and "content", and no other key',
                'write {"role": "user", "content": "..."}',
            )
        if message["role"] not in ROLES:
            raise ProviderError(f'{place}: "role" is {json.dumps(message["role"])}', f"write one of {', '.join(ROLES)}")
        checked.append({"role": message["role"], "content": _string(message, "content", place)})
    if checked[-1]["role"] == "assistant":
        raise ProviderError(f"{where}: the last message is the assistant's own", 'end with a "user" message')
    return tuple(checked)


def _name(value: object) -> str:
    """The value's JSON type, for people."""
    names = {bool: "a boolean", int: "a number", float: "a number", str: "a string", dict: "an object"}
    if value is None:
        return "null"
    if isinstance(value, list):
        return "a list" if value else "an empty list"
    return names.get(type(value), type(value).__name__)
