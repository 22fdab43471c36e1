"""The student's tokenizer as llama.cpp reads it: tokens, their types, merges or scores, special ones, and the
pre-tokenizer, which is found by what it does to text, not by the model's name.
"""

import json
from collections.abc import Iterator, Sequence
from itertools import pairwise
from typing import Any, Final, Literal

import attrs
from tokenizers import Tokenizer, models

from bitnet_core.errors import CoreError
from bitnet_core.traces.tokenizer import byte_alphabet, chat_template

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


LOOKS_UP: Final = ("llama-bpe", "tekken")
"""With these, llama.cpp takes a word that is a token as it is, before its merges."""


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
    whole_words: tuple[str, ...] = ()
    """Texts of tokens that no merges make: they come out only where a word is looked up before it is merged."""
    notes: tuple[str, ...] = ()

    def add_to(self, writer: Any, chat_template: str | None) -> None:
        """Write it, and the Jinja template of a chat, into a file of gguf's `GGUFWriter`."""
        writer.add_tokenizer_model(self.model)
        writer.add_tokenizer_pre(self.pre)
        writer.add_token_list(self.tokens)
        writer.add_token_types(self.types)
        if self.scores:
            writer.add_token_scores(self.scores)
        if self.merges:
            writer.add_token_merges(self.merges)
        for name, id_ in self.special.items():
            getattr(writer, f"add_{name}_token_id")(id_)
        writer.add_add_bos_token(self.add_bos)
        writer.add_add_eos_token(self.add_eos)
        writer.add_add_space_prefix(self.add_space_prefix)
        if chat_template is not None:
            writer.add_chat_template(chat_template)


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
    # llama.cpp and Ollama put these around a chat too, where the template says all that there is.
    probe = [] if chat_template(tokenizer) else tokenizer("a").input_ids
    return attrs.evolve(
        found,
        tokens=tokens,
        types=types,
        scores=scores,
        special={name: id_ for name, id_ in ids.items() if id_ is not None},
        add_bos=ids["bos"] is not None and probe[:1] == [ids["bos"]],
        add_eos=ids["eos"] is not None and probe[-1:] == [ids["eos"]],
        notes=(*found.notes, *_notes_on_added_tokens(backend)),
    )


def _byte_level(backend: dict[str, Any]) -> Vocabulary:
    _check_plain_bpe(backend)
    normalizers = [each.get("type") for each in _parts(backend.get("normalizer"), "normalizers")]
    if set(normalizers) - {"NFC"}:
        raise CoreError(_changes_text(normalizers), _ANOTHER)
    pre = pre_tokenizer_name(backend)
    notes = []
    if normalizers:
        notes.append("llama.cpp leaves out the tokenizer's NFC: text in another Unicode form gets other tokens")
    if pre in APPROXIMATED:
        notes.append(f"llama.cpp's {pre} cuts words of scripts with combining marks (Devanagari, Thai) elsewhere")
    looks_up = bool(backend["model"].get("ignore_merges"))
    opposite = looks_up != (pre in LOOKS_UP)
    words = _unmerged_words(backend, whole=opposite)
    if words and opposite:
        raise CoreError(
            f"gguf: this tokenizer {'takes' if looks_up else 'does not take'} a word that is a token as it is, before "
            f"its merges (ignore_merges), llama.cpp with the pre-tokenizer {pre} does the opposite, and {len(words)} "
            f"tokens have no merges ({words[0]!r})",
            _ANOTHER,
        )
    # A tokenizer of single bytes has no merges. llama.cpp wants the list all the same, and a GGUF's is never empty.
    merges = _merges(backend) or (NEVER,)
    return Vocabulary("gpt2", pre, (), (), merges=merges, whole_words=words, notes=tuple(notes))


_ANOTHER = "export hf or packed, or train with another tokenizer"


def _changes_text(how: Sequence[Any]) -> str:
    return (
        f"gguf: this tokenizer changes text ({', '.join(map(str, how))}) before it cuts it, as llama.cpp would not do"
    )


def _check_plain_bpe(backend: dict[str, Any]) -> None:
    """Raises CoreError for what tokenizers' BPE can do and llama.cpp's can't."""
    for name in ("continuing_subword_prefix", "end_of_word_suffix", "dropout"):
        if backend["model"].get(name):
            raise CoreError(f"gguf: this tokenizer's BPE has a {name}, which llama.cpp does not know", _ANOTHER)


def _unmerged_words(backend: dict[str, Any], *, whole: bool) -> tuple[str, ...]:
    """The text of every token that merging its bytes doesn't give back, in the order of ids; merging them all takes
    seconds, so without `whole` only of those that no merge ends in."""
    model = backend["model"]
    added = {token["content"] for token in backend["added_tokens"]}
    words = [
        word for word in sorted(model["vocab"], key=model["vocab"].__getitem__) if len(word) > 1 and word not in added
    ]
    ends = {merge.replace(" ", "") for merge in _merges(backend)}
    found = [word for word in words if word not in ends]
    if whole:
        pairs = [(left, right) for left, _, right in (merge.partition(" ") for merge in _merges(backend))]
        merger = Tokenizer(models.BPE(model["vocab"], pairs))
        found = [word for word, cut in zip(words, merger.encode_batch(words), strict=True) if len(cut.ids) != 1]
    alphabet = byte_alphabet()
    texts = (bytes(alphabet[letter] for letter in word) for word in found if alphabet.keys() >= set(word))
    return tuple(text.decode("utf-8", "replace") for text in texts)


