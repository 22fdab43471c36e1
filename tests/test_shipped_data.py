"""The data that the quickstart ships is what its README says it is."""

import ast
import importlib.util
import json
import re
import textwrap
import tomllib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from bitnet_core.benchmarks.json_validity import conforms, load_json_prompts

DATA = Path(__file__).parents[1] / "manifests" / "data"
FILES = ("prompts.jsonl", "eval_prompts.jsonl", "json_prompts.jsonl", "corpus.jsonl", "test.jsonl")
ANSWERED = ("corpus.jsonl", "test.jsonl")


def read(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (DATA / name).read_text(encoding="utf-8").splitlines()]


def conversation(record: dict[str, Any]) -> list[dict[str, str]]:
    return record.get("messages") or [{"role": "user", "content": record["prompt"]}]


def is_json(record: dict[str, Any]) -> bool:
    return record.get("format") == "json"


@pytest.fixture(scope="module")
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_corpus", DATA / "make_corpus.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("name", FILES)
def test_records_have_the_fields_of_their_kind(name: str) -> None:
    for record in read(name):
        allowed = {"id", "messages", "text", "format"} if name in ANSWERED else {"id", "prompt", "messages", "format"}
        assert set(record) <= allowed | ({"schema"} if name == "json_prompts.jsonl" else set())
        assert ("prompt" in record) != ("messages" in record)
        assert record.get("format", "json") == "json"
        messages = conversation(record)
        assert messages[-1]["role"] == "user"
        for message in messages:
            assert set(message) == {"role", "content"}
            assert message["role"] in ("system", "user", "assistant")
            assert message["content"].strip()


@pytest.mark.parametrize("name", FILES)
def test_ids_are_unique(name: str) -> None:
    ids = [record["id"] for record in read(name)]
    assert all(ids)
    assert len(set(ids)) == len(ids)


def test_prompts_are_many_distinct_and_a_third_ask_for_json() -> None:
    prompts = read("prompts.jsonl")
    assert len(prompts) >= 144
    assert len({json.dumps(conversation(record)) for record in prompts}) == len(prompts)
    assert sum(map(is_json, prompts)) >= len(prompts) / 3
    assert any(len(conversation(record)) >= 3 for record in prompts), "no multi-turn conversation"
    assert any(conversation(record)[0]["role"] == "system" for record in prompts), "no system message"


def test_eval_prompts_are_not_among_those_trained_on() -> None:
    evaluation = read("eval_prompts.jsonl")
    assert len(evaluation) == 12
    assert sum(map(is_json, evaluation)) == 4
    evaluation += read("json_prompts.jsonl")
    trained = {
        conversation(record)[-1]["content"] for name in ("prompts.jsonl", "corpus.jsonl") for record in read(name)
    }
    assert not trained & {conversation(record)[-1]["content"] for record in evaluation}


def test_json_prompts_ask_for_json_of_a_schema_that_can_be_met() -> None:
    prompts = load_json_prompts(DATA / "json_prompts.jsonl")
    assert len(prompts) == 8
    assert all(map(is_json, read("json_prompts.jsonl")))
    assert [prompt.id for prompt in prompts if conforms({}, prompt.schema) or conforms([], prompt.schema)] == []


def test_corpus_answers_are_distinct_and_pass_the_rules_that_made_them(generator: ModuleType) -> None:
    corpus = read("corpus.jsonl")
    texts = [record["text"] for record in corpus]
    assert len(set(texts)) == len(texts)
    fault: Callable[[str, int, bool], str | None] = generator.fault
    assert [(r["id"], f) for r in corpus if (f := fault(r["text"], generator.MIN_TOKENS, is_json(r))) is not None] == []
    assert 0.3 <= sum(map(is_json, corpus)) / len(corpus) <= 0.45
    assert (DATA / "corpus.jsonl").stat().st_size < 600_000


def test_test_documents_repeat_nothing_of_the_others(generator: ModuleType) -> None:
    test = read("test.jsonl")
    assert len(test) >= 150
    assert 0.2 <= sum(map(is_json, test)) / len(test) <= 0.45
    assert (DATA / "test.jsonl").stat().st_size < 150_000
    asked = [json.dumps(conversation(record)) for record in test]
    others = [record for name in FILES if name != "test.jsonl" for record in read(name)]
    assert len(set(asked)) == len(asked)
    assert not set(asked) & {json.dumps(conversation(record)) for record in others}
    fault = generator.fault
    assert [(r["id"], f) for r in test if (f := fault(r["text"], generator.MIN_TOKENS, is_json(r))) is not None] == []
    known = {gram for record in read("corpus.jsonl") for gram in four_grams(record["text"])}
    for record in test:
        grams = four_grams(record["text"])
        assert len(grams & known) <= 0.3 * len(grams), record["id"]


