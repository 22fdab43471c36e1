"""JSON in what a model answered: found, parsed, held against a schema."""

import json
import re
from collections.abc import Mapping
from typing import Any, NoReturn

_FENCE = re.compile(r"```(?:json)?\s*(.*?)```", re.DOTALL | re.IGNORECASE)
_LINE_START = re.compile(r"^[ \t]*(?=[{\[])", re.MULTILINE)


def parse_answer(text: str) -> Any:
    """The JSON value of an answer: in its code fence, else all of it, else the first that begins a line.

    Words before and after are forgiven, as long as the value stands on lines of its own; what JSON doesn't know (NaN,
    single quotes, a comma at the end) is not. Raises ValueError where there is none.
    """
    fenced = _FENCE.search(text)
    if fenced:
        return _loads(fenced[1])
    try:
        return _loads(text)
    except ValueError:
        decoder = json.JSONDecoder(parse_constant=_no_json)
        for start in _LINE_START.finditer(text):
            try:
                return decoder.raw_decode(text, start.end())[0]
            except (ValueError, RecursionError):
                continue
        raise


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
    return bool(validator.is_valid(value))


def schema_fault(schema: Any) -> str | None:
    """Why `schema` can't be used; None: it can."""
    from jsonschema.exceptions import SchemaError
    from jsonschema.validators import Draft202012Validator, validator_for

    if not isinstance(schema, dict):
        return "a schema is an object"
    outside = next((found for found in _references(schema) if not found.startswith("#")), None)
    if outside is not None:
        return f'"$ref": "{outside}" leads out of the schema, and nothing is fetched'
    try:
        validator_for(schema, default=Draft202012Validator).check_schema(schema)
    except SchemaError as error:
        return f"no JSON Schema: {error.message} (at {error.json_path})"
    return None


def _references(value: Any) -> list[str]:
    if isinstance(value, dict):
        own = [value["$ref"]] if isinstance(value.get("$ref"), str) else []
        return own + [found for item in value.values() for found in _references(item)]
    if isinstance(value, list):
        return [found for item in value for found in _references(item)]
    return []


def _loads(text: str) -> Any:
    try:
        return json.loads(text.strip(), parse_constant=_no_json)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error


def _no_json(name: str) -> NoReturn:
    raise ValueError(f"{name} is no JSON")
