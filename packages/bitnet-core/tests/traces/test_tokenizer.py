from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core.errors import CoreError
from bitnet_core.traces.tokenizer import (
    byte_alphabet,
    id_to_bytes,
    load_tokenizer,
    special_ids,
    tokenizer_identity,
    tokenizer_sha256,
    vocabulary_size,
)


@given(text=st.text(max_size=80))
def test_byte_level_tokens_are_the_bytes_of_the_text(tokenizer: Any, text: str) -> None:
    table = id_to_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[i] for i in ids) == text.encode()


def test_every_byte_has_a_token(tokenizer: Any) -> None:
    assert sorted(byte_alphabet().values()) == list(range(256))
    assert {bytes([byte]) for byte in range(256)} <= set(id_to_bytes(tokenizer))


def test_special_and_added_tokens_stand_for_their_text(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.add_tokens(["▁Ġodd"])
    table = id_to_bytes(tokenizer, size=vocabulary_size(tokenizer) + 5)
    assert table[tokenizer.convert_tokens_to_ids("<|im_end|>")] == b"<|im_end|>"
    assert table[tokenizer.convert_tokens_to_ids("▁Ġodd")] == "▁Ġodd".encode()
    assert table[-5:] == [b""] * 5
    assert special_ids(tokenizer) == [0, 1]


def sentencepiece_like() -> Any:
    pieces = ["<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "h", "i", "▁h", "▁hi"]
    vocab = {piece: i for i, piece in enumerate(pieces)}
    tokenizer = Tokenizer(
        models.BPE(vocab, [("▁", "h"), ("▁h", "i")], unk_token="<unk>", byte_fallback=True, fuse_unk=True)
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


@given(text=st.text(alphabet=" hi€猫\n", max_size=30))
def test_sentencepiece_tokens_are_the_bytes_of_the_text(text: str) -> None:
    tokenizer = sentencepiece_like()
    table = id_to_bytes(tokenizer)
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert b"".join(table[i] for i in ids) == text.encode()


def test_a_tokenizer_that_loses_bytes_is_refused() -> None:
    tokenizer = Tokenizer(models.WordPiece({"[UNK]": 0, "sea": 1, "##side": 2}, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CoreError, match=r"a WordPiece tokenizer .* set project.tokenizer to a byte-level BPE"):
        id_to_bytes(PreTrainedTokenizerFast(tokenizer_object=tokenizer))


def test_digest_is_of_the_vocabulary_not_of_the_settings(
    tokenizer_folder: Path, other_tokenizer_folder: Path, tmp_path: Path
) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    digest = tokenizer_sha256(tokenizer)
    assert digest != tokenizer_sha256(load_tokenizer(other_tokenizer_folder))
    tokenizer.padding_side = "left"
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.backend_tokenizer.enable_truncation(8)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == digest
    tokenizer.add_tokens(["another"])
    assert tokenizer_sha256(tokenizer) != digest


def test_a_changed_folder_has_another_identity(tokenizer_folder: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_identity(tmp_path) == (tokenizer_sha256(tokenizer), vocabulary_size(tokenizer))
    tokenizer.add_tokens(["another"])
    tokenizer.save_pretrained(tmp_path)
    assert tokenizer_identity(tmp_path) == (tokenizer_sha256(tokenizer), 321)


def test_a_folder_with_only_tokenizer_json_is_enough(tokenizer_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_bytes((tokenizer_folder / "tokenizer.json").read_bytes())
    assert tokenizer_sha256(load_tokenizer(tmp_path)) == tokenizer_sha256(load_tokenizer(tokenizer_folder))


def test_what_is_no_tokenizer_is_named(tmp_path: Path) -> None:
    with pytest.raises(CoreError, match=r"nowhere: no such tokenizer folder; set project\.tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CoreError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CoreError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
