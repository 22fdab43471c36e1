"""JSON as some servers write it, read all the same.

Python's own write NaN and -Infinity, which JSON doesn't have; JavaScript's half a surrogate pair where a character was
cut; a token without a text may be null.
"""

import json
import sys
from collections.abc import Callable
from typing import Any

from bitnet_providers.teachers.common.token_bytes import whole_characters


def mended(text: str, change: Callable[[Any], Any] = lambda record: record) -> tuple[Any, bytes]:
    """What `text` says, and plain JSON of it, changed: with whole characters, without numbers that JSON doesn't know.

    Raises ValueError for what is no JSON.
    """
    try:
        record = json.loads(text, parse_constant=lambda _: None, strict=False)
        return record, json.dumps(_plain(change(record))).encode()
    except RecursionError:
        raise ValueError("nested too deep") from None


def text_of(body: bytes | str) -> str:
    if isinstance(body, str):
        return body
    try:
        return body.decode("utf-8-sig", "surrogatepass")
    except UnicodeDecodeError:
        return body.decode("utf-8-sig", "replace")


def _plain(value: Any, name: str = "") -> Any:
    if isinstance(value, int | float) and not abs(value) <= sys.float_info.max:  # more than JSON's readers take
        return None
    if isinstance(value, str):
        return whole_characters(value)
    if isinstance(value, list):
        return [_plain(each, name) for each in value]
    if isinstance(value, dict):
        return {whole_characters(key): _plain(each, key) for key, each in value.items()}
    return "" if value is None and name in ("token", "decoded_token", "tokens") else value
