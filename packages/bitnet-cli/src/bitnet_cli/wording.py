"""Words of messages: TOML values (never a secret, never more than a line) and the nearest name to a mistyped one."""

import datetime
import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any

_LONGEST = 60


_BARE_KEY = re.compile(r"[A-Za-z0-9_-]{1,60}")


_SIGNS = (
    {code: 0x2400 + code for code in range(0x20) if chr(code) not in "\t\n"}
    | {0x7F: 0x2421}
    | dict.fromkeys([*range(0x80, 0xA0), *range(0x202A, 0x202F), *range(0x2066, 0x206A)], 0xFFFD)
)
"""What drives a terminal, or turns a line around: ␛ and its like, which Unicode has as signs, or U+FFFD."""


_UNSHOWN_IN_JSON = re.compile("[\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""The same, but for what JSON writes as an escape anyway."""


# A path of pathlib's has one slash where a URL has two.
_USER_INFO = re.compile(r"\b([a-zA-Z][a-zA-Z0-9+.-]{0,30}:/{1,2})([^\s/?#\"'<>]{1,2000})@")


_SECRET_IN_QUERY = re.compile(
    r"(?i)([?&][a-z_-]{0,30}?(?:key|token|sig|signature|password|passwd|secret)=)[^\s&#\"'<>]+"
)


_KEY_SHAPES = re.compile(
    r"(sk|rk|pk)[-_][A-Za-z0-9_-]{12,}"  # OpenAI, Anthropic, OpenRouter, Stripe
    r"|(gsk|hf|xai|r8|ghp|gho|tgp|fw|pplx|csk|nvapi|github_pat|xox[abp])[-_][A-Za-z0-9_-]{16,}"
    r"|AIza[A-Za-z0-9_-]{20,}"  # Google
    r"|(AKIA|ASIA)[A-Z0-9]{12,}"  # AWS
)


def printable(text: str) -> str:
    """`text` for a terminal, a log or a page: no control characters but tabs and line ends, no password in a URL."""
    return without_passwords(text).translate(_SIGNS)


def plain_json(value: Any, indent: int | None = None) -> str:
    """JSON for people and programs: as `printable` where it is shown, and exact where it is read."""
    text = json.dumps(value, indent=indent, ensure_ascii=False, default=str)
    return _UNSHOWN_IN_JSON.sub(lambda match: f"\\u{ord(match[0]):04x}", without_passwords(text))


def without_passwords(text: str) -> str:
    """`text` with *** for passwords in URLs, before the host or in the query (a lone user stays, but for http)."""
    if ":/" not in text:
        return text
    text = _USER_INFO.sub(lambda match: f"{match[1]}***@" if _is_secret(match) else match[0], text)
    return _SECRET_IN_QUERY.sub(r"\1***", text)


def has_password(text: str) -> bool:
    """Whether a URL in `text` holds a password or a key."""
    return without_passwords(text) != text


def _is_secret(user_info: re.Match[str]) -> bool:
    return ":" in user_info[2] or user_info[1].lower().startswith("http")


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
