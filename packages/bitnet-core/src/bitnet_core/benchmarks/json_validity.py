"""``json_validity``: how many answers are JSON, and how many are JSON of the schema that its prompt asked for."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.benchmarks.contract import Benchmark, Conversation, Result, Score, Subject
from bitnet_core.benchmarks.json_answers import conforms, parse_answer, schema_fault
from bitnet_core.config.evaluate import JSONValidityOptions
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
        raise CoreError(f"{path}: can't be read ({error.strerror or error})", "correct the path") from error
    except UnicodeDecodeError as error:
        raise CoreError(f"{path}: no UTF-8 (byte {error.start})", "save it as UTF-8") from error
    prompts = tuple(_prompt(line, number, path) for number, line in enumerate(lines, 1) if line.strip())
    if not prompts:
        raise CoreError(f"{path}: there is no prompt in this file", "add one a line")
    return prompts[:limit]


def _prompt(line: str, number: int, path: Path) -> JSONPrompt:
    where = f"{path}:{number}"
    try:
        record = json.loads(line)
    except ValueError as error:
        raise CoreError(f"{where}: no JSON ({error})", "write one object a line") from error
    if not isinstance(record, dict):
        raise CoreError(f"{where}: not an object", 'write one, e.g. {"prompt": "...", "schema": {"type": "object"}}')
    if "schema" not in record:
        raise CoreError(f'{where}: "schema" is missing', "give the JSON Schema that the answer must be of")
    fault = schema_fault(record["schema"])
    if fault is not None:
        raise CoreError(f'{where}: "schema": {fault}', "give a JSON Schema that refers to nothing outside itself")
    return JSONPrompt(str(record.get("id", number)), _messages(record, where), record["schema"])


def _messages(record: Mapping[str, Any], where: str) -> Conversation:
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


def load_json_validity(options: JSONValidityOptions) -> Benchmark:
    """The benchmark with these prompts. Raises CoreError for a prompts file that can't be read."""
    prompts = load_json_prompts(options.prompts, options.max_prompts)

    def run(subject: Subject) -> Result:
        texts = subject.answers([prompt.messages for prompt in prompts], options.max_new_tokens)
        rows = []
        for prompt, text in zip(prompts, texts, strict=True):
            try:
                value = parse_answer(text)
            except ValueError:
                parsed = valid = False
            else:
                parsed, valid = True, conforms(value, prompt.schema)
            rows.append({"id": prompt.id, "text": text, "parsed": parsed, "valid": valid})
        scores = {
            name: Score(sums=[float(bool(row[name])) for row in rows], unit="share of answers")
            for name in ("parsed", "valid")
        }
        return Result(scores=scores, details={"max_new_tokens": options.max_new_tokens, "answers": rows})

    return run


def check(options: JSONValidityOptions) -> list[str]:
    """What is wrong with the prompts file, before anything else runs."""
    from bitnet_core.errors import CoreError

    try:
        load_json_prompts(options.prompts, options.max_prompts)
    except CoreError as error:
        return [str(error)]
    return []


def asks(options: JSONValidityOptions) -> tuple[int, int]:
    """(answers, tokens of each at most)."""
    return len(load_json_prompts(options.prompts, options.max_prompts)), options.max_new_tokens
