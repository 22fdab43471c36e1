"""The manifest as a JSON schema, for editors: made of the same types, defaults and validators that check a manifest.

A schema says less than the loader does: rules between settings, and which sections a stage needs, are checked by
`bitnet plan` only. What the schema refuses, the loader refuses too.
"""

import re
import types
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, Union, get_args, get_origin

import attrs

from bitnet_cli.manifest.manifest import (
    EVALUATE_SECTION,
    EXPORT_SECTION,
    MANIFEST_VERSION,
    PLAIN_SECTIONS,
    SECTIONS,
    TAGGED_SECTIONS,
)
from bitnet_cli.manifest.stage_needs import STAGES

if TYPE_CHECKING:
    from bitnet_cli.plugins.catalog import Plugins

Schema = dict[str, Any]

DRAFT: Final = "http://json-schema.org/draft-07/schema#"
"""The newest draft that Taplo (Even Better TOML) reads; every later one can be asked for it."""

_SCALARS: Final[dict[Any, Schema]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    float: {"type": "number"},
    str: {"type": "string"},
    Path: {"type": "string"},
}
_BOUNDS: Final = {">=": "minimum", ">": "exclusiveMinimum", "<=": "maximum", "<": "exclusiveMaximum"}


def manifest_schema(plugins: "Plugins", own_only: bool = False) -> Schema:
    """The schema of a whole manifest, with the options of the installed plugins, or of bitnet's own alone.

    What has to be there (`[run] name`, a store's root) is asked for only where the file extends no other.
    """
    sections = {name: _section(name, plugins, own_only) for name in SECTIONS}
    required = {name: _required(section) for name, section in sections.items()}
    return {
        "$schema": DRAFT,
        "title": "A manifest of BitNet KDE",
        "type": "object",
        "additionalProperties": False,
        "properties": {
            "manifest_version": {"const": MANIFEST_VERSION, "description": "the version of this format"},
            "extends": {"type": "string", "format": "path", "description": "the manifest that this one is laid over"},
            "unset": {
                "type": "array",
                "items": {"type": "string"},
                "description": 'sections and keys of that manifest to leave out, e.g. ["baseline", "collect.texts"]',
            },
        }
        | {name: _without_required(section) for name, section in sections.items()},
        "anyOf": [
            {"required": ["extends"]},
            {
                "required": ["manifest_version", "run", "store"],
                "properties": {name: needs for name, needs in required.items() if needs},
            },
        ],
    }  # fmt: skip


def table_schema(cls: type) -> Schema:
    """A frozen attrs class as the schema of a TOML table; `required` holds the keys without a default."""
    attrs.resolve_types(cls)
    fields = [field for field in attrs.fields(cls) if field.init]
    schema: Schema = {
        "type": "object",
        "description": _first_paragraph(cls),
        "additionalProperties": False,
        "properties": {field.name: _setting(field) for field in fields},
    }
    required = [field.name for field in fields if field.default is attrs.NOTHING]
    return schema | ({"required": required} if required else {})


def _section(name: str, plugins: "Plugins", own_only: bool) -> Schema:
    if name in TAGGED_SECTIONS:
        records = _records(TAGGED_SECTIONS[name], plugins, own_only)
        return {"type": "object", "anyOf": [_tagged(each, record) for each, record in records.items()]}
    if name == EXPORT_SECTION:
        exporters = _records("exporter", plugins, own_only)
        kinds = {"type": "array", "items": {"type": "string"}, "description": "which exporters run"}
        section: Schema = {
            "type": "object",
            "description": "Files that others run; a table of options for each exporter.",
            "additionalProperties": False,
            "properties": {"kinds": kinds},
            "required": ["kinds"],
        }
        return _with_tables(section, "kinds", exporters)
    section = table_schema(PLAIN_SECTIONS[name])
    if name == EVALUATE_SECTION:
        return _with_tables(section, "benchmarks", _records("benchmark", plugins, own_only))
    if name == "run":  # the validator of the stages is a function: it can't be read
        section["properties"]["stages"]["items"]["enum"] = list(STAGES)
    return section


def _records(kind: str, plugins: "Plugins", own_only: bool) -> dict[str, Any]:
    """The plugins of a kind by name: all, or those of bitnet's own packages."""
    from bitnet_cli.plugins.catalog import OWN_DISTRIBUTIONS

    own = {row.name for row in plugins.all if row.kind == kind and row.distribution in OWN_DISTRIBUTIONS}
    return {name: record for name, record in plugins.records(kind).items() if name in own or not own_only}


