"""The bytes of each token of a vocabulary, exact where a token is only a part of a UTF-8 character."""

import json
from functools import cache
from typing import Any

from tokenizers import decoders


def token_bytes(tokenizer: Any) -> tuple[bytes, ...]:
    """[vocabulary] bytes by id, for byte-level BPE and for SentencePiece-like vocabularies; b"" for unused ids.

    They are what the tokenizer's own decoder makes of a token that stands behind another one; where that is only a part
    of a character, it is found by GPT-2's byte alphabet, or in ``<0xNN>``. Added tokens are decoded as all others are
    (Gemma's ``▁▁`` are two spaces); special ones stand for their text.
    """
    backend = tokenizer.backend_tokenizer
    record = json.loads(backend.to_str())
    byte_level = '"ByteLevel"' in json.dumps(record["decoder"] or record["pre_tokenizer"])
    by_rule = _byte_level if byte_level else _byte_piece
    decoder = backend.decoder or (decoders.ByteLevel() if byte_level else _SENTENCEPIECE)
    before = decoder.decode(["a"])

    def spelt(token: str) -> bytes:
        text = decoder.decode(["a", token])[len(before) :]
        return by_rule(token) if "\ufffd" in text and "\ufffd" not in token else text.encode()

    special = {int(id_): str(token.content) for id_, token in tokenizer.added_tokens_decoder.items() if token.special}
    by_id = {int(id_): token for token, id_ in tokenizer.get_vocab().items()}
    return tuple(
        special[id_].encode() if id_ in special else spelt(by_id[id_]) if id_ in by_id else b""
        for id_ in range(max(by_id, default=-1) + 1)
    )


_SENTENCEPIECE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


@cache
def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins: bytes that are visible stand for themselves, the others from U+0100 on."""
    visible = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + n): byte for n, byte in enumerate(hidden)}


def _byte_level(token: str) -> bytes:
    table = _byte_of_character()
    return bytes(table[character] for character in token)


def _byte_piece(token: str) -> bytes:
    """``<0xNN>``"""
    return bytes([int(token[3:5], 16)])
