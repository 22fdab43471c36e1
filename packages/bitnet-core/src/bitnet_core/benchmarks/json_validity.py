"""``json_validity``: how many answers are JSON, and how many are JSON of the schema that its prompt asked for."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_core.benchmarks.contract import Benchmark, Conversation, Result, Score, Subject
from bitnet_core.benchmarks.json_parsing import conforms, parse_answer, schema_fault
from bitnet_core.benchmarks.prompt_file import messages_of, read_records
from bitnet_core.config.evaluate import JSONValidityOptions
from bitnet_core.errors import CoreError


@attrs.frozen
class JSONPrompt:
    id: str
    messages: Conversation
    schema: Mapping[str, Any]


def load_json_prompts(path: Path, limit: int | None = None) -> tuple[JSONPrompt, ...]:
    """The prompts of a ``.jsonl`` file, `limit` at most. Raises CoreError with file, line and fix."""
    records = read_records(path, "prompt", '{"prompt": "...", "schema": {"type": "object"}}')
    return tuple(_prompt(record, number, where) for number, (where, record) in enumerate(records, 1))[:limit]


def _prompt(record: Mapping[str, Any], number: int, where: str) -> JSONPrompt:
    if "schema" not in record:
        raise CoreError(f'{where}: "schema" is missing', "give the JSON Schema that the answer must be of")
    fault = schema_fault(record["schema"])
    if fault is not None:
        raise CoreError(f'{where}: "schema": {fault}', "give a JSON Schema that refers to nothing outside itself")
    return JSONPrompt(str(record.get("id", number)), messages_of(record, where), record["schema"])


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