def _with_tables(section: Schema, names: str, records: Mapping[str, Any]) -> Schema:
    """A section that names plugins in the array `names`, and has a table of options for each."""
    section["properties"][names]["items"]["enum"] = list(records)
    section["properties"] |= {name: table_schema(record.options) for name, record in records.items()}
    return section


def _tagged(kind: str, record: Any) -> Schema:
    table = table_schema(record.options)
    says = {"const": kind, "description": record.summary or table["description"]}
    return table | {
        "title": kind,
        "properties": {"kind": says} | table["properties"],
        "required": ["kind", *table.get("required", ())],
    }


def _setting(field: "attrs.Attribute[Any]") -> Schema:
    schema = _of_type(field.type)
    target = schema.get("items", schema) if _is_each(field.validator) else schema
    target |= _constraints(field.validator)
    if field.metadata.get("path"):
        schema["format"] = "path"  # unknown to validators, which then check nothing; the reference shows it
    default = _default(field)
    if default is not None:
        schema["default"] = default
    if field.metadata.get("help"):
        schema["description"] = field.metadata["help"]
    return schema


def _of_type(type_: Any) -> Schema:
    """The schema of a field's type. TOML has no null, so None is only ever a default."""
    origin, arguments = get_origin(type_), get_args(type_)
    if origin in (Union, types.UnionType):
        members = [_of_type(member) for member in arguments if member is not types.NoneType]
        distinct = [member for index, member in enumerate(members) if member not in members[:index]]
        return distinct[0] if len(distinct) == 1 else {"anyOf": distinct}
    if origin is Literal:
        return {"type": "string", "enum": list(arguments)}
    if origin in (tuple, list) or (isinstance(origin, type) and issubclass(origin, Sequence)):
        return {"type": "array", "items": _of_type(arguments[0])}
    if origin is dict or (isinstance(origin, type) and issubclass(origin, Mapping)):
        return {"type": "object", "additionalProperties": _of_type(arguments[1])}
    if attrs.has(type_):
        return table_schema(type_)
    return dict(_SCALARS.get(type_, {}))


def _constraints(validator: Any) -> Schema:
    """What attrs' own validators say that JSON Schema can say too; functions are left to the loader."""
    schema: Schema = {}
    for part in _parts(validator):
        if hasattr(part, "options"):  # in_
            schema["enum"] = list(part.options)
        elif hasattr(part, "bound") and part.bound not in (float("inf"), float("-inf")):  # ge, gt, le, lt
            schema[_BOUNDS[part.compare_op]] = part.bound
    return schema


def _parts(validator: Any) -> list[Any]:
    """A validator without `and_`, `optional` and `deep_iterable` around it."""
    for inner in ("validator", "member_validator"):
        if getattr(validator, inner, None) is not None:
            return _parts(getattr(validator, inner))
    many = getattr(validator, "_validators", None)
    return [validator] if many is None else [part for each in many for part in _parts(each)]


def _is_each(validator: Any) -> bool:
    return getattr(validator, "member_validator", None) is not None


def _default(field: "attrs.Attribute[Any]") -> Any:
    """The default as JSON has it; None where there is none, or where it is a table of defaults."""
    value = field.default
    if value is attrs.NOTHING or attrs.has(type(value)) or hasattr(value, "factory"):
        return None
    if isinstance(value, tuple):
        return list(value)
    return value.as_posix() if isinstance(value, Path) else value


def _first_paragraph(cls: type) -> str:
    text = " ".join((cls.__doc__ or "").split("\n\n")[0].split())
    return re.sub(r"^``[^`]*``:? *", "", text)  # where it stands: the reader of a schema knows


def _required(section: Schema) -> Schema:
    """What of `section` has to be there, as a schema of its own; empty where nothing has."""
    if "anyOf" in section:
        kinds = [(each["title"], [key for key in each["required"] if key != "kind"]) for each in section["anyOf"]]
        rules = [
            {"if": {"properties": {"kind": {"const": kind}}}, "then": {"required": keys}}
            for kind, keys in kinds
            if keys
        ]
        return {"required": ["kind"]} | ({"allOf": rules} if rules else {})
    inner = {key: needs for key, value in section.get("properties", {}).items() if (needs := _required(value))}
    own: Schema = {"required": section["required"]} if "required" in section else {}
    return own | ({"properties": inner} if inner else {})


def _without_required(section: Schema) -> Schema:
    """The section as a file may have it that extends another: any of its keys, and none of them."""
    bare = {key: value for key, value in section.items() if key != "required"}
    if "anyOf" in bare:
        bare["anyOf"] = [_without_required(each) for each in bare["anyOf"]]
    if "properties" in bare:
        bare["properties"] = {key: _without_required(value) for key, value in bare["properties"].items()}
    return bare
