"""The student's tokenizer: loaded from a folder, named by a digest, and opened into the bytes of each id."""

import hashlib
import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from tokenizers import Tokenizer, decoders

from bitnet_core.errors import CoreError, in_one_line, own_code_refused

_MARK = "X0X"


def load_tokenizer(folder: Path) -> Any:
    """The fast tokenizer in a local folder (a ``PreTrainedTokenizerFast``). Raises CoreError where there is none."""
    folder = Path(folder)
    if not folder.is_dir():
        raise CoreError(
            f"{folder}: no such tokenizer folder", "set project.tokenizer to a folder with a tokenizer.json"
        )
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        if (folder / "config.json").exists() or (folder / "tokenizer_config.json").exists():
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
        elif not (folder / "tokenizer.json").is_file():
            raise OSError("no file tokenizer.json")
        else:  # a bare one needs no class name
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    # The tokenizers library raises plain Exception for a malformed file.
    except Exception as error:
        raise own_code_refused(f"{folder}: its tokenizer", error) or CoreError(
            f"{folder}: no tokenizer can be loaded from it ({in_one_line(error)})",
            "set project.tokenizer to a folder with a tokenizer.json",
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise CoreError(
            f"{folder}: holds a slow tokenizer, and traces need the bytes of each token, which a fast one "
            "(tokenizer.json) gives",
            "convert it with transformers' AutoTokenizer.from_pretrained(folder).save_pretrained(new_folder)",
        )
    return tokenizer


def _backend(tokenizer: Any) -> dict[str, Any]:
    record: dict[str, Any] = json.loads(tokenizer.backend_tokenizer.to_str())
    return record


def tokenizer_sha256(tokenizer: Any) -> str:
    """Hex digest of what gives ids their meaning: vocabulary, merges, and added tokens with their ids.

    SHA-256 of the canonical JSON (sorted keys, no spaces, ASCII) of ``{"added_tokens", "merges", "vocab"}`` of the fast
    tokenizer's serialised backend. Templates, padding and truncation settings do not count.
    """
    backend = _backend(tokenizer)
    model = backend["model"]
    merges = [merge.split(" ", 1) if isinstance(merge, str) else merge for merge in model.get("merges") or []]
    added = sorted([token["id"], token["content"], token["special"]] for token in backend["added_tokens"])
    return _digest({"vocab": model.get("vocab"), "merges": merges, "added_tokens": added})


def cutting_sha256(tokenizer: Any) -> str:
    """Hex digest of how a text becomes pieces and pieces a text: two tokenizers with the same ids may differ here.

    SHA-256, as in `tokenizer_sha256`, of normaliser, pre-tokenizer, post-processor, decoder, and the added tokens' ids
    and flags (``single_word``, ``lstrip``, ``rstrip``, ``normalized``).
    """
    return _digest(_cutting(_backend(tokenizer)))


def _cutting(backend: dict[str, Any]) -> dict[str, Any]:
    flags = ("id", "single_word", "lstrip", "rstrip", "normalized")
    parts = ("normalizer", "pre_tokenizer", "post_processor", "decoder")
    return {name: backend.get(name) for name in parts} | {
        "added_tokens": sorted([token[name] for name in flags] for token in backend["added_tokens"])
    }


def _digest(record: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


_PROBES = (
    "def f(x):\n    if x > 10:\n\t\treturn x ** 2  # it's HelloWorld's 1234567\r\n\n\n    return None",
    " leading, and   inner   runs\t\tof space; naïve façade, e\u0301, ﬁne № ½ x², Ⅷ",
    "Ein Glas Öl kostet 3,50 € — Ελληνικά, русский, עברית, العربية, हिन्दी, ไทย, 한국어, 猫が好き。",
    "🦄 👩\u200d👩\u200d👧 🇨🇭 \u200b \u2028 <unk> </s> <|im_end|> [INST] ▁▁x camelCaseAndABBREV don't DON'T",
)
"""Texts on which ways of cutting differ: digits, cases, contractions, white space, scripts, special tokens."""


def cuts_otherwise(folder: Path, tokenizer: Any) -> str | None:
    """Where this tokenizer, as transformers loaded it, cuts a text otherwise than the folder's own ``tokenizer.json``.

    transformers builds some tokenizers anew by the class that tokenizer_config.json names, and then leaves out what
    the file says of cutting (GPT-4o's says GPT2Tokenizer). None: they agree, or there is no such file.
    """
    file = Path(folder) / "tokenizer.json"
    if not file.is_file():
        return None
    loaded = tokenizer.backend_tokenizer
    if json.loads(file.read_bytes()) == _backend(tokenizer):
        return None
    own = Tokenizer.from_file(str(file))
    own.no_truncation()
    own.no_padding()
    for text in _PROBES:
        ours, theirs = (each.encode(text, add_special_tokens=False) for each in (own, loaded))
        if ours.ids != theirs.ids:
            at = next(
                (n for n, pair in enumerate(zip(ours.ids, theirs.ids, strict=False)) if pair[0] != pair[1]),
                min(len(ours), len(theirs)),
            )
            shown = [", ".join(map(repr, each.tokens[at : at + 3])) or "nothing" for each in (theirs, ours)]
            return (
                f"{folder}: transformers' {type(tokenizer).__name__} cuts text otherwise than the folder's own "
                f"tokenizer.json: {shown[0]} where the file has {shown[1]}. The first is used: where "
                'the file is right, set "tokenizer_class": "PreTrainedTokenizerFast" in tokenizer_config.json'
            )
    return None


class Identity(NamedTuple):
    """What a tokenizer is known by."""

    ids: str
    """`tokenizer_sha256`"""
    size: int
    """`vocabulary_size`"""
    cutting: str
    """`cutting_sha256`"""


def tokenizer_identity(folder: Path) -> tuple[str, int]:
    """Digest of the ids and vocabulary size of the tokenizer in a folder, as `tokenizer_digests` has them."""
    return tokenizer_digests(folder)[:2]


def tokenizer_digests(folder: Path) -> Identity:
    """Of the tokenizer in a folder; loaded once as long as its files stay the same."""
    files = sorted(Path(folder).glob("*token*")) if Path(folder).is_dir() else []
    return _identity(Path(folder), tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=8)
def _identity(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> Identity:
    return identity_of(load_tokenizer(folder))


def identity_of(tokenizer: Any) -> Identity:
    """Of a loaded tokenizer."""
    return Identity(tokenizer_sha256(tokenizer), vocabulary_size(tokenizer), cutting_sha256(tokenizer))


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens marked special (begin, end, chat turns)."""
    return sorted(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)


def unknown_id(tokenizer: Any) -> int | None:
    """The token that the model puts for what it has no piece for; None: it has none.

    What tokenizer_config.json calls ``unk_token`` is often only a name (GPT-2's is its end of text).
    """
    backend = _backend(tokenizer)
    model = backend["model"]
    if model.get("unk_id") is not None:  # Unigram
        return int(model["unk_id"])
    found = tokenizer.backend_tokenizer.token_to_id(model["unk_token"]) if model.get("unk_token") else None
    return None if found is None else int(found)


def id_to_bytes(tokenizer: Any, size: int | None = None) -> list[bytes]:
    """The bytes that each id stands for, `size` entries (default: the vocabulary); ids that don't exist give b"".

    They are what the tokenizer's own decoder makes of the piece where another one stands before it; where that is only
    a part of a character, it is found by the family's rule: GPT-2's byte alphabet, or ``<0xNN>``. Added tokens are
    decoded as all others are (Gemma's ``▁▁`` are two spaces); special ones stand for their text in UTF-8.
    Raises CoreError for kinds whose pieces are not the bytes of the text (WordPiece and the like).
    """
    backend = _backend(tokenizer)
    special = {token["id"]: token["content"] for token in backend["added_tokens"] if token["special"]}
    kinds = ("ByteLevel", "ByteFallback", "Metaspace")
    if not (backend["model"].get("byte_fallback") or _has([backend["pre_tokenizer"], backend["decoder"]], *kinds)):
        raise CoreError(
            f"a {backend['model'].get('type')} tokenizer without byte-level or byte-fallback pieces does not "
            "say which bytes a token stands for",
            "set project.tokenizer to a byte-level BPE or SentencePiece tokenizer",
        )
    byte_level = _has(backend["decoder"] or backend["pre_tokenizer"], "ByteLevel")
    by_rule = _from_byte_level if byte_level else _from_byte_piece
    decoder = tokenizer.backend_tokenizer.decoder or (decoders.ByteLevel() if byte_level else _SENTENCEPIECE)
    before = decoder.decode(["a"])

    def spelt(piece: str) -> bytes:
        text = decoder.decode(["a", piece])[len(before) :]
        return by_rule(piece) if "\ufffd" in text and "\ufffd" not in piece else text.encode()

    to_bytes = {
        id_: special[id_].encode() if id_ in special else spelt(piece) for piece, id_ in tokenizer.get_vocab().items()
    }
    count = vocabulary_size(tokenizer) if size is None else size
    return [to_bytes.get(id_, b"") for id_ in range(count)]


_SENTENCEPIECE = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])


def _has(node: Any, *types: str) -> bool:
    """Whether a pre-tokenizer or decoder is of one of these types, or contains one, at any depth."""
    if isinstance(node, dict):
        return node.get("type") in types or any(_has(child, *types) for child in node.values())
    return isinstance(node, list) and any(_has(child, *types) for child in node)


@lru_cache(maxsize=1)
def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes (Radford et al. 2019, ``bytes_to_unicode``), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_byte_level(piece: str) -> bytes:
    alphabet = byte_alphabet()
    return bytes(alphabet[character] for character in piece)


def _from_byte_piece(piece: str) -> bytes:
    """``<0xNN>``"""
    return bytes([int(piece[3:5], 16)])


def end_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a generation: the tokenizer's end of sequence, and those of ``generation_config.json``; where
    there is no such file those of ``config.json``, as transformers takes them."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    file = Path(folder) / "generation_config.json"
    file = file if file.is_file() else file.with_name("config.json")
    try:
        configured = json.loads(file.read_text(encoding="utf-8")).get("eos_token_id")
    except (OSError, ValueError, AttributeError):
        configured = None
    if configured is not None:
        ids |= {int(each) for each in (configured if isinstance(configured, list) else [configured])}
    return frozenset(ids)


def end_tokens(folder: Path, tokenizer: Any, more: Iterable[int] = ()) -> list[int]:
    """Every token that ends an answer, without repeats: the tokenizer's end of sequence, what the chat template puts
    behind an answer, the others of `end_ids` and `more`.
    """
    ends = end_ids(folder, tokenizer) | set(more)
    first = [tokenizer.eos_token_id, turn_end(tokenizer, ends)]
    return list(dict.fromkeys([*(int(id_) for id_ in first if id_ is not None), *sorted(ends)]))


def chat_template(tokenizer: Any) -> str | None:
    """The Jinja template of a chat; of several the one called "default", as transformers takes it."""
    template = tokenizer.chat_template
    found: str | None = template.get("default") if isinstance(template, dict) else template
    return found


def turn_end(tokenizer: Any, ends: Collection[int], template: str | None = None) -> int | None:
    """The added token that the chat template puts behind an assistant's words: one of `ends` where there is one, else
    the first. None where there is no such token, or no template that takes a question and its answer. `template`: Jinja
    that takes the place of the tokenizer's own.

    A base model's tokenizer may well end sequences with another token than its template ends turns with.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        after = tokenizer.apply_chat_template(turns, chat_template=template, tokenize=False).partition(_MARK)[2]
    except Exception:  # no template, several, or one that refuses: Jinja raises what it likes
        return None
    # White space may be an added token too (Gemma's), and ends nothing.
    added = {id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.content.strip()}
    closing = [int(id_) for id_ in tokenizer(after, add_special_tokens=False).input_ids if id_ in added]
    return next((id_ for id_ in closing if id_ in ends), closing[0] if closing else None)
