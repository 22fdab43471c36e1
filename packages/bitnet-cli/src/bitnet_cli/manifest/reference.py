"""The manifest's reference as a Markdown page, from its JSON schema: every section and key, type, default and help."""

import json
from collections.abc import Iterator, Mapping, Sequence

from bitnet_cli.manifest import stage_facts
from bitnet_cli.manifest.json_schema import Schema

INTRO = """\
# The manifest: every section and key

A manifest is a TOML file. `bitnet plan M.toml` checks it, all problems at once, and shows what it would do; what is
written here is made from the types that do the checking (`bitnet manifests reference`). A `kind` that another package
brings has its own keys: with that package installed, the command lists them too.

- **Types are strict.** `"200"` is no integer and `1` no boolean; an integer is taken where a number is asked for. An
  unknown key is an error, with the nearest name.
- **`extends = "base.toml"`** lays this file over another: tables merge, other values replace. A table with another
  `kind` replaces the whole table. `unset = ["collect.texts", "baseline"]` leaves keys and sections of that file out.
- **`--set train.steps=200`** changes one key from the command line. The value is TOML; a bare word is a string:
  `--set run.name=mine`.
- **A path** is relative to the file that it is written in. `${NAME}` and `${NAME:-default}` stand for environment
  variables, in paths only.
- **Secrets** are never written here: a key that ends in `_env` names the environment variable (or line of `.env`) that
  holds one.

Completion, help and checks while you type: [editors](editors.md).

## Top level

| key | type | default | |
|---|---|---|---|
"""


def reference(schema: Schema) -> str:
    """The page, from what `manifest_schema` gives."""
    lines = [INTRO.rstrip("\n")]
    lines += [
        _row(name, value, required=name in schema["anyOf"][1]["required"])
        for name, value in schema["properties"].items()
        if value.get("type") != "object"
    ]
    lines += _stages()
    for name, section in schema["properties"].items():
        if section.get("type") == "object":
            complete = schema["anyOf"][1]["properties"].get(name, {})
            lines += _tagged(name, section, complete) if "anyOf" in section else _table(name, section, complete)
    return "\n".join(lines) + "\n"


def _stages() -> Iterator[str]:
    yield from (
        "",
        "## Which stage needs which section",
        "",
        "| stage | sections, beside [run] and [store] |",
        "|---|---|",
    )
    for stage in stage_facts.ALL:
        needs = ", ".join(f"[\\[{each}\\]](#{each})" for each in stage.needs)
        yield f"| {stage.name} | {needs} |"


def _tagged(name: str, section: Schema, complete: Schema) -> Iterator[str]:
    kinds = [each["title"] for each in section["anyOf"]]
    yield from ("", f"## {name}", "", f"`kind` says which, and so which keys there are: {_code_list(kinds)}.")
    required = {each["if"]["properties"]["kind"]["const"]: each["then"] for each in complete.get("allOf", ())}
    tables: dict[str, tuple[Schema, list[str]]] = {}
    for each in section["anyOf"]:
        kind = each["title"]
        yield from ("", f'### [{name}] kind = "{kind}"', "", _sentence(each["properties"]["kind"]["description"]))
        keys = {key: value for key, value in each["properties"].items() if key != "kind"}
        yield from _rows(keys, required.get(kind, {}).get("required", ()))
        for key, value in _tables(keys):
            tables.setdefault(key, (value, []))[1].append(kind)
    for key, (value, of) in tables.items():  # kinds share them: each is shown once
        yield from _table(f"{name}.{key}", value, {}, f" Of {_code_list(of)}." if len(of) < len(kinds) else "")


def _table(name: str, section: Schema, complete: Schema, more: str = "") -> Iterator[str]:
    heading = f"## {name}" if "." not in name else f"### [{name}]"
    yield from ("", heading, "", _sentence(section["description"]) + more)
    yield from _rows(section["properties"], complete.get("required") or section.get("required", ()))
    needs = complete.get("properties", {})
    for key, value in _tables(section["properties"]):
        yield from _table(f"{name}.{key}", value, needs.get(key, {}))


def _rows(keys: Mapping[str, Schema], required: Sequence[str]) -> Iterator[str]:
    """The plain keys of a table."""
    plain = {key: value for key, value in keys.items() if "properties" not in _inner(value)}
    if plain:
        yield from ("", "| key | type | default | |", "|---|---|---|---|")
    for key, value in plain.items():
        yield _row(key, value, required=key in required)


def _tables(keys: Mapping[str, Schema]) -> Iterator[tuple[str, Schema]]:
    """The tables within a table; one by names of the reader's is called NAME."""
    for key, value in keys.items():
        inner = _inner(value)
        if "properties" in inner:
            yield key if inner is value else f"{key}.NAME", inner


def _inner(value: Schema) -> Schema:
    """The table itself, or that of each name in it."""
    each = value.get("additionalProperties")
    return each if isinstance(each, dict) and "properties" in each else value


def _row(key: str, value: Schema, required: bool) -> str:
    default = "**required**" if required else "none"
    if "default" in value:
        default = f"`{json.dumps(value['default'], ensure_ascii=False)}`"
    return f"| `{key}` | {_type(value)} | {default} | {_cell(value.get('description', ''))} |"


def _type(value: Schema) -> str:
    """``integer ≥ 1``; ``"a" or "b"``; ``array of strings``."""
    if "const" in value:
        return f"`{json.dumps(value['const'])}`"
    if "enum" in value:
        return _code_list([json.dumps(each) for each in value["enum"] if each != ""])
    if "anyOf" in value:
        return " or ".join(_type(each) for each in value["anyOf"])
    if value.get("format") == "path":
        return "path"
    if value.get("type") == "array":
        return f"array: {_type(value['items'])}"
    bounds = {"minimum": "≥", "exclusiveMinimum": ">", "maximum": "≤", "exclusiveMaximum": "<"}
    limits = [f"{sign} {value[bound]}" for bound, sign in bounds.items() if bound in value]
    type_ = value.get("type", "any")
    return f"{'table' if type_ == 'object' else type_} {', '.join(limits)}".strip()


def _code_list(words: list[str]) -> str:
    return ", ".join(f"`{word}`" for word in words)


def _sentence(text: str) -> str:
    return _cell(text[:1].upper() + text[1:]).rstrip(".").replace("``", "`") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
