"""Answers with their tokens: stop strings, cut characters, and log-probabilities against the model's own forward."""

from collections.abc import Callable, Generator, Sequence
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from bitnet_core.config.export import GGUFOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.folder import export
from bitnet_core.export.gguf.write import gguf_exporter
from bitnet_core.runtime.contract import (
    Ending,
    Piece,
    Prompt,
    PromptError,
    Runtime,
    Sampling,
    ScoringRuntime,
    Token,
    answer,
)
from bitnet_core.runtime.open import open_runtime
from bitnet_core.runtime.stream_answer import StopStrings
from bitnet_core.runtime.torch_runtime import TorchRuntime, open_torch

CHAT = [{"role": "user", "content": "The capital of France is"}]


def read(runtime: Runtime, prompt: Prompt, sampling: Sampling) -> tuple[list[Piece], Ending]:
    stream: Generator[Piece, None, Ending] = runtime.pieces(prompt, sampling)
    pieces = []
    while True:
        try:
            pieces.append(next(stream))
        except StopIteration as stop:
            return pieces, stop.value


def tokens_of(pieces: Sequence[Piece]) -> list[Token]:
    return [token for piece in pieces for token in piece.tokens]


def test_log_probabilities_are_the_models_own_whatever_the_temperature(make_checkpoint: Callable[..., Path]) -> None:
    """Without activation quantisation and in float32, where token by token and all at once are the same to rounding."""
    with open_torch(make_checkpoint(activation_bits=16), precision="fp32") as runtime:
        pieces, ending = read(
            runtime, CHAT, Sampling(max_new_tokens=16, temperature=1.7, top_p=0.9, seed=5, top_logprobs=7)
        )
        tokens = tokens_of(pieces)
        prompt, new = runtime.encode(CHAT), [token.id for token in tokens]
        with torch.no_grad():
            logits_TV = runtime.model(input_ids=torch.tensor([prompt + new])).logits[0, len(prompt) - 1 : -1]
    logprobs_TV = logits_TV.double().log_softmax(-1)
    assert len(tokens) == ending.tokens > 4
    for token, expected_V in zip(tokens, logprobs_TV, strict=True):
        assert token.logprob == pytest.approx(float(expected_V[token.id]), abs=1e-4)
        assert [each.logprob for each in token.top] == pytest.approx(expected_V.topk(7).values.tolist(), abs=1e-4)
        for each in token.top:
            assert each.logprob == pytest.approx(float(expected_V[each.id]), abs=1e-4)


def test_the_packed_runtime_tells_its_own_distribution(checkpoint: Path) -> None:
    with open_runtime(checkpoint, kind="packed") as runtime:
        pieces, ending = read(runtime, CHAT, Sampling(max_new_tokens=8, temperature=0.5, seed=2, top_logprobs=3))
        scoring = cast(ScoringRuntime, runtime)
        tokens, prompt = tokens_of(pieces), scoring.encode(CHAT)
        logits_TV = scoring.logits([*prompt, *(token.id for token in tokens)])[len(prompt) - 1 : -1]
    logprobs_TV = logits_TV.double().log_softmax(-1)
    assert len(tokens) == ending.tokens
    for token, expected_V in zip(tokens, logprobs_TV, strict=True):
        assert token.logprob == pytest.approx(float(expected_V[token.id]), abs=1e-3)
        assert [each.logprob for each in token.top] == pytest.approx(expected_V.topk(3).values.tolist(), abs=1e-3)


def test_without_being_asked_no_token_is_told_and_the_text_is_the_same(checkpoint: Path) -> None:
    with open_runtime(checkpoint) as runtime:
        bare, ending = read(runtime, CHAT, Sampling(max_new_tokens=12))
        told, same = read(runtime, CHAT, Sampling(max_new_tokens=12, top_logprobs=0))
        said = answer(runtime, CHAT, Sampling(max_new_tokens=12)).text
    assert tokens_of(bare) == []
    assert [token.top for token in tokens_of(told)] == [()] * ending.tokens
    assert "".join(piece.text for piece in bare) == "".join(piece.text for piece in told) == said
    assert ending == same


