"""A tokenizer's digests, its ends, and the table of its bytes against what the tokenizer makes of the same ids."""

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core.errors import CoreError
from bitnet_core.traces.tokenizer import (
    byte_alphabet,
    cuts_otherwise,
    cutting_sha256,
    id_to_bytes,
    load_tokenizer,
    special_ids,
    tokenizer_digests,
    tokenizer_identity,
    tokenizer_sha256,
    unknown_id,
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
    with pytest.raises(CoreError, match=r"nowhere: no such tokenizer folder  → set project\.tokenizer"):
        load_tokenizer(tmp_path / "nowhere")
    with pytest.raises(CoreError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(CoreError, match="no tokenizer can be loaded"):
        load_tokenizer(tmp_path)


RealTokenizer = Callable[[str], Path]
INDENTED = [
    "def f(x):\n    if x > 10:\n        return x ** 2\n\n\n    return None\n",
    "\tfor i in range(3):\n\t\tprint(i)  # naïve façade — 猫 🦄\r\n",
    "  two, then    four;\n\n\n- item\n    - nested 1815\n",
]


def joined(table: list[bytes], ids: list[int]) -> str:
    return b"".join(table[id_] for id_ in ids).decode("utf-8", "replace")


@cache
def real_table(folder: Path) -> tuple[Any, list[bytes], list[int]]:
    tokenizer = load_tokenizer(folder)
    table, special = id_to_bytes(tokenizer), set(special_ids(tokenizer))
    return tokenizer, table, [id_ for id_ in range(len(table)) if id_ not in special]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "deepseek", "tekken", "mistral"])
def test_real_tables_are_what_the_tokenizers_decode(real_tokenizer: RealTokenizer, name: str) -> None:
    tokenizer, table, _ = real_table(real_tokenizer(name))
    for text in (f"a{each}" for each in INDENTED):  # a SentencePiece tokenizer strips what a text begins with
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert joined(table, ids).removeprefix(" ") == tokenizer.decode(ids) == text


