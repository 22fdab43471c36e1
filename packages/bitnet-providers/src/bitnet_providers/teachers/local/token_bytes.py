"""The bytes of each token of a vocabulary, exact where a token is only a part of a UTF-8 character."""

import json
import re
from functools import cache
from typing import Any

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def token_bytes(tokenizer: Any) -> tuple[bytes, ...]:
    """[vocabulary] bytes by id, for byte-level BPE and for SentencePiece-like vocabularies; b"" for unused ids."""
    byte_level = '"ByteLevel"' in json.dumps(json.loads(tokenizer.backend_tokenizer.to_str()).get("decoder"))
    added = {int(token_id): str(token.content).encode() for token_id, token in tokenizer.added_tokens_decoder.items()}
    by_id = {int(token_id): token for token, token_id in tokenizer.get_vocab().items()}
    convert = _byte_level if byte_level else _metaspace
    return tuple(
        added[token_id] if token_id in added else convert(by_id.get(token_id, ""))
        for token_id in range(max(by_id, default=-1) + 1)
    )


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that are visible stand for themselves, the others from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()


def _metaspace(token: str) -> bytes:
    match = _BYTE_TOKEN.fullmatch(token)
    return bytes([int(match[1], 16)]) if match else token.replace("▁", " ").encode()
