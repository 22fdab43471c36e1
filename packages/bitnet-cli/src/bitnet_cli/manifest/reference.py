"""The manifest's reference as a Markdown page, from its JSON schema: every section and key, type, default and help."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence

from bitnet_cli.manifest import stage_needs
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
    seen: dict[tuple[str, ...], str] = {}
    for name, section in schema["properties"].items():
        if section.get("type") == "object":
            complete = schema["anyOf"][1]["properties"].get(name, {})
            lines += _tagged(name, section, complete) if "anyOf" in section else _table(name, section, complete, seen)
    return "\n".join(lines) + "\n"


def _stages() -> Iterator[str]:
    yield from (
        "",
        "## Which stage needs which section",
        "",
        "| stage | sections, beside [run] and [store] |",
        "|---|---|",
    )
    for stage in stage_needs.ALL:
        needs = ", ".join(f"[\\[{each}\\]](#{each})" for each in stage.needs)
        yield f"| {stage.name} | {needs} |"


def _tagged(name: str, section: Schema, complete: Schema) -> Iterator[str]:
    """A section whose keys depend on its kind: what kinds share stands once, above what each has for itself."""
    kinds = {each["title"]: each["properties"] for each in section["anyOf"]}
    yield from ("", f"## {name}", "", f"`kind` says which, and so which keys there are: {_code_list([*kinds])}.")
    required = {each["if"]["properties"]["kind"]["const"]: each["then"] for each in complete.get("allOf", ())}
    rows = {
        kind: list(_key_rows(_without_kind(keys), required.get(kind, {}).get("required", ())))
        for kind, keys in kinds.items()
    }
    shared = _shared(rows)
    for of, common in shared.items():
        yield from ("", f"### {_shared_title(name, of, len(kinds))}", "", *_HEAD, *common)
    tables: dict[str, tuple[Schema, list[str]]] = {}
    for kind, keys in kinds.items():
        groups = [of for of in shared if kind in of]
        titles = [_shared_title(name, of, len(kinds)) for of in groups]
        more = " Besides the keys of " + " and of ".join(map(_to, titles)) + ":" if titles else ""
        own = [row for row in rows[kind] if not any(row in shared[of] for of in groups)]
        if not own:
            more = more.removesuffix(":") + ", it has none." if more else more
        yield from ("", f'### [{name}] kind = "{kind}"', "", _sentence(keys["kind"]["description"]) + more)
        yield from ("", *_HEAD, *own) if own else ()
        for key, value in _tables(_without_kind(keys)):
            tables.setdefault(key, (value, []))[1].append(kind)
    for key, (value, having) in tables.items():  # kinds share them: each is shown once
        more = f" Of {_code_list(having)}." if len(having) < len(kinds) else ""
        yield from _table(f"{name}.{key}", value, {}, {}, more)


def _shared(rows: Mapping[str, Sequence[str]]) -> dict[tuple[str, ...], list[str]]:
    """Kinds → the rows that just these have alike, where it is more than a row or two."""
    owners: dict[str, list[str]] = {}
    for kind, each in rows.items():
        for row in each:
            owners.setdefault(row, []).append(kind)
    groups: dict[tuple[str, ...], list[str]] = {}
    for row, of in owners.items():
        groups.setdefault(tuple(of), []).append(row)
    return {of: common for of, common in groups.items() if len(of) > 1 and len(common) > 2}


def _shared_title(name: str, of: Sequence[str], kinds: int) -> str:
    return f"[{name}] of every kind" if len(of) == kinds else f"[{name}] of {', '.join(of)}"


def _without_kind(keys: Mapping[str, Schema]) -> dict[str, Schema]:
    return {key: value for key, value in keys.items() if key != "kind"}


def _table(
    name: str, section: Schema, complete: Schema, seen: dict[tuple[str, ...], str], more: str = ""
) -> Iterator[str]:
    """seen: the tables that stand above, by their rows, with their titles: one that is the same leads there."""
    title = name if "." not in name else f"[{name}]"
    rows = tuple(_key_rows(section["properties"], complete.get("required") or section.get("required", ())))
    before = seen.setdefault(rows, title) if len(rows) > 2 else title
    if before != title:
        more += f" Its keys are those of {_to(before)}."
    yield from ("", f"{'##' if title == name else '###'} {title}", "", _sentence(section["description"]) + more)
    yield from ("", *_HEAD, *rows) if rows and before == title else ()
    needs = complete.get("properties", {})
    for key, value in _tables(section["properties"]):
        yield from _table(f"{name}.{key}", value, needs.get(key, {}), seen)


def _to(title: str) -> str:
    """A link to a heading of the page."""
    anchor = re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-")
    return f"[{title.replace('[', chr(92) + '[').replace(']', chr(92) + ']')}](#{anchor})"


_HEAD = ("| key | type | default | |", "|---|---|---|---|")


def _key_rows(keys: Mapping[str, Schema], required: Sequence[str]) -> Iterator[str]:
    """The plain keys of a table."""
    for key, value in keys.items():
        if "properties" not in _inner(value):
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
    start = text[:1] if text[1:2].isupper() else text[:1].upper()  # vLLM is written so
    return _cell(start + text[1:]).rstrip(".").replace("``", "`") + "."


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;")
