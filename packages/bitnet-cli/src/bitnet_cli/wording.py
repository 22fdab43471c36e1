"""Words of messages: TOML values (never a secret, never more than a line) and the nearest name to a mistyped one."""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 60


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


_KEY_SHAPES = re.compile(
    r"(sk|rk|pk)[-_][A-Za-z0-9_-]{12,}"  # OpenAI, Anthropic, OpenRouter, Stripe
    r"|(gsk|hf|xai|r8|ghp|gho|tgp|fw|pplx|csk|nvapi|github_pat|xox[abp])[-_][A-Za-z0-9_-]{16,}"
    r"|AIza[A-Za-z0-9_-]{20,}"  # Google
    r"|(AKIA|ASIA)[A-Z0-9]{12,}"  # AWS
)


def looks_like_key(text: str) -> bool:
    """Whether `text` holds what looks like an API key (by the prefixes that providers use)."""
    return _KEY_SHAPES.search(text) is not None


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


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The one of `known` that `word` most likely stands for, or None where nothing is near."""
    by_plain_name = {_plain(name): name for name in known}
    match = difflib.get_close_matches(_plain(word)[:80], by_plain_name, n=1, cutoff=0.6)
    return by_plain_name[match[0]] if match else None


def did_you_mean(word: str, known: Sequence[str]) -> str:
    """The fix for a mistyped name: ``did you mean "x"?`` where something is near, else the list of what there is."""
    match = nearest(word, known)
    if match is not None:
        return f'did you mean "{match}"?'
    return f"choose one of: {', '.join(known)}" if known else ""


def _plain(name: str) -> str:
    return name.casefold().replace("-", "_")
