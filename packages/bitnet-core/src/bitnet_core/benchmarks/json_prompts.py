"""Reads the prompts of ``json_validity``: what to ask, and the schema that the answer must be of."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.benchmarks.contract import Conversation
from bitnet_core.benchmarks.json_answers import schema_fault
from bitnet_core.errors import CoreError

ROLES = ("system", "user", "assistant")


@attrs.frozen
class JSONPrompt:
    id: str
    messages: Conversation
    schema: Mapping[str, Any]


def load_json_prompts(path: Path, limit: int | None = None) -> tuple[JSONPrompt, ...]:
    """The prompts of a ``.jsonl`` file, `limit` at most. Raises CoreError with file, line and fix."""
    try:
        lines = path.read_bytes().decode("utf-8-sig").split("\n")
    except OSError as error:
        raise CoreError(f"{path}: can't be read ({error.strerror or error}); correct the path") from error
    except UnicodeDecodeError as error:
        raise CoreError(f"{path}: no UTF-8 (byte {error.start}); save it as UTF-8") from error
    prompts = tuple(_prompt(line, number, path) for number, line in enumerate(lines, 1) if line.strip())
    if not prompts:
        raise CoreError(f"{path}: there is no prompt in this file: add one a line")
    return prompts[:limit]


def _prompt(line: str, number: int, path: Path) -> JSONPrompt:
    where = f"{path}:{number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CoreError(f"{where}: no JSON ({error}); write one object a line") from error
    if not isinstance(record, dict):
        raise CoreError(f'{where}: expected an object, e.g. {{"prompt": "...", "schema": {{"type": "object"}}}}')
    if "schema" not in record:
        raise CoreError(f'{where}: "schema" is missing: give the JSON Schema that the answer must be of')
    fault = schema_fault(record["schema"])
    if fault is not None:
        raise CoreError(f'{where}: "schema": {fault}')
    return JSONPrompt(str(record.get("id", number)), _messages(record, where), record["schema"])


def _messages(record: Mapping[str, Any], where: str) -> Conversation:
    prompt, messages = record.get("prompt"), record.get("messages")
    if isinstance(prompt, str) and prompt.strip() and messages is None:
        return ({"role": "user", "content": prompt},)
    if prompt is None and isinstance(messages, list) and messages and all(map(_is_message, messages)):
        return tuple({"role": each["role"], "content": each["content"]} for each in messages)
    raise CoreError(
        f'{where}: give either "prompt" (a text) or "messages" ([{{"role": "user", "content": "..."}}]), not both'
    )


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and value.get("role") in ROLES and isinstance(value.get("content"), str)
