"""Values, keys and paths as messages show them: as TOML writes them, never a secret, never more than a line."""

import datetime
import json
import re
from typing import Any

from bitnet_cli.wording.hide_secrets import looks_like_key

_LONGEST = 60


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


def type_name(value: object) -> str:
    """TOML's name of a value's type, with its article."""
    match value:
        case bool():
            return "a boolean"
        case int():
            return "an integer"
        case float():
            return "a float"
        case str():
            return "a string"
        case list() | tuple():
            return "an array"
        case dict():
            return "a table"
        case datetime.datetime():
            return "a date-time"
        case datetime.date():
            return "a date"
        case datetime.time():
            return "a time"
    return f"a {type(value).__name__}"


def literal(value: Any) -> str:
    """A scalar as TOML writes it."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False)
    return str(value)


def got(value: Any) -> str:
    """``1.9 (a float)``; only the type where the value is long, nested or looks like a key."""
    name = type_name(value)
    if isinstance(value, dict | list | tuple) or (isinstance(value, str) and looks_like_key(value)):
        return name
    try:
        shown = literal(value)
    except ValueError:  # Python refuses to print integers of thousands of digits
        return name
    return f"{shown} ({name})" if len(shown) <= _LONGEST and shown.isprintable() else name


def key(name: str) -> str:
    """A key as TOML writes it: bare, or in quotes; cut where it is very long."""
    if _BARE_KEY.fullmatch(name):
        return name
    return json.dumps(name if len(name) <= _LONGEST else name[:_LONGEST] + "...")


def shown(path: object) -> str:
    r"""A path on one line: what can't be printed (controls, bytes that are no UTF-8) as ``\x1b`` or ``\udc80``."""
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in str(path))
