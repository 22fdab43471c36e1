"""llama.cpp is asked for its tokens: what it cuts otherwise than the student's tokenizer is refused or told."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from bitnet_core.errors import CoreError
from bitnet_core.export.gguf import compare_tokens
from bitnet_core.export.gguf.compare_tokens import COMMON, compared, probes, write_vocabulary_file
from bitnet_core.export.gguf.modelfile import chat_pieces
from bitnet_core.export.gguf.vocabulary import Vocabulary, vocabulary_of
from bitnet_core.runtime.llamacpp.server import LlamaCpp, llama_cpp
from bitnet_core.traces.tokenizer import vocabulary_size

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
TURNS = ("<|im_start|>", "<|im_end|>")
LLAMA3 = "|".join(
    (
        r"(?i:'s|'t|'re|'ve|'m|'ll|'d)",
        r"[^\r\n\p{L}\p{N}]?\p{L}+",
        r"\p{N}{1,3}",
        r" ?[^\s\p{L}\p{N}]+[\r\n]*",
        r"\s*[\r\n]+",
        r"\s+(?!\S)",
        r"\s+",
    )
)
CORPUS = [*COMMON, "hello world hello there held helps world wide web internet interesting"] * 3
SPACES = (normalizers.Prepend("▁"), normalizers.Replace(" ", "▁"))


def fast(tokenizer: Tokenizer, **more: Any) -> Any:
    tokenizer.add_special_tokens([AddedToken(turn, special=True, normalized=False) for turn in TURNS])
    made = PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|im_end|>", **more)
    made.chat_template = CHATML
    return made


def sentencepiece(normaliser: Sequence[Any] = (), cut: Any = None, **more: Any) -> Any:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    if normaliser:
        tokenizer.normalizer = normalizers.Sequence(list(normaliser))
    if cut is not None:
        tokenizer.pre_tokenizer = cut
    tokenizer.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()])
    special = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256))]
    tokenizer.train_from_iterator(
        CORPUS, trainers.BpeTrainer(vocab_size=600, special_tokens=special, show_progress=False)
    )
    return fast(tokenizer, bos_token="<s>", unk_token="<unk>", **more)


def byte_level(regex: str = LLAMA3, words: Sequence[str] = (), *, ignore_merges: bool = True) -> Any:
    """`words` are tokens without merges."""
    tokenizer = Tokenizer(models.BPE(ignore_merges=ignore_merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(regex), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=450, special_tokens=["<s>"], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    record = json.loads(tokenizer.to_str())
    vocab = record["model"]["vocab"]
    record["model"]["vocab"] = vocab | {word: len(vocab) + number for number, word in enumerate(words)}
    return fast(Tokenizer.from_str(json.dumps(record)), bos_token="<s>")


def vocabulary(tokenizer: Any) -> Vocabulary:
    found = vocabulary_of(tokenizer, vocabulary_size(tokenizer))
    return compared(tokenizer, found)


def opened(found: Vocabulary, folder: Path, template: str | None = CHATML) -> Any:
    write_vocabulary_file(folder / "v.gguf", found, template)
    return llama_cpp(folder / "v.gguf", context=64)


def test_sentencepieces_own_way_is_llama_cpps(tmp_path: Path) -> None:
    tokenizer = sentencepiece(SPACES)
    found = vocabulary(tokenizer)
    assert (found.notes, found.add_space_prefix) == ((), True)

    @settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        st.lists(
            st.sampled_from([*TURNS, "hello", " ", "  ", "\n", "Zoë", "東京", "1234", "<s>", "\t", "é"]), max_size=8
        )
    )
    def same_tokens(parts: list[str]) -> None:
        text = "".join(parts)
        assert llama.tokenize(text) == tokenizer(text, add_special_tokens=False).input_ids

    with opened(found, tmp_path) as llama:
        same_tokens()


@pytest.mark.parametrize("scheme", ["first", "always", "never"])
def test_metaspace_agrees_on_chats_or_it_is_told(tmp_path: Path, scheme: str) -> None:
    tokenizer = sentencepiece(cut=pre_tokenizers.Metaspace(prepend_scheme=scheme, split=False))
    found = vocabulary(tokenizer)
    assert found.add_space_prefix is (scheme == "always")  # with "first", chats begin with a special token
    if scheme == "never":
        assert not found.notes
        return
    assert len(found.notes) == 1
    assert "llama.cpp gives other tokens than the student learned for" in found.notes[0]
    chat = next(each for each in probes(tokenizer, found) if each.begins)
    with opened(found, tmp_path) as llama:
        assert tuple(llama.tokenize(chat.text, begins=True)) == chat.ids


@pytest.mark.parametrize(
    ("normaliser", "cut", "why"),
    [
        ([normalizers.NFKC(), *SPACES], None, r"changes text \(NFKC\)"),
        ([normalizers.Lowercase(), *SPACES], None, r"changes text \(Lowercase\)"),
        ([normalizers.Strip(), *SPACES], None, r"changes text \(Strip\)"),
        ([*SPACES, normalizers.Replace("ë", "e")], None, r"changes text \(Replace\)"),
        ([normalizers.Sequence([normalizers.StripAccents()]), *SPACES], None, r"changes text \(StripAccents\)"),
        (SPACES, pre_tokenizers.Punctuation(), r"cuts text \(Punctuation\)"),
        (SPACES[1:], None, None),
        (SPACES, pre_tokenizers.Digits(individual_digits=True), None),
    ],
)
def test_what_changes_or_cuts_text_before_sentencepiece(normaliser: Any, cut: Any, why: str | None) -> None:
    tokenizer = sentencepiece(normaliser, cut)
    if why is None:  # trained with single digits, it has no token with several
        assert not vocabulary(tokenizer).notes
        return
    with pytest.raises(CoreError, match=why) as refused:
        vocabulary_of(tokenizer, vocabulary_size(tokenizer))
    assert "export hf or packed" in refused.value.fix


def test_spaces_that_stay_spaces_are_refused() -> None:
    tokenizer = sentencepiece(SPACES)
    tokenizer.backend_tokenizer.normalizer = None
    with pytest.raises(CoreError, match="handling of spaces is not SentencePiece's"):
        vocabulary_of(tokenizer, vocabulary_size(tokenizer))


def test_digits_that_the_vocabulary_joins_are_refused() -> None:
    tokenizer = sentencepiece(SPACES)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Digits(individual_digits=True)
    with pytest.raises(CoreError, match=r"cuts text \(Digits\) before it merges.*makes a difference \('"):
        vocabulary_of(tokenizer, vocabulary_size(tokenizer))


@pytest.mark.parametrize("ignore_merges", [True, False])
@pytest.mark.parametrize("name", ["llama-bpe", "qwen2"])
def test_words_without_merges(name: str, ignore_merges: bool) -> None:
    regex = LLAMA3 if name == "llama-bpe" else LLAMA3.replace("{1,3}", "")
    plain = byte_level(regex, ignore_merges=ignore_merges)
    assert not vocabulary(plain).notes  # every word has merges: the flag says nothing
    tokenizer = byte_level(regex, ["helloz", "Ġxylo"], ignore_merges=ignore_merges)
    if ignore_merges is (name == "llama-bpe"):
        found = vocabulary(tokenizer)
        assert (found.whole_words, found.notes) == (("helloz", " xylo"), ())
    else:
        with pytest.raises(CoreError, match=r"2\s+tokens have no merges \('helloz'\)"):
            vocabulary(tokenizer)


@pytest.mark.parametrize("strip", ["lstrip", "rstrip"])
def test_added_tokens_that_take_white_space_with_them_are_told(strip: str) -> None:
    tokenizer = byte_level()
    tokenizer.add_special_tokens({"additional_special_tokens": [AddedToken("<mask>", special=True, **{strip: True})]})
    found = vocabulary(tokenizer)
    assert any(f"<mask> ({strip})" in note for note in found.notes)
    assert any("llama.cpp gives other tokens" in note for note in found.notes)


def test_another_cut_of_common_text_is_refused() -> None:
    """As if a pre-tokenizer were mistaken for another: numbers come in threes here, one by one there."""
    tokenizer = byte_level()
    found = vocabulary_of(tokenizer, vocabulary_size(tokenizer))
    with pytest.raises(CoreError, match=r"llama.cpp gives other tokens than the student's tokenizer, of '") as refused:
        compared(tokenizer, attrs.evolve(found, pre="qwen2"))
    assert refused.value.fix == compare_tokens.FIX


def test_of_several_templates_the_default_one_is_compared() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = {"default": CHATML, "tool_use": "tools"}
    found = vocabulary_of(tokenizer, vocabulary_size(tokenizer))
    assert [each.text for each in probes(tokenizer, found) if each.common and "<|im_start|>user" in each.text]
    tokenizer.chat_template = {"rag": CHATML}
    assert [each.text for each in probes(tokenizer, found) if each.common] == [*COMMON, COMMON[0]]


@pytest.mark.parametrize("template", [CHATML, "{{ bos_token }}" + CHATML, None])
def test_begin_of_sequence_comes_once(tmp_path: Path, template: str | None) -> None:
    tokenizer = byte_level()
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", tokenizer.bos_token_id)]
    )
    tokenizer.chat_template = template
    found = vocabulary(tokenizer)
    assert not found.notes
    assert found.add_bos is (template is None)
    with opened(found, tmp_path, template) as llama:
        if template is None:
            assert llama.tokenize("hello", begins=True) == tokenizer("hello").input_ids
            return
        messages = [{"role": "user", "content": "hello"}]
        ours = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
        assert llama.chat(messages, 1)["usage"]["prompt_tokens"] == len(ours)
        pieces = chat_pieces(tokenizer)
        assert pieces is not None
        assert llama.tokenize(pieces.render(messages), begins=True) == ours


def test_without_llama_cpp_it_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(compare_tokens, "find_spec", lambda name: None)
    assert "were not compared: pip install" in vocabulary(byte_level()).notes[0]
    monkeypatch.undo()

    def breaks(self: LlamaCpp, text: str, *, begins: bool = False) -> list[int]:
        raise CoreError("llama.cpp ended", "start anew")

    monkeypatch.setattr(LlamaCpp, "tokenize", breaks)
    assert "were not compared: llama.cpp ended" in vocabulary(byte_level()).notes[0]


DATED = "{% if strftime_now is defined %}{{ 'Today: ' + strftime_now('%d %b %Y') + '\n' }}{% endif %}" + CHATML


def test_a_modelfile_freezes_no_date() -> None:
    tokenizer = byte_level()
    tokenizer.chat_template = DATED
    pieces = chat_pieces(tokenizer, clockless=True)
    assert pieces is not None
    assert "Today" not in pieces.render([{"role": "user", "content": "hi"}])
    tokenizer.chat_template = "{{ strftime_now('%Y') }}" + CHATML  # it can't do without
    assert chat_pieces(tokenizer, clockless=True) is None
    assert chat_pieces(tokenizer) is not None
