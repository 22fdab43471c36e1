"""A manifest as TOML: its file, with `extends` followed, as a table; and a checked one written out again."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
import tomli
import tomli_w

from bitnet_cli.errors import RefusedError, UserError
from bitnet_cli.manifest.manifest import MANIFEST_VERSION, SECTIONS, Evaluation, Exports, Manifest, Tagged
from bitnet_cli.manifest.paths import absolute, remember_folder
from bitnet_cli.wording.did_you_mean import did_you_mean, nearest
from bitnet_cli.wording.hide_secrets import looks_like_key
from bitnet_cli.wording.toml_values import got, shown

Table = dict[str, Any]

_NAME_ONE = "name a manifest; `bitnet manifests ls` shows those that come with bitnet"


def read_manifest(path: Path, environment: Mapping[str, str]) -> Table:
    """The table of `path` laid over those that it extends, less what it unsets; strings remember their folder.

    Raises UserError.
    """
    layers: list[tuple[Table, Any, Path]] = []
    seen: list[Path] = []
    next_path: Path | None = path
    while next_path is not None:
        file = Path(os.path.realpath(next_path))
        if file in seen:
            circle = " → ".join(shown(each.name) for each in [*seen[seen.index(file) :], file])
            where = shown(next_path)
            raise UserError(f"{where}: extends runs in a circle: {circle}", "remove one of these extends lines")
        seen.append(file)
        table = read_toml(next_path)
        _check_version(table, next_path)
        extends, unset = table.pop("extends", None), table.pop("unset", [])
        if unset != [] and extends is None:
            raise UserError(f"{shown(next_path)}: unset: this file extends none", "take the line out")
        layers.append((table, unset, next_path))
        next_path = None if extends is None else _extended(extends, next_path, environment)
    merged: Table = {}
    for table, unset, file in reversed(layers):
        merged = merge(_without(merged, unset, file), table)
    return merged


def _without(table: Table, unset: Any, path: Path) -> Table:
    """The table without the sections and keys that `unset` names. Raises UserError."""
    where = f"{shown(path)}: unset"
    if not isinstance(unset, list) or not all(isinstance(name, str) for name in unset):
        raise UserError(f"{where}: expected an array of strings, got {got(unset)}", 'write unset = ["collect.texts"]')
    for name in unset:
        *sections, key = str(name).split(".")
        copy = within = dict(table)
        for section in sections:
            inner = within.get(section)
            within[section] = dict(inner) if isinstance(inner, dict) else {}
            within = within[section]
        if key not in within:
            raise UserError(f'{where}: what it extends has no "{shown(name)}"', did_you_mean(name, _dotted(table)))
        del within[key]
        table = copy
    return table


def _dotted(table: Table, before: str = "") -> list[str]:
    """Every section and key, as `unset` writes it."""
    names = []
    for name, value in table.items():
        names.append(f"{before}{name}")
        names += _dotted(value, f"{before}{name}.") if isinstance(value, dict) else []
    return names


def read_toml(path: Path) -> Table:
    """One file. Raises UserError where it is missing, unreadable, not UTF-8 or not TOML."""
    where = shown(path)
    try:
        text = path.read_bytes().decode("utf-8-sig")
    except FileNotFoundError:
        more, fix = _other_manifests(path)
        raise UserError(f"{where}: no such file{more}", fix) from None
    except IsADirectoryError:
        more, fix = _other_manifests(path / "x")
        raise UserError(f"{where}: this is a folder, not a manifest{more}", fix) from None
    except NotADirectoryError:
        raise UserError(f"{where}: no such file: a part of this path is a file, not a folder", _NAME_ONE) from None
    except UnicodeDecodeError as error:
        raise UserError(f"{where}: not UTF-8 (byte {error.start})", "save the file in UTF-8") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else str(error)
        raise UserError(f"{where}: can't be read: {reason}", "make it readable, or name another file") from None
    try:
        table = tomli.loads(text)
    except tomli.TOMLDecodeError as error:
        raise UserError(f"{where}:{error.lineno}:{error.colno}: not TOML: {error.msg}", "correct that line") from None
    except RecursionError:
        raise UserError(f"{where}: not a manifest: arrays or tables are nested too deep", _NAME_ONE) from None
    except ValueError:  # an integer of thousands of digits
        raise UserError(f"{where}: not a manifest: an integer does not fit in 64 bits", "write a smaller one") from None
    marked: Table = remember_folder(table, Path(os.path.abspath(path)).parent)
    return marked


def merge(below: Table, above: Table) -> Table:
    """`above` laid over `below`: tables merge, everything else replaces.

    A table whose `kind` differs replaces the whole table below it: the old kind's options mean nothing to the new one.
    """
    merged = dict(below)
    for name, value in above.items():
        old = merged.get(name)
        if isinstance(old, dict) and isinstance(value, dict) and _same_kind(old, value):
            merged[name] = merge(old, value)
        else:
            merged[name] = value
    return merged


def _same_kind(below: Table, above: Table) -> bool:
    return "kind" not in above or "kind" not in below or below["kind"] == above["kind"]


def _check_version(table: Table, path: Path) -> None:
    where, version = shown(path), table.get("manifest_version", MANIFEST_VERSION)
    if isinstance(version, bool) or not isinstance(version, int):
        raise UserError(
            f"{where}: manifest_version: expected {MANIFEST_VERSION}, got {got(version)}",
            f"write manifest_version = {MANIFEST_VERSION}",
        )
    if version != MANIFEST_VERSION:
        raise UserError(
            f"{where}: manifest_version: this bitnet reads version {MANIFEST_VERSION}, the file says {got(version)}",
            f"update bitnet-cli, or write manifest_version = {MANIFEST_VERSION}",
        )


def _extended(extends: Any, path: Path, environment: Mapping[str, str]) -> Path:
    where = shown(path)
    if not isinstance(extends, str):
        raise UserError(
            f"{where}: extends: expected one path in quotes, got {got(extends)}", 'write extends = "base.toml"'
        )
    if looks_like_key(extends):
        raise UserError(f"{where}: extends: this looks like an API key", "name a manifest, and put the key in .env")
    try:
        return absolute(extends, environment)
    except RefusedError as refused:
        raise UserError(f"{where}: extends: {refused.why}", refused.fix) from None


def _other_manifests(path: Path) -> tuple[str, str]:
    """What is wrong with the folder, if anything, and the fix: a name that is near, or those that are there."""
    try:
        names = sorted(file.name for file in path.parent.glob("*.toml") if file.name != "pyproject.toml")
        usual = [] if path.is_absolute() else sorted(file.stem for file in Path("manifests").glob("*.toml"))
    except (OSError, ValueError):
        return "", _NAME_ONE
    match = nearest(path.name, names)
    if match is not None:
        return "", f"did you mean {shown(path.parent / match)}?"
    match = nearest(path.stem, usual)
    if match is not None:  # another folder, or only the run's name
        return "", f"did you mean {Path('manifests', match + '.toml')}?"
    if not path.parent.is_dir():
        return f"; there is no folder {shown(path.parent)}", _NAME_ONE
    if not names:
        return f"; {shown(path.parent)} holds no .toml file", _NAME_ONE
    return "", f"name one of those there: {shown(', '.join(names[:10]))}"


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
