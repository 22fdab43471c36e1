"""What may be shown: no password, no API key, nothing that drives a terminal."""

import json
import re
from typing import Any

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
