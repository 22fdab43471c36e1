"""``json_validity``: how many answers are JSON, and how many are JSON of the schema that its prompt asked for."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

import attrs

from bitnet_core.benchmarks.contract import Benchmark, Conversation, Result, Score, Subject
from bitnet_core.benchmarks.prompt_file import messages_of, read_records
from bitnet_core.config.evaluate import JSONValidityOptions
from bitnet_core.errors import CoreError

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_LINE_START = re.compile(r"^[ \t]*(?=[{\[])", re.MULTILINE)


def parse_answer(text: str) -> Any:
    """The JSON value of an answer: all of it, else its code fence, else the first line that begins an object or a list.

    Words before and after are forgiven, as long as the value stands on lines of its own; what JSON doesn't know (NaN,
    single quotes, a comma at the end) is not. Raises ValueError where there is none.
    """
    for part in (text, *(fenced[1] for fenced in _FENCE.finditer(text))):
        try:
            return _loads(part)
        except ValueError:
            continue
    start = _LINE_START.search(text)  # the first alone: what stands within a list that was cut off is not the answer
    if start is None:
        raise ValueError("there is no JSON in it")
    try:
        value, end = json.JSONDecoder(parse_constant=_no_json).raw_decode(text, start.end())
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if text[end:].partition("\n")[0].strip():
        raise ValueError("the line of its end goes on")
    return value


def parses(text: str) -> bool:
    try:
        parse_answer(text)
    except ValueError:
        return False
    return True


def conforms(value: Any, schema: Mapping[str, Any]) -> bool:
    """Whether `value` is of `schema` (JSON Schema, draft 2020-12 unless it says another). Nothing is fetched."""
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry

    # An empty registry: a $ref to somewhere else is not looked up on the network.
    validator = validator_for(schema, default=Draft202012Validator)(schema, registry=Registry())
    try:
        return bool(validator.is_valid(value))
    except (RecursionError, OverflowError):  # hundreds of lists in each other; a number that no float holds
        return False


def schema_fault(schema: Any) -> str | None:
    """Why `schema` can't be used; None: it can."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for
    from referencing import Registry, Resource
    from referencing.jsonschema import DRAFT202012

    if not isinstance(schema, dict):
        return "a schema is an object"
    if not isinstance(schema.get("$schema", ""), str):
        return 'no JSON Schema: "$schema" is a text'
    try:
        kind = validator_for(schema, default=Draft202012Validator)
        kind.check_schema(schema)
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        dead = _dead_reference(resource, Registry().resolver_with_root(resource))
        if dead is None:
            kind(schema, registry=Registry()).is_valid(None)
    except SchemaError as error:
        return f"no JSON Schema: {error.message} (at {error.json_path})"
    except RecursionError:
        return "nested too deeply, or it refers to itself without end"
    return dead


def _dead_reference(resource: Any, resolver: Any) -> str | None:
    """What is wrong with the first reference of a schema, or of a part of it, that finds nothing; None: all do."""
    from referencing.exceptions import Unresolvable

    contents = resource.contents
    for key in ("$ref", "$dynamicRef"):
        found = contents.get(key) if isinstance(contents, dict) else None
        if isinstance(found, str):
            try:
                resolver.lookup(found)
            except (Unresolvable, ValueError):
                where = "names nothing in" if found.startswith("#") else "leads out of"
                return f'"{key}": "{found}" {where} the schema, and nothing is fetched'
    parts = ((each, resolver.in_subresource(each)) for each in resource.subresources())
    return next((fault for part in parts if (fault := _dead_reference(*part)) is not None), None)


def _loads(text: str) -> Any:
    try:
        return json.loads(text.strip(), parse_constant=_no_json)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")


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
