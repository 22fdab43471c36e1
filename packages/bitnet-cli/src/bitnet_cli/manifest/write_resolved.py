"""A manifest back into TOML: every default and absolute path written out, ``extends`` and ``--set`` gone."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli_w

from bitnet_cli.manifest.manifest import MANIFEST_VERSION, SECTIONS, Evaluation, Exports, Manifest, Tagged


def resolved_toml(manifest: Manifest) -> str:
    """TOML that loads back to an equal manifest. It holds no secrets: a manifest only names their variables."""
    table: dict[str, Any] = {"manifest_version": MANIFEST_VERSION}
    for name in SECTIONS:
        section = getattr(manifest, name)
        if isinstance(section, Exports):
            table[name] = {"kinds": list(section.kinds), **_tables(section.options)}
        elif isinstance(section, Evaluation):
            table[name] = {**_plain(section.settings), **_tables(section.options)}
        elif isinstance(section, Tagged):
            table[name] = {"kind": section.kind, **_plain(section.options)}
        elif section is not None:
            table[name] = _plain(section)
    return tomli_w.dumps(table)


def _tables(options: Mapping[str, Any]) -> dict[str, Any]:
    """The plugins' options by name; an empty table is left out."""
    plain = {name: _plain(each) for name, each in options.items()}
    return {name: each for name, each in plain.items() if each}


def _plain(value: Any) -> Any:
    """TOML's own types; None is left out, because leaving a key out is what it means."""
    if attrs.has(type(value)):
        pairs = ((field.name, getattr(value, field.name)) for field in attrs.fields(type(value)) if field.init)
        return {name: _plain(item) for name, item in pairs if item is not None}
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, dict):
        return {name: _plain(item) for name, item in value.items() if item is not None}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return value
