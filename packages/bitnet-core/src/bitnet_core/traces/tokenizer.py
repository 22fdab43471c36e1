"""The student's tokenizer: loaded from a folder, named by a digest, and opened into the bytes of each id."""

import hashlib
import json
from collections.abc import Collection, Iterable
from functools import lru_cache
from pathlib import Path
from typing import Any

from bitnet_core.errors import CoreError

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
            tokenizer = AutoTokenizer.from_pretrained(str(folder), local_files_only=True)
        else:  # a bare tokenizer.json needs no class name
            tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(folder / "tokenizer.json"))
    # The tokenizers library raises plain Exception for a malformed file.
    except Exception as error:
        raise CoreError(
            f"{folder}: no tokenizer can be loaded from it ({str(error).strip().splitlines()[0]})",
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
    identity = {"vocab": model.get("vocab"), "merges": merges, "added_tokens": added}
    return hashlib.sha256(json.dumps(identity, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def tokenizer_identity(folder: Path) -> tuple[str, int]:
    """Digest and vocabulary size of the tokenizer in a folder; loaded once as long as its files stay the same."""
    files = sorted(Path(folder).glob("*token*")) if Path(folder).is_dir() else []
    return _identity(Path(folder), tuple((file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files))


@lru_cache(maxsize=8)
def _identity(folder: Path, _files: tuple[tuple[str, int, int], ...]) -> tuple[str, int]:
    tokenizer = load_tokenizer(folder)
    return tokenizer_sha256(tokenizer), vocabulary_size(tokenizer)


def vocabulary_size(tokenizer: Any) -> int:
    """One more than the largest id."""
    return max(tokenizer.get_vocab().values()) + 1


def special_ids(tokenizer: Any) -> list[int]:
    """Ids of the tokens marked special (begin, end, chat turns)."""
    return sorted(id_ for id_, token in tokenizer.added_tokens_decoder.items() if token.special)


def id_to_bytes(tokenizer: Any, size: int | None = None) -> list[bytes]:
    """The bytes that each id stands for, `size` entries (default: the vocabulary); ids that don't exist give b"".

    Byte-level BPE: GPT-2's byte alphabet inverted. SentencePiece-like with byte fallback: ``<0xNN>`` is that byte,
    ``▁`` a space. Added and special tokens stand for their text in UTF-8. Raises CoreError for other kinds, whose
    pieces are not the bytes of the text (WordPiece and the like).
    """
    backend = _backend(tokenizer)
    added = {token["id"]: token["content"] for token in backend["added_tokens"]}
    pieces = {id_: piece for piece, id_ in tokenizer.get_vocab().items() if id_ not in added}
    if _has_component(backend, "ByteLevel"):
        alphabet = byte_alphabet()
        to_bytes = {id_: _from_byte_level(piece, alphabet) for id_, piece in pieces.items()}
    elif backend["model"].get("byte_fallback") or _has_component(backend, "ByteFallback", "Metaspace"):
        to_bytes = {id_: _from_sentencepiece(piece) for id_, piece in pieces.items()}
    else:
        raise CoreError(
            f"a {backend['model'].get('type')} tokenizer without byte-level or byte-fallback pieces does not "
            "say which bytes a token stands for",
            "set project.tokenizer to a byte-level BPE or SentencePiece tokenizer",
        )
    to_bytes |= {id_: text.encode() for id_, text in added.items()}
    count = vocabulary_size(tokenizer) if size is None else size
    return [to_bytes.get(id_, b"") for id_ in range(count)]


def _has_component(backend: dict[str, Any], *types: str) -> bool:
    """Whether the pre-tokenizer or decoder contains a component of one of these types, at any depth."""

    def contains(node: Any) -> bool:
        if isinstance(node, dict):
            return node.get("type") in types or any(contains(child) for child in node.values())
        return isinstance(node, list) and any(contains(child) for child in node)

    return contains(backend["pre_tokenizer"]) or contains(backend["decoder"])


def byte_alphabet() -> dict[str, int]:
    """GPT-2's printable stand-ins of the 256 bytes (Radford et al. 2019, ``bytes_to_unicode``), inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(256 + i): byte for i, byte in enumerate(others)}


def _from_byte_level(piece: str, alphabet: dict[str, int]) -> bytes:
    try:
        return bytes([alphabet[character] for character in piece])
    except KeyError:  # a piece put into the vocabulary by hand, as text
        return piece.encode()


def _from_sentencepiece(piece: str) -> bytes:
    if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
        try:
            return bytes([int(piece[3:5], 16)])
        except ValueError:
            pass
    return piece.replace("▁", " ").encode()


def end_ids(folder: Path, tokenizer: Any) -> frozenset[int]:
    """Tokens that end a generation: the tokenizer's end of sequence, and those of ``generation_config.json``."""
    ids = set() if tokenizer.eos_token_id is None else {int(tokenizer.eos_token_id)}
    try:
        configured = json.loads((Path(folder) / "generation_config.json").read_text()).get("eos_token_id")
    except (OSError, ValueError):
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


def turn_end(tokenizer: Any, ends: Collection[int]) -> int | None:
    """The added token that the chat template puts behind an assistant's words: one of `ends` where there is one, else
    the first. None where there is no such token, or no template that takes a question and its answer.

    A base model's tokenizer may well end sequences with another token than its template ends turns with.
    """
    turns = [{"role": "user", "content": "?"}, {"role": "assistant", "content": _MARK}]
    try:
        after = tokenizer.apply_chat_template(turns, tokenize=False).partition(_MARK)[2]
    except Exception:  # no template, several, or one that refuses: Jinja raises what it likes
        return None
    added = tokenizer.added_tokens_decoder
    closing = [int(id_) for id_ in tokenizer(after, add_special_tokens=False).input_ids if id_ in added]
    return next((id_ for id_ in closing if id_ in ends), closing[0] if closing else None)
