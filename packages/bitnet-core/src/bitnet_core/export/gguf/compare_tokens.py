"""Whether llama.cpp cuts text into the tokens that the student learned: asked of llama.cpp itself, on a fixed set.

An export asks before it writes the student, of a file with the vocabulary and a model of next to nothing. `export
--check` asks the exported file. What every user would meet is `common`: English, code and numbers, in the chat
template where there is one. The rest (other scripts, text around special tokens, longer chats) may differ, and is told.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import attrs
import numpy as np

from bitnet_core.errors import CoreError
from bitnet_core.export.gguf.vocabulary import CONTROL, USER_DEFINED, Vocabulary
from bitnet_core.runtime.llamacpp.server import LlamaCpp, llama_cpp
from bitnet_core.traces.tokenizer import chat_template

COMMON = (
    "The capital of France is Paris, and water boils at 100 degrees. Don't, we'll, I'M, it's: (yes)!? ...",
    "def area(r):\n    return [i ** 2 for i in range(10_000)]  # done\n\n\n1. don't\tstop\r\n   indented",
    '{"name": "tea", "price": 12.50, "tags": [1, 2.5, null]}\n\n\n| a | b |\n|---|---|',
    "Prices: 1234567.89, 3,14; IPv4 127.0.0.1; 2026-11-23T10:00:00Z!!! <p class='x'>HTML</p> camelCase SHOUTING",
)
OTHERS = (
    "naïve café, Ελληνικά, русский текст, עברית, العربية",
    "हिन्दी में लिखना, தமிழ், ภาษาไทย",
    "東京タワー、한국어, 你好世界。",
    "🙂👩‍👩‍👧 € ½ ² \u00a0nbsp \u200b zero",
    "e\u0301 n\u0303 \u212b \ufb01 Ｗｉｄｅ ẞ İ",
    " begins with a space",
    "  two  spaces   three ",
    "\n\nbegins with lines\n",
    "\t\ttabs\t",
)
CHATS: tuple[tuple[tuple[str, str], ...], ...] = (
    (("user", "What is 12 × 7?"),),
    (("user", " hello\n\n"),),
    (("system", "Be brief."), ("user", "Hi, who are you?")),
    (("user", "Hi"), ("assistant", "Hello! 東京?"), ("user", "  def f(x):\n    return x")),
)
"""Role and content; only the first is `common`."""
WORDS = 40
"""At most so many special tokens, and words without merges, get texts of their own."""
FIX = "export hf or packed, or train with a tokenizer that llama.cpp cuts alike"


@attrs.frozen
class Probe:
    text: str
    ids: tuple[int, ...]
    """transformers' tokens of it."""
    common: bool
    begins: bool = False
    """A whole prompt: with what the tokenizer, or its chat template, puts at its beginning."""


@attrs.frozen
class Difference:
    probe: Probe
    theirs: tuple[int, ...]

    def __str__(self) -> str:
        at = next(
            (at for at, (a, b) in enumerate(zip(self.probe.ids, self.theirs, strict=False)) if a != b),
            min(len(self.probe.ids), len(self.theirs)),
        )
        ours, theirs = list(self.probe.ids[at : at + 4]), list(self.theirs[at : at + 4])
        return f"{self.probe.text[:60]!r}, from token {at} on: {theirs}, the student's are {ours}"


def probes(tokenizer: Any, vocabulary: Vocabulary) -> list[Probe]:
    """The fixed set, with transformers' tokens."""
    asked = [*COMMON, *OTHERS, *_with_added_tokens(vocabulary)]
    asked += [text for word in vocabulary.whole_words[:WORDS] for text in (word, f"{word}s and{word}")]
    chats = [*CHATS, *((("user", text),) for text in COMMON)]
    rendered = [_rendered(tokenizer, chat) for chat in chats]
    # A student with a chat template is asked through it; else text as it stands is what everybody asks.
    plain = rendered[0] is None
    found = [Probe(text, _ids(tokenizer, text), common=plain and text in COMMON) for text in asked]
    for chat, text in zip(chats, rendered, strict=True):
        if text is not None:
            common = chat == CHATS[0] or chat[0][1] in COMMON
            found.append(Probe(text, _ids(tokenizer, text), common=common, begins=True))
    if chat_template(tokenizer) is None:
        found.append(Probe(COMMON[0], tuple(tokenizer(COMMON[0]).input_ids), common=True, begins=True))
    return found


def _ids(tokenizer: Any, text: str) -> tuple[int, ...]:
    return tuple(tokenizer(text, add_special_tokens=False).input_ids)


