"""``text_perplexity`` and ``free_running``, of models whose every probability is known."""

import json
import math
from collections.abc import Generator, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest
import torch

from bitnet_core.benchmarks.contract import NotMeasured, Score
from bitnet_core.benchmarks.free_running import check as check_free
from bitnet_core.benchmarks.free_running import load_free_running, repeated
from bitnet_core.benchmarks.text_perplexity import check, load_text_perplexity
from bitnet_core.config.evaluate import FreeRunningOptions, TextPerplexityOptions
from bitnet_core.evaluation.benchmark_scores import measure
from bitnet_core.runtime.contract import Ending


@attrs.frozen(eq=False)
class TextAlone:
    """Says what it was told to."""

    said: dict[str, tuple[str, str]] = attrs.field(factory=dict)
    description: str = "a script"

    def stream(self, prompt: Any, sampling: Any) -> Generator[str, None, Ending]:
        text, reason = self.said[prompt[-1]["content"]]
        yield text
        return Ending(reason, 1, len(text))  # type: ignore[arg-type]


@attrs.frozen(eq=False)
class Alphabet(TextAlone):
    """A token is a byte; the one after it in the alphabet follows with probability `sure`, each other one alike."""

    sure: float = 0.5
    context: int = 40
    raw: Sequence[bytes] = tuple(bytes([i]) for i in range(256))

    def encode(self, prompt: Any) -> list[int]:
        return list((prompt if isinstance(prompt, str) else prompt[-1]["content"]).encode())

    def logits(self, ids: Sequence[int], last: int) -> torch.Tensor:
        table_TV = torch.full((len(ids), 256), (1 - self.sure) / 255)
        table_TV[torch.arange(len(ids)), (torch.tensor(ids) + 1) % 256] = self.sure
        return table_TV.log()[-last:]


@attrs.frozen
class Subject:
    model: Any
    teacher: Any = None
    role: str = "student"
    name: str = "model"

    def runtime(self) -> Any:
        return self.model

    def teacher_runtime(self) -> Any:
        if self.teacher is None:
            raise NotMeasured("a hosted teacher", "none")
        return self.teacher


def write(file: Path, *records: dict[str, Any]) -> Path:
    file.write_text("\n".join(map(json.dumps, records)))
    return file


def value(score: Any) -> float:
    found = measure(score, 20, 0)["value"]
    assert isinstance(found, float)
    return found


def test_perplexity_is_per_byte_and_by_kind(tmp_path: Path) -> None:
    texts = write(
        tmp_path / "texts.jsonl",
        {"kind": "rising", "text": "abcdefg"},
        {"kind": "mixed", "text": "abab"},
        {"kind": "mixed", "text": "xyz"},
        {"text": "no kind"},
    )
    own = write(tmp_path / "own.jsonl", {"id": "1", "messages": [{"role": "user", "content": "a"}], "text": "bcd"})
    found = load_text_perplexity(TextPerplexityOptions(texts=texts, own=own))(Subject(Alphabet()))  # type: ignore[arg-type]
    assert set(found.scores) == {"rising", "mixed", "text", "own"}
    assert value(found.scores["rising"]) == pytest.approx(2)
    other = 2 * 255  # 1 / probability of any other byte
    assert value(found.scores["mixed"]) == pytest.approx((2 * other * 2 * 2 * 2) ** (1 / 5))
    assert value(found.scores["own"]) == pytest.approx(2)
    own_score = found.scores["own"]
    assert isinstance(own_score, Score)
    assert own_score.counts == (3.0,), "behind a prompt the first token is foreseen too"


def test_a_long_text_is_cut_and_a_runtime_of_text_alone_has_no_figure(tmp_path: Path) -> None:
    texts = write(tmp_path / "texts.jsonl", {"text": "a" * 90})
    for options, kept in (
        (TextPerplexityOptions(texts=texts), 39),
        (TextPerplexityOptions(texts=texts, max_tokens=9), 8),
    ):
        (score,) = load_text_perplexity(options)(Subject(Alphabet())).scores.values()  # type: ignore[arg-type]
        assert isinstance(score, Score)
        assert score.counts == (float(kept),)
    too_long = write(tmp_path / "long.jsonl", {"text": "b" * 90, "prompt": "a" * 60})
    (score,) = load_text_perplexity(TextPerplexityOptions(texts=too_long))(Subject(Alphabet())).scores.values()  # type: ignore[arg-type]
    assert isinstance(score, Score)
    assert score.counts == (0.0,), "the prompt alone is beyond the context of 40"
    with pytest.raises(NotMeasured, match="a script gives text alone"):
        load_text_perplexity(TextPerplexityOptions(texts=texts))(Subject(TextAlone()))  # type: ignore[arg-type]


def test_free_answers_are_judged_by_the_teacher(tmp_path: Path) -> None:
    prompts = write(
        tmp_path / "prompts.jsonl",
        {"id": "rising", "prompt": "a"},
        {"id": "json", "prompt": "give JSON", "format": "json"},
        {"id": "broken", "prompt": "more JSON", "format": "json"},
    )
    said = {"a": ("bcd", "stop"), "give JSON": ('{"a": 1}', "stop"), "more JSON": ("one two " * 4, "length")}
    benchmark = load_free_running(FreeRunningOptions(prompts=prompts))
    found = benchmark(Subject(TextAlone(said), teacher=Alphabet(sure=0.25, context=200))).scores  # type: ignore[arg-type]
    assert value(found["ended"]) == pytest.approx(2 / 3)
    assert (value(found["json_parsed"]), measure(found["json_parsed"], 20, 0)["items"]) == (0.5, 2)
    assert value(found["repetition"]) == pytest.approx(3 / 5)
    score = found["teacher_perplexity"]
    assert isinstance(score, Score)
    assert score.sums[0] == pytest.approx(3 * math.log(4))
    assert score.counts == (3.0, 8.0, 32.0)
    alone = benchmark(Subject(TextAlone(said))).scores  # type: ignore[arg-type]
    assert set(alone) == {"ended", "json_parsed", "repetition"}, "what needs the teacher is absent without it"


@pytest.mark.parametrize(
    ("text", "found"),
    [("", (0, 0)), ("one two three", (0, 0)), ("a b c d a b c d", (1, 5)), ("A b, c d. a B c d!", (1, 5))],
)
def test_repetition_counts_word_4_grams_that_stood_before(text: str, found: tuple[int, int]) -> None:
    assert repeated(text) == found


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("[1]", "not an object"),
        ('{"text": " "}', '"text" is missing or empty'),
        ('{"text": "a", "kind": "two words"}', "\"kind\" is 'two words'"),
        ('{"text": "a", "messages": []}', 'no usable "prompt" or "messages"'),
        ("", "there is no text in this file"),
    ],
)
def test_a_faulty_file_is_told_before_anything_runs(tmp_path: Path, line: str, said: str) -> None:
    (tmp_path / "texts.jsonl").write_text(line)
    (problem,) = check(TextPerplexityOptions(texts=tmp_path / "texts.jsonl"))
    assert said in problem
    (problem,) = check_free(FreeRunningOptions(prompts=tmp_path / "missing.jsonl"))
    assert "can't be read" in problem
