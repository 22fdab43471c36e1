"""A benchmark's own file: one JSON object a line, with a prompt or a conversation in it."""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bitnet_core.benchmarks.contract import Conversation
from bitnet_core.errors import CoreError

ROLES = ("system", "user", "assistant")


def read_records(path: Path, what: str, example: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """(where it stands, for people; the object) of each line that isn't empty. Raises CoreError with file and line.

    what: the lines hold, such as "prompt". example: of a line, for who wrote something else.
    """
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise CoreError(f"{path}: can't be read ({error.strerror or error})", "correct the path") from error
    except UnicodeDecodeError as error:
        raise CoreError(f"{path}: no UTF-8 (byte {error.start})", "save it as UTF-8") from error
    found = [(f"{path}:{number}", line) for number, line in enumerate(lines, 1) if line.strip()]
    if not found:
        raise CoreError(f"{path}: there is no {what} in this file", "add one a line")
    for where, line in found:
        try:
            record = json.loads(line)
        except ValueError as error:
            raise CoreError(f"{where}: no JSON ({error})", "write one object a line") from error
        if not isinstance(record, dict):
            raise CoreError(f"{where}: not an object", f"write one, e.g. {example}")
        yield where, record


def messages_of(record: Mapping[str, Any], where: str) -> Conversation:
    """Raises CoreError where there is neither a prompt nor a conversation, or both."""
    prompt, messages = record.get("prompt"), record.get("messages")
    if isinstance(prompt, str) and prompt.strip() and messages is None:
        return ({"role": "user", "content": prompt},)
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return tuple({"role": each["role"], "content": each["content"]} for each in messages)
    raise CoreError(
        f'{where}: no usable "prompt" or "messages"',
        'give either "prompt" (a text) or "messages" ([{"role": "user", "content": "..."}]), not both',
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