def _notes_on_added_tokens(backend: dict[str, Any]) -> Iterator[str]:
    for switch, what in (
        ("lstrip", "the white space before"),
        ("rstrip", "the white space after"),
        ("single_word", "the letters beside"),
    ):
        if names := [token["content"] for token in backend["added_tokens"] if token[switch]]:
            shown = ", ".join(names[:3]) + (", ..." if len(names) > 3 else "")
            yield f"llama.cpp does not look at {what} {shown} ({switch}): write chats without it"


def _parts(step: Any, inner: str) -> list[dict[str, Any]]:
    """A normalizer or pre-tokenizer as a list, nested sequences opened."""
    if not step:
        return []
    return [part for each in step[inner] for part in _parts(each, inner)] if step["type"] == "Sequence" else [step]


def _sentencepiece(backend: dict[str, Any]) -> Vocabulary:
    """llama.cpp merges by the result's score; its id gives one, if the merges come in the order of their results."""
    _check_plain_bpe(backend)
    vocab = backend["model"]["vocab"]
    results = [vocab.get(merge.replace(" ", ""), -1) for merge in _merges(backend)]
    if any(after < before for before, after in pairwise([0, *results])):
        raise CoreError(
            "gguf: this SentencePiece tokenizer's merges are not in the order of its ids, from which llama.cpp's "
            "scores would be made",
            _ANOTHER,
        )
    if missing := [byte for byte in range(256) if f"<0x{byte:02X}>" not in vocab]:
        raise CoreError(
            f"gguf: this SentencePiece tokenizer has no token <0x{missing[0]:02X}> ({len(missing)} of 256 bytes are "
            "missing), without which llama.cpp ends at text that has it",
            _ANOTHER,
        )
    added = {token["content"] for token in backend["added_tokens"]}
    pieces = [piece for piece in vocab if piece not in added and not _is_byte(piece)]
    normalizers = _parts(backend.get("normalizer"), "normalizers")
    others = [step["type"] for step in normalizers if step not in _SPACES]
    if set(others) - {"NFC"}:
        raise CoreError(_changes_text(others), _ANOTHER)
    prefixes = replaces = False
    for step in normalizers:
        prefixes, replaces = prefixes or step["type"] == "Prepend", replaces or step["type"] == "Replace"
    for step in _parts(backend.get("pre_tokenizer"), "pretokenizers"):
        match step:
            case {"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": split}:
                prefixes, replaces = prefixes or scheme != "never", True
                crossing = next((piece for piece in pieces if "▁" in piece[1:]), None) if split else None
            case {"type": "Digits", "individual_digits": True}:
                crossing = next((piece for piece in pieces if len(piece) > 1 and any(map(str.isnumeric, piece))), None)
            case {"type": "Split", "pattern": {"String": " "}} if replaces:
                crossing = None  # no space is left to split at: Gemma
            case _:
                crossing = step["type"]
        if crossing is not None:
            raise CoreError(
                f"gguf: this tokenizer cuts text ({step['type']}) before it merges, llama.cpp's SentencePiece doesn't, "
                f"and it makes a difference ({crossing!r})",
                _ANOTHER,
            )
    if not replaces:
        raise CoreError("gguf: this tokenizer's handling of spaces is not SentencePiece's", _ANOTHER)
    notes = ("llama.cpp leaves out the tokenizer's NFC: text in another Unicode form gets other tokens",)
    return Vocabulary("llama", "default", (), (), add_space_prefix=prefixes, notes=notes if others else ())


_SPACES = (
    {"type": "Prepend", "prepend": "▁"},
    {"type": "Replace", "pattern": {"String": " "}, "content": "▁"},
)
"""What SentencePiece itself does to text, as normalizers."""


def _is_byte(piece: str) -> bool:
    return len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">")


def _merges(backend: dict[str, Any]) -> tuple[str, ...]:
    return tuple(merge if isinstance(merge, str) else " ".join(merge) for merge in backend["model"]["merges"])


def _tokens(backend: dict[str, Any], size: int, *, has_bytes: bool) -> tuple[tuple[str, ...], tuple[int, ...]]:
    tokens = [f"[PAD{id_}]" for id_ in range(size)]
    types = [UNUSED] * size
    unknown = backend["model"].get("unk_token")
    for text, id_ in backend["model"]["vocab"].items():
        is_byte = has_bytes and _is_byte(text)
        tokens[id_], types[id_] = text, BYTE if is_byte else UNKNOWN if text == unknown and has_bytes else NORMAL
    for added in backend["added_tokens"]:
        if types[added["id"]] != UNKNOWN:
            types[added["id"]] = CONTROL if added["special"] else USER_DEFINED
        # llama.cpp looks for these in the text as it was written.
        written = has_bytes and types[added["id"]] == USER_DEFINED
        tokens[added["id"]] = added["content"].replace("▁", " ") if written else added["content"]
    return tuple(tokens), tuple(types)