class Scripted(TorchRuntime):
    """Says what it is told to."""

    script: Sequence[int] = ()

    def _tokens(self, ids: Any, count: int, read: Any) -> Any:
        for id_ in self.script:
            logits_V = torch.zeros(self.model.config.vocab_size)
            logits_V[id_] = 3.0
            yield read(logits_V)


@pytest.fixture(scope="module")
def scripted(checkpoint: Path) -> Any:
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)

        def make(text: str, end: bool = True) -> TorchRuntime:
            made = Scripted(runtime.model, runtime.tokenizer, runtime.end, runtime.precision)
            ids = runtime.tokenizer(text, add_special_tokens=False).input_ids
            object.__setattr__(made, "script", [*ids, *([2] if end else [])])
            return made

        yield make


def test_a_cut_character_comes_with_all_its_tokens_each_with_its_own_bytes(scripted: Callable[..., Any]) -> None:
    pieces, ending = read(scripted("a 猫é🍵!"), CHAT, Sampling(top_logprobs=2))
    assert [piece.text for piece in pieces][-1] == ""
    assert [token.raw for token in pieces[-1].tokens] == [b"<|im_end|>"]
    for piece in pieces[:-1]:
        assert b"".join(token.raw for token in piece.tokens) == piece.text.encode()
    cat = next(piece for piece in pieces if "猫" in piece.text)
    assert len(cat.tokens) > 1
    assert all(token.top[0].raw == token.raw for token in cat.tokens)
    assert "".join(piece.text for piece in pieces) == "a 猫é🍵!"
    assert ending.reason == "stop"
    assert len(tokens_of(pieces)) == ending.tokens


def test_half_a_character_at_the_end_keeps_its_bytes(scripted: Callable[..., Any]) -> None:
    runtime = scripted("a猫", end=False)
    object.__setattr__(runtime, "script", runtime.script[:-1])
    pieces, ending = read(runtime, CHAT, Sampling(top_logprobs=0))
    assert "".join(piece.text for piece in pieces).startswith("a\ufffd")
    assert b"".join(token.raw for token in tokens_of(pieces)) == "a猫".encode()[:-1]
    assert ending.reason == "length"


@pytest.mark.parametrize(
    ("stop", "left"),
    [
        (("reaches",), "Water "),
        (("er re",), "Wat"),
        (("100", "boils"), "Water reaches "),
        (("100 degrees F",), "Water reaches 100 degrees."),
        (("s.",), "Water reaches 100 degree"),
    ],
)
def test_a_stop_string_ends_the_answer_and_is_no_part_of_it(
    scripted: Callable[..., Any], stop: tuple[str, ...], left: str
) -> None:
    pieces, ending = read(scripted("Water reaches 100 degrees."), CHAT, Sampling(stop=stop, top_logprobs=1))
    assert "".join(piece.text for piece in pieces) == left
    assert ending.reason == "stop"
    spelt = b"".join(token.raw for token in tokens_of(pieces)).decode().removesuffix("<|im_end|>")
    last = tokens_of(pieces)[-1].raw.decode().removesuffix("<|im_end|>")
    assert spelt.startswith(left)
    assert len(spelt) - len(left) < max(1, len(last)), "no token that begins after the answer's end"


@given(st.text("ab", max_size=12), st.lists(st.text("ab", min_size=1, max_size=4), min_size=1, max_size=3), st.data())
def test_stop_strings_cut_any_pieces_where_they_cut_the_whole_text(text: str, stop: list[str], data: Any) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)), max_size=5)))
    parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
    stops, said = StopStrings(stop), ""
    for part in parts:
        said += stops.add(Piece(part)).text
        if stops.found:
            break
    said += stops.rest().text
    # A shorter string that is whole ends the answer before a longer one that begins earlier is.
    ends = [text.find(each) + len(each) for each in stop if each in text]
    assert stops.found == bool(ends)
    first = min((text.find(each) for each in stop if each in text), default=len(text))
    assert said == text[: len(said)]
    assert len(said) >= first
    if not ends:
        assert said == text
    assert not any(each in said for each in stop)


class Counted(str):
    """A text that counts how often one of its characters is looked up."""

    looked_up = 0

    def __getitem__(self, place: Any) -> str:
        Counted.looked_up += 1
        return super().__getitem__(place)