def _with_added_tokens(vocabulary: Vocabulary) -> Iterator[str]:
    """Texts around the tokens that are cut out first: those with a name (begin, end) and the first of the others."""
    added = [id_ for id_, type_ in enumerate(vocabulary.types) if type_ in (CONTROL, USER_DEFINED)]
    named = [id_ for id_ in vocabulary.special.values() if id_ in added]
    for id_ in dict.fromkeys([*named, *added[: WORDS // 2], *added[-WORDS // 2 :]]):
        token = vocabulary.tokens[id_]
        yield from (f"{token}hello", f"a {token} b", f"one{token}two\n{token}\n3")


def _rendered(tokenizer: Any, chat: Sequence[tuple[str, str]]) -> str | None:
    """None: the template is none, or refuses such a chat, in whichever way Jinja raises it."""
    if chat_template(tokenizer) is None:
        return None
    messages = [{"role": role, "content": content} for role, content in chat]
    try:
        return str(tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True))
    except Exception:
        return None


def differences(llama: LlamaCpp, asked: Sequence[Probe]) -> list[Difference]:
    """What differs, chats first."""
    found = [(probe, tuple(llama.tokenize(probe.text, begins=probe.begins))) for probe in asked]
    differing = [Difference(probe, theirs) for probe, theirs in found if theirs != probe.ids]
    return sorted(differing, key=lambda each: not each.probe.begins)


def compared(tokenizer: Any, vocabulary: Vocabulary) -> Vocabulary:
    """`vocabulary` as llama.cpp agrees with it best, and with a note on what it still cuts otherwise.

    Where llama.cpp isn't installed, or doesn't load the vocabulary, the note says that nothing was compared.

    Raises:
        CoreError: a common text gets other tokens.
    """
    if find_spec("xllamacpp") is None:
        why = "were not compared: pip install 'bitnet-core[llamacpp]', then export again"
        return _noted(vocabulary, f"llama.cpp's tokens {why}")
    asked, template = probes(tokenizer, vocabulary), chat_template(tokenizer)
    try:
        best, found = vocabulary, _asked_of_file(vocabulary, template, asked)
        if vocabulary.model == "llama" and any(each.probe.begins or each.probe.common for each in found):
            # llama.cpp has one switch where tokenizers have three: what the chats say decides it.
            other = attrs.evolve(vocabulary, add_space_prefix=not vocabulary.add_space_prefix)
            found_with_other = _asked_of_file(other, template, asked)
            if _weight(found_with_other) < _weight(found):
                best, found = other, found_with_other
    except CoreError as error:
        return _noted(vocabulary, f"llama.cpp's tokens were not compared: {error}")
    if common := [each for each in found if each.probe.common]:
        raise CoreError(f"gguf: llama.cpp gives other tokens than the student's tokenizer, of {common[0]}", FIX)
    if not found:
        return best
    return _noted(best, f"llama.cpp gives other tokens than the student learned for {told(found, len(asked))}")


def told(found: Sequence[Difference], asked: int) -> str:
    return f"{len(found)} of {asked} texts ({found[0]}); if such text matters, {FIX}"


def _weight(found: Sequence[Difference]) -> tuple[int, int, int]:
    """Chats before common texts before the others."""
    chats, common = (sum(getattr(each.probe, name) for each in found) for name in ("begins", "common"))
    return chats, common, len(found)


def _noted(vocabulary: Vocabulary, note: str) -> Vocabulary:
    return attrs.evolve(vocabulary, notes=(*vocabulary.notes, note))


def _asked_of_file(vocabulary: Vocabulary, template: str | None, asked: Sequence[Probe]) -> list[Difference]:
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "vocabulary.gguf"
        write_vocabulary_file(file, vocabulary, template)
        with llama_cpp(file, context=64) as llama:
            return differences(llama, asked)


def write_vocabulary_file(file: Path, vocabulary: Vocabulary, template: str | None = None) -> None:
    """A file that llama.cpp's server loads for its vocabulary: one layer, 32 wide, of zeros."""
    from gguf import GGMLQuantizationType, GGUFWriter

    width, half = 32, GGMLQuantizationType.F16
    writer = GGUFWriter(file, "llama")
    try:
        numbers: Mapping[str, int] = {
            "context_length": 64, "embedding_length": width, "block_count": 1, "feed_forward_length": width,
            "head_count": 1, "head_count_kv": 1, "rope_dimension_count": width, "vocab_size": len(vocabulary.tokens),
        }  # fmt: skip
        for name, number in numbers.items():
            getattr(writer, f"add_{name}")(number)
        writer.add_layer_norm_rms_eps(1e-5)
        vocabulary.add_to(writer, template)
        writer.add_tensor("token_embd.weight", np.zeros((len(vocabulary.tokens), width), np.float16), raw_dtype=half)
        for name in ("output_norm", "blk.0.attn_norm", "blk.0.ffn_norm"):
            writer.add_tensor(f"{name}.weight", np.ones(width, np.float32))
        for name in ("attn_q", "attn_k", "attn_v", "attn_output", "ffn_gate", "ffn_up", "ffn_down"):
            writer.add_tensor(f"blk.0.{name}.weight", np.zeros((width, width), np.float16), raw_dtype=half)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
    finally:
        writer.close()
