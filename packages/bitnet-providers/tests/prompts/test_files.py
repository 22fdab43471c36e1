"""Prompt and text files: what they may hold, and what each mistake is told."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.files import Prompt, Text, load_prompts, load_texts


def jsonl(folder: Path, *records: Any) -> Path:
    path = folder / "file.jsonl"
    path.write_text("\n".join(r if isinstance(r, str) else json.dumps(r) for r in records), encoding="utf-8")
    return path


def test_prompts_in_both_spellings(tmp_path: Path) -> None:
    turns = [{"role": "system", "content": "Be short."}, {"role": "user", "content": "Hi"}]
    path = jsonl(tmp_path, {"id": "a", "prompt": "Hi"}, "", {"id": "b", "messages": turns, "format": "json"})
    assert load_prompts(path) == (
        Prompt("a", ({"role": "user", "content": "Hi"},)),
        Prompt("b", tuple(turns), "json"),
    )


def test_texts_with_and_without_conversation(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"id": "a", "text": "Once\nupon"},
        {"id": "b", "messages": [{"role": "user", "content": "Hi"}], "text": "Hello"},
    )
    assert load_texts(path) == (Text("a", "Once\nupon"), Text("b", "Hello", ({"role": "user", "content": "Hi"},)))


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = tmp_path / "p.txt"
    path.write_text("first\n\n  second \n", encoding="utf-8")
    assert load_prompts(path) == (
        Prompt("1", ({"role": "user", "content": "first"},)),
        Prompt("3", ({"role": "user", "content": "second"},)),
    )


@given(st.text(st.characters(exclude_categories=["Cs"]), min_size=1).filter(str.strip))
def test_every_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Line separators that are not newlines, control characters, all of it."""
    path = jsonl(tmp_path_factory.mktemp("texts"), json.dumps({"id": "a", "text": text}, ensure_ascii=False))
    assert load_texts(path) == (Text("a", text),)


@pytest.mark.parametrize(
    ("record", "message"),
    [
        ("{", ":1: not JSON (Expecting property name enclosed in double quotes)  → write one object a line"),
        ("[]", ":1: expected an object, got an empty list  → write one object a line"),
        ({"id": "a"}, ':1: it has both "prompt" and "messages", or neither  → give one of them'),
        ({"prompt": "x"}, ':1: "id" is missing  → add it'),
        ({"id": 3, "prompt": "x"}, ':1: "id" is a number  → write a string'),
        ({"id": "a", "prompt": " "}, ':1: "prompt" is empty  → fill it, or take the line out'),
        (
            {"id": "a", "promt": "x"},
            ':1: unknown key "promt"  → use only these keys: id, prompt, messages, format',
        ),
        (
            {"id": "a", "messages": "x"},
            ':1: "messages" is a string  → write a list of {"role", "content"} objects',
        ),
        (
            {"id": "a", "messages": [{"role": "user"}]},
            ':1: messages[0]: expected an object with "role" and "content", and no other key  → '
            'write {"role": "user", "content": "..."}',
        ),
        (
            {"id": "a", "messages": [{"role": "bot", "content": "x"}]},
            ':1: messages[0]: "role" is "bot"  → write one of system, user, assistant',
        ),
        (
            {"id": "a", "messages": [{"role": "assistant", "content": "x"}]},
            ':1: the last message is the assistant\'s own  → end with a "user" message',
        ),
        ('{"id": "a", "prompt": "\\ud800"}', ':1: "prompt" holds half a surrogate pair  → write whole characters'),
    ],
)
def test_each_mistake_names_line_and_fix(tmp_path: Path, record: Any, message: str) -> None:
    path = jsonl(tmp_path, record)
    with pytest.raises(ProviderError) as caught:
        load_prompts(path)
    assert str(caught.value) == f"{path}{message}"


def test_two_of_one_id_are_refused(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"id": "a", "text": "x"}, {"id": "b", "text": "y"}, {"id": "a", "text": "z"})
    with pytest.raises(ProviderError) as caught:
        load_texts(path)
    assert str(caught.value) == f'{path}:3: the id "a" is taken by line 1  → give each text an id of its own'


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty = tmp_path / "empty.jsonl"
    empty.write_text("\n \n")
    with pytest.raises(ProviderError) as caught:
        load_prompts(empty)
    assert str(caught.value) == f"{empty}: there is no prompt in this file  → add one a line"

    missing = tmp_path / "missing.jsonl"
    with pytest.raises(ProviderError) as caught:
        load_prompts(missing)
    assert str(caught.value) == f"{missing}: there is no such file  → correct the path, relative to the manifest"

    latin = tmp_path / "latin.txt"
    latin.write_bytes(b"caf\xe9")
    with pytest.raises(ProviderError) as caught:
        load_prompts(latin)
    assert str(caught.value) == f"{latin}: not UTF-8 (byte 3)  → save the file in UTF-8"

    with pytest.raises(ProviderError) as caught:
        load_prompts(tmp_path / "prompts.csv")
    assert str(caught.value).endswith(
        "prompts.csv: the ending says nothing about the format  → name it .jsonl, .txt or .parquet"
    )
