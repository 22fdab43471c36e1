"""Which of llama.cpp's pre-tokenizers cuts text as a tokenizer.json says: by what it does, not by the model's name."""

import json
from typing import Any, Final

from bitnet_core.errors import CoreError

_CONTRACTIONS = "(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_LETTERS_FIRST = r"[^\r\n\p{L}\p{N}]?"
_TAIL = r"\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_CASED = f"{_LETTERS_FIRST}{_UPPER}*{_LOWER}+%s|{_LETTERS_FIRST}{_UPPER}+{_LOWER}*%s|"
_PUNCTUATED = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|"

BYTE_LEVEL: Final = ("bytes", True)
"""GPT-2's own regular expression, then bytes."""
BYTES_ONLY: Final = ("bytes", False)

KNOWN: Final[dict[tuple[Any, ...], str]] = {
    (BYTE_LEVEL,): "gpt-2",
    (("digits", True), BYTE_LEVEL): "smollm",
    (
        ("split", rf"{_CONTRACTIONS}|{_LETTERS_FIRST}\p{{L}}+|\p{{N}}{{1,3}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"),
        BYTES_ONLY,
    ): "llama-bpe",
    (
        ("split", rf"{_CONTRACTIONS}|{_LETTERS_FIRST}\p{{L}}+|\p{{N}}| ?[^\s\p{{L}}\p{{N}}]+[\r\n]*|{_TAIL}"),
        BYTES_ONLY,
    ): "qwen2",
    (("split", _CASED % ("", "") + rf"\p{{N}}|{_PUNCTUATED}{_TAIL}"), BYTES_ONLY): "tekken",
    (
        (
            "split",
            _CASED % (f"{_CONTRACTIONS}?", f"{_CONTRACTIONS}?") + rf"\p{{N}}{{1,3}}|{_PUNCTUATED}{_TAIL}",
        ),
        BYTES_ONLY,
    ): "gpt-4o",
    (
        ("split", r"\p{N}{1,3}"),
        ("split", "[一-龥぀-ゟ゠-ヿ]+"),
        (
            "split",
            r"""[!"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"""
            r"""| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+""",
        ),
        BYTES_ONLY,
    ): "deepseek-v3",
}
"""The steps of a pre-tokenizer → the name that llama.cpp has for them."""


APPROXIMATED: Final = ("tekken", "gpt-4o")
"""llama.cpp's expressions for these ask for letters where the published ones also take marks."""


def pre_tokenizer_name(backend: dict[str, Any]) -> str:
    """``tokenizer.ggml.pre`` of a byte-level tokenizer.json. Raises CoreError for one that isn't known here."""
    name = KNOWN.get(tuple(_steps(backend.get("pre_tokenizer"))))
    if name is None:
        shown = json.dumps(backend.get("pre_tokenizer"), ensure_ascii=False)[:300]
        raise CoreError(
            f"gguf: this tokenizer cuts text in a way that isn't known to be one of llama.cpp's ({shown}), and another "
            "cut gives other tokens; export hf or packed"
        )
    return name


def _steps(pre_tokenizer: Any) -> list[tuple[Any, ...]]:
    """The pre-tokenizer as plain tuples, nested sequences opened."""
    if not isinstance(pre_tokenizer, dict):
        return [("none",)]
    match pre_tokenizer:
        case {"type": "Sequence", "pretokenizers": list(parts)}:
            return [step for part in parts for step in _steps(part)]
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": bool(regex)}:
            return [("bytes", regex)]
        case {"type": "Digits", "individual_digits": bool(single)}:
            return [("digits", single)]
        case {"type": "Split", "pattern": {"Regex": str(regex)}, "behavior": "Isolated", "invert": False}:
            # The same expression is written with \\r\\n or with the characters themselves.
            return [("split", regex.replace("\r", r"\r").replace("\n", r"\n"))]
    return [("other", pre_tokenizer.get("type"))]
