"""The student's tokenizer as llama.cpp reads it: tokens, their types, merges or scores, special ones, and the
pre-tokenizer, which is found by what it does to text, not by the model's name.
"""

import json
from itertools import pairwise
from typing import Any, Final, Literal

import attrs

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
            f"gguf: this tokenizer cuts text in a way that isn't known to be one of llama.cpp's ({shown}), and "
            "another cut gives other tokens",
            "export hf or packed",
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


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = 1, 2, 3, 4, 5, 6
"""llama.cpp's token types."""


_SPECIAL = ("bos", "eos", "unk", "pad")


NEVER = "[never] [never]"
"""A merge of two texts that are no single bytes and that no merge makes: it can't happen."""


@attrs.frozen
class Vocabulary:
    """What goes under ``tokenizer.ggml.*``."""

    model: Literal["gpt2", "llama"]
    """gpt2: byte-level BPE with merges; llama: SentencePiece's BPE with scores."""
    pre: str
    tokens: tuple[str, ...]
    types: tuple[int, ...]
    merges: tuple[str, ...] = ()
    scores: tuple[float, ...] = ()
    special: dict[str, int] = attrs.field(factory=dict)
    """bos, eos, unk, pad → id."""
    add_bos: bool = False
    add_eos: bool = False
    add_space_prefix: bool = False
    notes: tuple[str, ...] = ()


def vocabulary_of(tokenizer: Any, size: int) -> Vocabulary:
    """The vocabulary of a fast tokenizer, filled up to the model's `size` with unused tokens.

    Raises:
        CoreError: a tokenizer that llama.cpp would not read as this one.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    model = backend["model"]
    kind, is_byte_level = model.get("type"), "ByteLevel" in json.dumps(backend.get("pre_tokenizer"))
    if kind == "BPE" and is_byte_level:
        found = _byte_level(backend)
    elif kind == "BPE" and model.get("byte_fallback"):
        found = _sentencepiece(backend)
    else:
        raise CoreError(
            f"gguf: the student's tokenizer is of type {kind}, which this version does not write for llama.cpp "
            "(byte-level BPE and SentencePiece BPE are)",
            "export hf or packed, or train with another tokenizer",
        )
    tokens, types = _tokens(backend, size, has_bytes=found.model == "llama")
    scores = tuple(-float(id_) for id_ in range(size)) if found.model == "llama" else ()
    ids = {name: getattr(tokenizer, f"{name}_token_id") for name in _SPECIAL}
    probe = tokenizer("a").input_ids
    return attrs.evolve(
        found,
        tokens=tokens,
        types=types,
        scores=scores,
        special={name: id_ for name, id_ in ids.items() if id_ is not None},
        add_bos=ids["bos"] is not None and probe[:1] == [ids["bos"]],
        add_eos=ids["eos"] is not None and probe[-1:] == [ids["eos"]],
    )


def _byte_level(backend: dict[str, Any]) -> Vocabulary:
    normalizer = _normalizer(backend)
    if normalizer not in ("", "NFC"):
        raise CoreError(
            f"gguf: this tokenizer changes text ({normalizer}) before it cuts it, which llama.cpp would not do",
            "export hf or packed",
        )
    pre = pre_tokenizer_name(backend)
    notes = []
    if normalizer:
        notes.append("llama.cpp leaves out the tokenizer's NFC: text in another Unicode form gets other tokens")
    if pre in APPROXIMATED:
        notes.append(f"llama.cpp's {pre} cuts words of scripts with combining marks (Devanagari, Thai) elsewhere")
    # A tokenizer of single bytes has no merges. llama.cpp wants the list all the same, and a GGUF's is never empty.
    merges = _merges(backend) or (NEVER,)
    return Vocabulary("gpt2", pre, (), (), merges=merges, notes=tuple(notes))


def _normalizer(backend: dict[str, Any]) -> str:
    """Its type, of a sequence the types in it; empty where the text stays as it is."""
    found = backend.get("normalizer") or {}
    if found.get("type") == "Sequence":
        return ", ".join(str(each.get("type")) for each in found["normalizers"])
    return str(found.get("type", ""))


def _sentencepiece(backend: dict[str, Any]) -> Vocabulary:
    """llama.cpp merges by the result's score; its id gives one, if the merges come in the order of their results."""
    vocab = backend["model"]["vocab"]
    results = [vocab.get(merge.replace(" ", ""), -1) for merge in _merges(backend)]
    if any(after < before for before, after in pairwise([0, *results])):
        raise CoreError(
            "gguf: this SentencePiece tokenizer's merges are not in the order of its ids, from which "
            "llama.cpp's scores would be made",
            "export hf or packed",
        )
    return Vocabulary("llama", "default", (), (), add_space_prefix=_prefixes_a_space(backend))


def _prefixes_a_space(backend: dict[str, Any]) -> bool:
    pre, normalizer = backend.get("pre_tokenizer") or {}, json.dumps(backend.get("normalizer"))
    if pre.get("type") == "Metaspace":
        return pre.get("prepend_scheme") != "never"
    if '"Prepend"' in normalizer or '"Replace"' in normalizer:
        return '"Prepend"' in normalizer
    raise CoreError("gguf: this tokenizer's handling of spaces is not SentencePiece's", "export hf or packed")


def _merges(backend: dict[str, Any]) -> tuple[str, ...]:
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"])


def _tokens(backend: dict[str, Any], size: int, *, has_bytes: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{id_}]" for id_ in range(size)]
    types = [UNUSED] * size
    unknown = backend["model"].get("unk_token")
    for text, id_ in backend["model"]["vocab"].items():
        is_byte = has_bytes and len(text) == 6 and text.startswith("<0x") and text.endswith(">")
        tokens[id_], types[id_] = text, BYTE if is_byte else UNKNOWN if text == unknown and has_bytes else NORMAL
    for added in backend["added_tokens"]:
        if types[added["id"]] != UNKNOWN:
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        tokens[added["id"]] = added["content"]
    return tuple(tokens), tuple(types)