def test_a_stop_string_of_a_hundred_thousand_characters_costs_a_look_at_each() -> None:
    """Those that repeat themselves, which an answer keeps nearly saying: a comparison at each beginning is n²."""
    stop, Counted.looked_up = Counted("ab" * 50_000 + "c"), 0
    stops = StopStrings([stop])
    said = "".join(stops.add(Piece("ab")).text for _ in range(60_000))
    assert said == "ab" * 10_000, "what can't be its beginning any more is told"
    assert stops.add(Piece("c and more")).text == ""
    assert stops.found
    assert stops.rest() == Piece("")
    assert Counted.looked_up < 5 * len(stop)


def test_every_token_gives_a_piece_so_that_a_reader_may_leave(scripted: Callable[..., Any]) -> None:
    text = "Water reaches 100 degrees."
    pieces, ending = read(scripted(text), CHAT, Sampling(stop=(text + "!",)))
    assert len(pieces) >= ending.tokens - 1
    assert "".join(piece.text for piece in pieces) == text
    assert pieces[0].text == "", "it may be the beginning of the stop string"


def test_what_is_asked_in_vain_is_told_apart_from_what_fails(scripted: Callable[..., Any]) -> None:
    runtime = scripted("tea")
    for prompt in ("", "tea " * 400, "x" * 1_000_000):
        with pytest.raises(PromptError):
            read(runtime, prompt, Sampling())
    object.__setattr__(runtime, "tokenizer", None)  # nothing is tokenised before its size is known
    with pytest.raises(PromptError, match="1,000,000 characters, the model's context"):
        read(runtime, "x" * 1_000_000, Sampling())


def test_llama_cpp_tells_the_same_log_probabilities(make_checkpoint: Callable[..., Path], tmp_path: Path) -> None:
    """Without activation quantisation, where both compute the same distribution, but for llama.cpp's float16 cache."""
    checkpoint = make_checkpoint(activation_bits=16, tables_in_8_bits=True)
    export(checkpoint, {"gguf": gguf_exporter(GGUFOptions(types=("f32",)))}, tmp_path)
    sampling = Sampling(max_new_tokens=12, top_logprobs=5)
    with open_runtime(tmp_path / "student-f32.gguf") as runtime:
        pieces, ending = read(runtime, CHAT, sampling)
        pieces = [piece for piece in pieces if piece.text or piece.tokens]
        stopped, _ = read(runtime, CHAT, Sampling(max_new_tokens=12, stop=(pieces[2].text,)))
        ours = tokens_of(pieces)
    with open_torch(checkpoint, precision="fp32") as torchs:
        theirs = tokens_of(read(torchs, CHAT, sampling)[0])
        prompt = len(torchs.encode(CHAT))
    assert ending.prompt_tokens == prompt
    assert "".join(piece.text for piece in stopped) == "".join(piece.text for piece in pieces).split(pieces[2].text)[0]
    known = 0
    place = 0
    for token in ours:
        if token.logprob != token.logprob:  # several tokens in one entry
            joined = theirs[place].raw
            while joined != token.raw:
                place += 1
                joined += theirs[place].raw
        else:
            known += 1
            assert (token.id, token.raw) == (theirs[place].id, theirs[place].raw)
            assert token.logprob == pytest.approx(theirs[place].logprob, abs=0.01)
            assert [each.logprob for each in token.top] == pytest.approx(
                [each.logprob for each in theirs[place].top], abs=0.01
            )
        place += 1
    assert known > 4
    assert place == len(theirs)


def test_a_tokenizer_that_tells_no_bytes_is_refused_where_they_are_asked_for(checkpoint: Path) -> None:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    words = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"tea": 0, "?": 1}, unk_token="?")))
    with open_runtime(checkpoint) as runtime:
        assert isinstance(runtime, TorchRuntime)
        wordy = TorchRuntime(runtime.model, words, frozenset(), runtime.precision)
        with pytest.raises(CoreError, match="does not say which bytes a token stands for"):
            read(wordy, "tea", Sampling(max_new_tokens=1, top_logprobs=0))