@pytest.mark.parametrize(
    "name",
    ["smollm2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("deepseek", "tekken")), "mistral"],
)
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_tokens_of_real_tables(real_tokenizer: RealTokenizer, name: str, data: Any) -> None:
    tokenizer, table, plain = real_table(real_tokenizer(name))
    ids = [plain[n] for n in data.draw(st.lists(st.integers(0, len(plain) - 1), min_size=1, max_size=12))]
    a = tokenizer("a", add_special_tokens=False)["input_ids"]
    told = tokenizer.decode([*a, *ids]).removeprefix(" ")
    # Of bytes that are no character, a byte fallback (mistral) makes one mark for each, Python one for several.
    assert (name == "mistral" and "\ufffd" in told) or joined(table, [*a, *ids]).removeprefix(" ") == told


def gemma_like(added: list[AddedToken] | None = None, byte_fallback: bool = True) -> Any:
    """White-space runs are pieces and added tokens that are not special, as in Gemma's tokenizer.json."""
    runs = ["▁" * n for n in range(2, 9)] + ["\n\n", "\n\n\n", "\t\t"]
    pieces = [
        *("<unk>", "<bos>", "<eos>"),
        *((f"<0x{byte:02X}>" for byte in range(256)) if byte_fallback else ()),
        *("▁", "\n", "\t"),
        *"abcdefghijklmnopqrstuvwxyz(){}:;.,>*#0123456789-",
        *runs,
    ]
    merges = [("▁" * (n - 1), "▁") for n in range(2, 9)] + [("\n", "\n"), ("\n\n", "\n"), ("\t", "\t")]
    tokenizer = Tokenizer(
        models.BPE(
            {piece: id_ for id_, piece in enumerate(pieces)},
            merges,
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=byte_fallback,
        )
    )
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    tokenizer.add_special_tokens(["<unk>", "<bos>", "<eos>"])
    tokenizer.add_tokens([AddedToken(run, normalized=False) for run in runs])
    tokenizer.add_tokens(added or [])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<bos>", eos_token="<eos>", unk_token="<unk>")


def test_added_runs_of_white_space_are_white_space() -> None:
    tokenizer = gemma_like()
    table = id_to_bytes(tokenizer)
    for text in ("def f(x):\n    if x:\n\t\treturn x\n\n\n  f(1)", *INDENTED):
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        assert joined(table, ids) == tokenizer.decode(ids) == text
    assert table[tokenizer.convert_tokens_to_ids("▁▁▁▁")] == b"    "
    assert table[tokenizer.convert_tokens_to_ids("<eos>")] == b"<eos>"


CONTENTS = st.one_of(
    st.text("▁ \t\n", min_size=2, max_size=5),
    st.text("▁Ġab7<>é🦄", min_size=1, max_size=6),
    st.sampled_from(["7", "🦄", "<0x41>", "<0xE2>", "<tag>", "ĠĠ", "▁x▁", "café", "￭"]),
)
FLAGS = st.fixed_dictionaries({name: st.booleans() for name in ("normalized", "lstrip", "rstrip", "single_word")})


def byte_level(added: list[AddedToken]) -> Any:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({piece: id_ for id_, piece in enumerate(alphabet)}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def metaspace(added: list[AddedToken]) -> Any:
    """A unigram model without byte fallback, whose mark of a space is another one."""
    pieces = [("<unk>", 0.0), ("_", -1.0), *((each, -2.0) for each in "abcxyz7<>")]
    tokenizer = Tokenizer(models.Unigram(pieces, 0, False))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(replacement="_", prepend_scheme="first")
    tokenizer.decoder = decoders.Metaspace(replacement="_", prepend_scheme="first")
    tokenizer.add_tokens(added)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, unk_token="<unk>")


@settings(max_examples=60, deadline=None)
@given(
    make=st.sampled_from([gemma_like, byte_level, metaspace]),
    added=st.lists(st.tuples(CONTENTS, FLAGS), min_size=1, max_size=4),
    data=st.data(),
)
def test_any_added_token_is_decoded_as_the_tokenizer_decodes_it(make: Any, added: Any, data: Any) -> None:
    tokenizer = make([AddedToken(content, **flags) for content, flags in added])
    table = id_to_bytes(tokenizer)
    special = set(special_ids(tokenizer))
    plain = [id_ for id_ in range(len(table)) if id_ not in special]
    newest = [id_ for content, _ in added if (id_ := tokenizer.convert_tokens_to_ids(content)) in plain]
    ids = data.draw(st.lists(st.sampled_from(plain + newest * 50), min_size=1, max_size=8))
    a = tokenizer.convert_tokens_to_ids("a")
    told = tokenizer.decode([a, *ids])
    # Of bytes that are no character, a byte fallback makes one mark for each, Python one for several.
    assert (make is gemma_like and "\ufffd" in told) or joined(table, [a, *ids]) == told


def test_what_stands_for_unknown_characters() -> None:
    """The model's, not what a config calls so: GPT-2's is its end of text, and never stands for a character."""
    assert unknown_id(gemma_like()) == 0
    assert unknown_id(metaspace([])) == 0
    named = byte_level([])
    named.add_special_tokens({"unk_token": "<|endoftext|>"})
    assert unknown_id(named) is None


@pytest.mark.parametrize(
    "change",
    [
        {"normalizer": {"type": "NFKC"}},
        {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True}},
        {"post_processor": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}},
        {"decoder": {"type": "Fuse"}},
    ],
)
def test_the_digest_of_cutting(tokenizer_folder: Path, tmp_path: Path, change: dict[str, Any]) -> None:
    before = tokenizer_digests(tokenizer_folder)
    record = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    (tmp_path / "tokenizer.json").write_text(json.dumps(record | change))
    after = tokenizer_digests(tmp_path)
    assert after.ids == before.ids
    assert after.cutting != before.cutting
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = "{{ messages }}"
    tokenizer.backend_tokenizer.enable_truncation(8)
    assert cutting_sha256(tokenizer) == before.cutting


def test_a_class_that_cuts_otherwise_is_told(tokenizer_folder: Path, tmp_path: Path) -> None:
    record = json.loads((tokenizer_folder / "tokenizer.json").read_text())
    digits = {"type": "Digits", "individual_digits": True}
    record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, record["pre_tokenizer"]]}
    record["model"]["vocab"]["12"] = len(record["model"]["vocab"])
    record["model"]["merges"].append(["1", "2"])
    (tmp_path / "tokenizer.json").write_text(json.dumps(record))
    settings_file = tmp_path / "tokenizer_config.json"
    for name, told in (("GPT2Tokenizer", True), ("PreTrainedTokenizerFast", False)):
        settings_file.write_text(json.dumps({"tokenizer_class": name}))
        found = cuts_otherwise(tmp_path, load_tokenizer(tmp_path))
        assert (found is not None) == told
        if found is not None:
            assert "GPT2Tokenizer cuts text otherwise than the folder's own tokenizer.json: '12'" in found
            assert '"tokenizer_class": "PreTrainedTokenizerFast"' in found
