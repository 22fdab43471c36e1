"""``--set train.steps=200``: one TOML value each, laid over the manifest."""

import re
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import tomli

from bitnet_cli.errors import Problem, UserError
from bitnet_cli.manifest.paths import remember_folder
from bitnet_cli.manifest.toml_files import Table, merge
from bitnet_cli.wording.hide_secrets import looks_like_key
from bitnet_cli.wording.toml_values import literal

_KEY = re.compile(r"[A-Za-z0-9_-]+(\.[A-Za-z0-9_-]+)*")
_ANOTHER_KEY = re.compile(r",\s*[a-z_]+(\.[a-z_]+)+\s*=")
_OPENS_VALUE = ('"', "'", "[", "{")


def apply_overrides(table: Table, overrides: Sequence[str], problems: list[Problem]) -> Table:
    """The table with every ``KEY=VALUE`` set; relative paths start at the working folder.

    What is wrong with one is appended to `problems`; the others count all the same.
    """
    above: Table = {}
    for text in overrides:
        try:
            name, value = parse_override(text)
            _put(above, name, value)
        except UserError as error:
            problems += error.problems
    return merge(table, remember_folder(above, Path.cwd()))


def parse_override(text: str) -> tuple[str, Any]:
    """``train.steps=200`` → ``("train.steps", 200)``. Raises UserError."""
    name, separator, value = (part.strip() for part in text.partition("="))
    if not separator or not _KEY.fullmatch(name):
        shown = name if name.isprintable() and not looks_like_key(name) else "..."
        raise UserError(f"--set {shown}: expected KEY=VALUE", "write it like --set train.steps=200")
    if name.partition(".")[0] == "extends":
        raise UserError("--set extends: can't be set", "write extends in the manifest")
    try:
        text.encode()
        parsed = tomli.loads(f"value = {value}")
    except tomli.TOMLDecodeError as error:
        if _is_bare(value):
            return name, value
        raise _not_a_value(name, value, error.msg) from None
    except UnicodeEncodeError:
        raise UserError(f"--set {name}: not UTF-8", "type it in UTF-8") from None
    except (RecursionError, ValueError):
        raise UserError(
            f"--set {name}: nested too deep, or an integer that does not fit in 64 bits", "write a smaller value"
        ) from None
    if set(parsed) != {"value"}:
        raise UserError(f"--set {name}: expected one value", "give each key its own --set")
    return name, parsed["value"]


def _is_bare(value: str) -> bool:
    """Whether it is a word or a path: a string, then. Where the key takes none, the check of its type says so."""
    odd = not value or value.startswith(_OPENS_VALUE) or not value.isprintable()
    return not odd and not looks_like_key(value) and not _ANOTHER_KEY.search(value)


def _not_a_value(name: str, value: str, reason: str) -> UserError:
    if not value:
        return UserError(
            f"--set {name}: there is no value after =", f"write --set {shlex.quote(name + '=' + literal(''))}"
        )
    if looks_like_key(value):
        return UserError(
            f"--set {name}: this looks like an API key", "put it in .env and name its variable in a *_env key"
        )
    if _ANOTHER_KEY.search(value) and value.isprintable():
        return UserError(f"--set {name}={value}: expected one value", "give each key its own --set")
    return UserError(f"--set {name}: not a TOML value: {reason}", "write a number, true, an array or a string")


def _put(table: Table, name: str, value: Any) -> None:
    """Set a dotted name, making the tables on the way; a later --set wins."""
    *parents, last = name.split(".")
    for index, parent in enumerate(parents):
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            before = ".".join(parents[: index + 1])
            raise UserError(f"--set {name}: another --set makes {before} a value, not a table", "drop one of the two")
    old = table.get(last)
    table[last] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
