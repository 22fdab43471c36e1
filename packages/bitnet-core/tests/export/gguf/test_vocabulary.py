"""llama.cpp cuts text as the student's tokenizer does; what it would cut otherwise is refused."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from bitnet_core.config.export import GGUFOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.modelfile import chat_pieces
from bitnet_core.export.gguf.vocabulary import UNUSED, pre_tokenizer_name, vocabulary_of
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.model import BitNetKDEConfig, BitNetKDEForCausalLM
from bitnet_core.runtime.llamacpp.server import llama_cpp
from bitnet_core.traces.tokenizer import load_tokenizer, vocabulary_size
from bitnet_core.traces.tokenizer_files import copy_tokenizer

RealTokenizer = Callable[[str], Path]
TEXTS = [
    "def f(x):\n    return [i ** 2 for i in range(10_000)]  # done\n\n\n1. don't\tstop\r\n   indented",
    "Prices: 1234567.89 €, 3,14 and ½; IPv4 127.0.0.1; 2026-11-23T10:00:00Z!!! ...?",
    "naïve café, Ελληνικά, русский текст, العربية, हिन्दी, 東京タワー, 한국어, 🙂👩‍👩‍👧 e\u0301",
    '{"a": [1, 2.5, null], "b": "x\\ny"}  two  spaces   three \u00a0 nbsp',
]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "model", "pre"),
    [
        ("smollm2", "gpt2", "smollm"),
        ("deepseek", "gpt2", "deepseek-v3"),
        ("tekken", "gpt2", "tekken"),
        ("mistral", "llama", "default"),
    ],
)
def test_llama_cpp_gives_the_same_tokens(
    name: str, model: str, pre: str, real_tokenizer: RealTokenizer, tmp_path: Path
) -> None:
    folder = real_tokenizer(name)
    if name == "smollm2":
        folder = Path(shutil.copytree(folder, tmp_path / name))
        _split_digits(folder)
    tokenizer = load_tokenizer(folder)
    found = vocabulary_of(tokenizer, vocabulary_size(tokenizer))
    assert (found.model, found.pre) == (model, pre)
    assert bool(found.notes) is (name == "tekken")  # combining marks: llama.cpp's own limit, and it is told
    _llama_cpp_agrees(folder, tmp_path, TEXTS if not found.notes else [TEXTS[0], TEXTS[1], TEXTS[3]])


def test_single_bytes_are_tokens_too(tmp_path: Path) -> None:
    """No merges at all: llama.cpp doesn't load a file without a list of them."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    whole = Tokenizer(models.BPE(vocab={letter: id_ for id_, letter in enumerate(letters)}, merges=[]))
    whole.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=whole, eos_token="<|end|>").save_pretrained(tmp_path / "bytes")
    assert len(_llama_cpp_agrees(tmp_path / "bytes", tmp_path, [*TEXTS, "[never] [never]"])[2]) > len(TEXTS[2])


def _llama_cpp_agrees(folder: Path, tmp_path: Path, texts: list[str]) -> list[list[int]]:
    """Exports a model with the tokenizer in `folder` and asserts that llama.cpp gives its tokens of `texts`."""
    tokenizer = load_tokenizer(folder)
    size = vocabulary_size(tokenizer)
    config = BitNetKDEConfig(
        vocab_size=size, hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=256,
    )  # fmt: skip
    checkpoint = tmp_path / "checkpoint"
    BitNetKDEForCausalLM(config).save_pretrained(checkpoint)
    copy_tokenizer(folder, checkpoint)
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions())}, tmp_path / "out")
    with llama_cpp(tmp_path / "out/student-tq2_0.gguf", context=64) as llama:
        found = [llama.tokenize(text) for text in texts]
    assert found == [tokenizer(text, add_special_tokens=False).input_ids for text in texts]
    return found


def _split_digits(folder: Path) -> None:
    """What transformers' GGUF converter leaves out, as the local teacher's conversion puts it back."""
    file = folder / "tokenizer.json"
    record = json.loads(file.read_text())
    digits = {"type": "Digits", "individual_digits": True}
    record["pre_tokenizer"] = {"type": "Sequence", "pretokenizers": [digits, record["pre_tokenizer"]]}
    file.write_text(json.dumps(record))


QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3 = QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@pytest.mark.parametrize(("regex", "name"), [(QWEN2, "qwen2"), (LLAMA3, "llama-bpe")])
def test_published_expressions_are_known(regex: str, name: str) -> None:
    split = {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False}
    level = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": False, "use_regex": False}
    assert pre_tokenizer_name({"pre_tokenizer": {"type": "Sequence", "pretokenizers": [split, level]}}) == name


@pytest.mark.parametrize(
    "pre_tokenizer",
    [
        None,
        {"type": "ByteLevel", "add_prefix_space": True, "use_regex": True},
        {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": "a+"}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        },
    ],
)
def test_another_way_of_cutting_is_refused(pre_tokenizer: Any) -> None:
    with pytest.raises(CoreError, match="cuts text in a way that isn't known"):
        pre_tokenizer_name({"pre_tokenizer": pre_tokenizer})


@pytest.mark.slow
def test_a_tokenizer_that_changes_the_text_is_refused(real_tokenizer: RealTokenizer) -> None:
    with pytest.raises(CoreError, match=r"changes text \(NFKC\)"):
        vocabulary_of(load_tokenizer(real_tokenizer("nfkc")), 130_000)


def test_other_kinds_of_tokenizer_are_refused() -> None:
    words = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    with pytest.raises(CoreError, match="of type WordLevel, which this version does not write"):
        vocabulary_of(PreTrainedTokenizerFast(tokenizer_object=words, unk_token="a"), 2)


def test_ids_that_no_token_has_are_unused(tokenizer_folder: Path) -> None:
    found = vocabulary_of(load_tokenizer(tokenizer_folder), 400)
    assert len(found.tokens) == len(found.types) == len(set(found.tokens)) == 400
    assert found.types[-1] == UNUSED
    assert (found.special["bos"], found.special["eos"], found.add_bos) == (1, 2, False)


DEFAULT_SYSTEM = (
    "{% for message in messages %}{% if loop.first and messages[0]['role'] != 'system' %}"
    "{{ '<|im_start|>system\nBe kind<|im_end|>\n' }}{% endif %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def test_the_modelfiles_template_is_cut_out_of_the_tokenizers(tokenizer_folder: Path) -> None:
    tokenizer = load_tokenizer(tokenizer_folder)
    tokenizer.chat_template = DEFAULT_SYSTEM
    pieces = chat_pieces(tokenizer)
    assert pieces is not None
    assert pieces.default_system == "<|im_start|>system\nBe kind<|im_end|>\n"
    assert pieces.user == ("<|im_start|>user\n", "<|im_end|>\n")
    assert pieces.assistant == ("<|im_start|>assistant\n", "<|im_end|>\n")
    assert pieces.generation == "<|im_start|>assistant\n"
    tokenizer.chat_template = "{{ messages[0]['content'] }}{{ messages | length }}"
    assert chat_pieces(tokenizer) is None