def test_foreign_texts_are_sixty_of_each_kind_and_plain() -> None:
    records = read("foreign.jsonl")
    kinds = Counter(record["kind"] for record in records)
    assert kinds == dict.fromkeys(("prose", "encyclopaedia", "code", "json"), 60)
    assert len({record["id"] for record in records}) == len({record["text"] for record in records}) == 240
    assert all(500 <= len(record["text"].encode()) <= 1400 for record in records)
    for record in records:
        if record["kind"] == "json":
            json.loads(record["text"])
        if record["kind"] == "code":
            first, _, rest = record["text"].partition("\n")
            ast.parse(f"{first}\n{textwrap.indent(textwrap.dedent(rest), '    ')}")
        if record["kind"] == "encyclopaedia":
            assert not re.search(r"\[\[|\{\{|&[a-z]+;|''", record["text"]), record["id"]


def four_grams(text: str) -> set[str]:
    words = "".join(letter if letter.isalnum() or letter == "_" else " " for letter in text.lower()).split()
    return {" ".join(words[i : i + 4]) for i in range(len(words) - 3)}


@pytest.mark.parametrize(("name", "seed"), [("corpus.jsonl", 2), ("test.jsonl", 3)])
def test_corpus_prompts_are_those_of_the_generator_in_its_order(generator: ModuleType, name: str, seed: int) -> None:
    families = tomllib.loads((DATA / "corpus_prompts.toml").read_text(encoding="utf-8"))["family"]
    prompts = generator.make_prompts(families, seed=seed, test=name == "test.jsonl")
    assert len({prompt["id"] for prompt in prompts}) == len(prompts)
    order = {prompt["id"]: (place, prompt) for place, prompt in enumerate(prompts)}
    places = []
    for record in read(name):
        place, prompt = order[record["id"]]
        assert {key: value for key, value in record.items() if key != "text"} == prompt
        places.append(place)
    assert places == sorted(places)


@pytest.mark.parametrize(
    ("text", "tokens", "asked_json", "reason"),
    [
        ("The tide rises twice a day.", 8, False, None),
        ('```json\n{"a": [1]}\n```', 12, True, None),
        ('Here it is:\n  {"a": 1}\nThat was it.', 12, True, None),
        ('It is a list of {"a": 1} and more.', 12, True, "no JSON"),
        ('{"a": 1, "b"', 12, True, "no JSON"),
        ("{}\nis empty, so nothing is there.", 12, True, "no JSON"),
        ("Forty-two is the number.", 12, True, "no JSON"),
        ("Yes.", 2, False, "too short"),
        (" \n ", 9, False, "too short"),
        ("the cat sat on the mat " * 4, 24, False, "repeated 4-grams"),
        ("a-far-far-off-land" * 6, 40, False, "repeated 4-grams"),
        ("\n".join(f"the same line again\n{word}" for word in ("one", "two", "six")), 30, False, "repeated lines"),
        ("кот и собака", 9, False, "foreign characters"),
        ("Write to someone@somewhere today, please.", 9, False, "address or telephone number"),
        ("A large dose of it cures everybody.", 9, False, "medical claim"),
    ],
)
def test_each_drop_rule(generator: ModuleType, text: str, tokens: int, asked_json: bool, reason: str | None) -> None:
    assert generator.fault(text, tokens, asked_json) == reason


def test_selection_stops_at_the_target_and_drops_a_text_that_comes_again(generator: ModuleType) -> None:
    prompts = [{"id": str(n), "messages": [{"role": "user", "content": str(n)}]} for n in range(5)]
    words = ["one two three", "one two three", "four five six", "seven eight nine", "ten eleven twelve"]
    answers = [{"id": str(n), "text": text, "tokens": 6} for n, text in enumerate(words)]
    kept, dropped, tokens = generator.select(prompts, answers, 12)
    assert [record["id"] for record in kept] == ["0", "2"]
    assert dropped == {"same text again": 1}
    assert tokens == 12


def test_selection_of_test_answers_drops_what_repeats_the_corpus_or_a_prompt(generator: ModuleType) -> None:
    prompts = [{"id": str(n), "messages": [{"role": "user", "content": str(n // 2)}]} for n in range(6)]
    words = ["a b c d e f g h", "i j k l m n", "o p q r s t", "u v w x y z", "i j k l m one", "2 3 4 5 6 7 8"]
    answers = [{"id": str(n), "text": text, "tokens": 6} for n, text in enumerate(words)]
    kept, dropped, _ = generator.select(prompts, answers, 99, ["... A b c d e."])
    assert [record["id"] for record in kept] == ["1", "2", "5"]
    assert dropped == {"near-duplicate": 2, "same prompt again": 1}


def test_readme_counts_agree_with_the_files() -> None:
    readme = (DATA / "README.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+\.jsonl)` \| (\d+) \| (\d+) \| (\d+) \|", readme, re.MULTILINE)
    stated = {name: tuple(map(int, numbers)) for name, *numbers in rows}
    counted = {
        name: (len(records), sum(map(is_json, records)), len({json.dumps(conversation(r)) for r in records}))
        for name in FILES
        for records in [read(name)]
    }
    assert stated == counted
