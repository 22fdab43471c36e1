"""Prompt and text files: what they may hold, and what each mistake is told."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.config import ColumnsConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.prompts.load_prompts import Prompt, Text, load_prompts, load_texts, read_prompts


def user(text: str) -> tuple[dict[str, str], ...]:
    return ({"role": "user", "content": text},)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def jsonl(folder: Path, *records: Any) -> Path:
    return write(folder / "file.jsonl", "\n".join(r if isinstance(r, str) else json.dumps(r) for r in records))


def refused(load: Any, path: Path) -> str:
    with pytest.raises(ProviderError) as caught:
        load(path)
    return str(caught.value)


SHAPES: list[tuple[dict[str, Any], tuple[dict[str, str], ...], tuple[str, tuple[dict[str, str], ...]] | None]] = [
    ({"prompt": "Q", "completion": "A"}, user("Q"), ("A", user("Q"))),
    ({"prompt": "Q"}, user("Q"), None),
    ({"question": "Q", "answer": "A"}, user("Q"), ("A", user("Q"))),
    ({"instruction": "Q", "input": "", "output": "A"}, user("Q"), ("A", user("Q"))),
    ({"instruction": "Q", "input": "x", "output": "A", "text": "..."}, user("Q\n\nx"), ("A", user("Q\n\nx"))),
    ({"text": "Once"}, user("Once"), ("Once", ())),
    ({"prompt": "Q", "text": "Once"}, user("Q"), ("Once", ())),
    # OpenAI's fine-tuning: name and weight, content parts, an answer without words at the end.
    (
        {
            "messages": [
                {"role": "user", "content": "Q", "name": "x"},
                {"role": "assistant", "content": "A", "weight": 1},
            ]
        },
        user("Q"),
        ("A", user("Q")),
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Q"}, {"type": "text", "text": "q"}]}]},
        user("Q\nq"),
        None,
    ),
    ({"messages": [*user("Q"), {"role": "assistant", "content": None, "tool_calls": []}]}, user("Q"), None),
    ({"messages": [*user("Q")], "text": "A"}, user("Q"), ("A", user("Q"))),
    # ShareGPT: another word for each role, a system turn that says nothing, one that does.
    (
        {"conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}], "id": None},
        user("Q"),
        ("A", user("Q")),
    ),
    ({"conversations": [{"from": "system", "value": ""}, {"from": "human", "value": "Q"}]}, user("Q"), None),
    (
        {"system": "S", "conversations": [{"from": "human", "value": "Q"}, {"from": "gpt", "value": "A"}]},
        ({"role": "system", "content": "S"}, *user("Q")),
        ("A", ({"role": "system", "content": "S"}, *user("Q"))),
    ),
    (
        {"messages": [{"role": "developer", "content": "S"}, *user("Q")], "system": "other"},
        ({"role": "system", "content": "S"}, *user("Q")),
        None,
    ),
    (
        {"prompt": [*user("Q")], "completion": [{"role": "assistant", "content": "A"}]},  # TRL
        user("Q"),
        ("A", user("Q")),
    ),
]


@pytest.mark.parametrize(("record", "prompt", "text"), SHAPES, ids=range(len(SHAPES)))
def test_each_shape_as_prompt_and_as_text(
    tmp_path: Path,
    record: dict[str, Any],
    prompt: tuple[dict[str, str], ...],
    text: tuple[str, tuple[dict[str, str], ...]] | None,
) -> None:
    path = jsonl(tmp_path, record)
    assert load_prompts(path) == (Prompt("1", prompt),)
    if text is None:
        assert "answer" in (told := refused(load_texts, path)) or "null" in told
    else:
        assert load_texts(path) == (Text("1", *text),)


def test_a_conversation_of_many_turns_keeps_those_before(tmp_path: Path) -> None:
    turns = [*user("Q1"), {"role": "assistant", "content": "A1"}, *user("Q2"), {"role": "assistant", "content": "A2"}]
    path = jsonl(tmp_path, {"messages": turns})
    assert load_prompts(path) == (Prompt("1", tuple(turns[:3])),)
    assert load_texts(path) == (Text("1", "A2", tuple(turns[:3])),)


def test_ids_and_formats(tmp_path: Path) -> None:
    path = jsonl(
        tmp_path,
        {"id": "a", "prompt": "x", "format": "json"},
        {"id": 7, "prompt": "x", "format": {"another": "thing"}},
        {"id": "", "prompt": "x"},
        {"id": 8.0, "prompt": "x"},
        {"id": "a", "prompt": "x"},
        {"id": "a", "prompt": "x"},
    )
    loaded = read_prompts(path, ColumnsConfig())
    assert [each.id for each in loaded.items] == ["a", "7", "3", "8", "a#5", "a#6"]
    assert [each.format for each in loaded.items] == ["json", None, None, None, None, None]
    assert loaded.notes == (
        f"{path}: 2 rows have the id of an earlier one (the first: line 5): the number of the row stands behind it",
    )


def test_columns_of_other_names_in_every_format(tmp_path: Path) -> None:
    columns = ColumnsConfig(prompt="frage", response="antwort", id="key")
    record = {"frage": "Q", "antwort": "A", "key": "k", "prompt": "no", "answer": "no", "id": "no"}
    for path in (
        jsonl(tmp_path, record),
        write(tmp_path / "a.json", json.dumps([record])),
        write(tmp_path / "a.csv", ",".join(record) + "\n" + ",".join(record.values())),
        write(tmp_path / "a.tsv", "\t".join(record) + "\n" + "\t".join(record.values())),
    ):
        assert load_prompts(path, columns) == (Prompt("k", user("Q")),)
        assert load_texts(path, columns) == (Text("k", "A", user("Q")),)
    own = ColumnsConfig(text="frage", messages="chat")
    path = jsonl(tmp_path, record | {"chat": [*user("Hi")]})
    assert load_texts(path, own) == (Text("no", "Q", user("Hi")),)
    assert load_prompts(path, own) == (Prompt("no", user("Hi")),)


def test_plain_text_is_one_prompt_a_line(tmp_path: Path) -> None:
    path = write(tmp_path / "p.txt", "first\n\n  second \n")
    assert load_prompts(path) == (Prompt("1", user("first")), Prompt("3", user("second")))
    assert load_prompts(path, limit=1) == (Prompt("1", user("first")),)


@pytest.mark.parametrize("ending", ["txt", "jsonl", "jsonl.gz"])
def test_a_file_is_read_as_far_as_is_wanted(tmp_path: Path, ending: str) -> None:
    line = b"first" if ending == "txt" else b'{"prompt": "first"}'
    content = line + b"\n" + b"\xff\n" * 10  # what comes later may be more than the memory holds
    path = write(tmp_path / f"p.{ending}", gzip.compress(content) if ending.endswith("gz") else content)
    assert load_prompts(path, limit=1) == (Prompt("1", user("first")),)
    assert refused(load_prompts, path) == f"{path}:2: not UTF-8  → save the file in UTF-8"


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
@pytest.mark.parametrize("ending", ["txt", "jsonl", "json", "csv"])
def test_encodings_and_line_ends(tmp_path: Path, encoding: str, ending: str) -> None:
    content = {
        "txt": "Grüße\r\n\r\nzwei\r\n",
        "jsonl": '{"prompt": "Grüße"}\r\n\r\n{"prompt": "zwei"}\r\n',
        "json": '[\r\n{"prompt": "Grüße"},\r\n{"prompt": "zwei"}]\r\n',
        "csv": "prompt\r\nGrüße\r\nzwei\r\n",
    }[ending]
    path = write(tmp_path / f"p.{ending}", content.encode(encoding))
    assert [each.messages for each in load_prompts(path)] == [user("Grüße"), user("zwei")]


def test_compressed_files(tmp_path: Path) -> None:
    path = write(tmp_path / "p.jsonl.gz", gzip.compress(b'{"prompt": "Hi"}\n'))
    assert load_prompts(path) == (Prompt("1", user("Hi")),)
    cut = write(tmp_path / "cut.jsonl.gz", path.read_bytes()[:-12])
    assert "can't be read" in refused(load_prompts, cut)


def test_json_files(tmp_path: Path) -> None:
    rows = '[{"prompt": "a"}, {"prompt": "b"}]'
    both = [user("a"), user("b")]
    for content in (
        rows,
        '{"version": "1", "data": ' + rows + "}",
        '{"prompt": "a"}\n{"prompt": "b"}',  # JSON lines under another name
        '["a", "b"]',
    ):
        path = write(tmp_path / "p.json", content)
        assert [each.messages for each in load_prompts(path)] == both
    assert load_prompts(write(path, '{"prompt": "a"}')) == (Prompt("1", user("a")),)
    for content, told in (
        ('[{"prompt": "a"},\n\n{"prompt": }]', ":3: not JSON (Expecting value)"),
        ('[{"prompt": "a"}\n{"prompt": "b"}]', ":2: not JSON (no comma or ] behind a row)"),
        ('[{"prompt": "a"},\n]', ":2: not JSON (Expecting value)"),
        ('[{"prompt": "a"},\n', ":2: not JSON (Expecting value)"),
        ('{"prompt":\n', ":2: not JSON (Expecting value)"),
        ('[{"prompt": "a"}\n] x', ":2: not JSON (more behind the list)"),
        ('[{"prompt": "a"}]\n[{"prompt": "b"}]', ":1: not JSON (more behind the list)"),
        ("[" * 100_000, ":1: not JSON (nested too deep or a number too long)"),
        ("[]", ": there is no prompt in it"),
    ):
        assert refused(load_prompts, write(path, content)).startswith(f"{path}{told}  → ")


def test_csv_files(tmp_path: Path) -> None:
    chat = json.dumps([*user("Q"), {"role": "assistant", "content": "A"}]).replace('"', '""')
    path = write(
        tmp_path / "p.csv", f'\ufeffid;messages;note\r\n7;"{chat}";"two\r\nlines"\r\n;;\r\n\r\n8;"{chat}";\r\n'
    )
    assert load_prompts(path) == (Prompt("7", user("Q")), Prompt("8", user("Q")))
    assert load_texts(path, limit=1) == (Text("7", "A", user("Q")),)
    write(path, 'prompt,n\n"a, b\nc",1\nd,2,3\n,4\n')
    assert refused(load_prompts, path) == (
        f"{path}: 2 of 3 rows hold no prompt that can be used\n"
        "  line 4: 3 fields, and the header has 2\n"
        '  line 5: "prompt" is null\n'
        "  → quote fields with commas; fill it, or take the row out; or leave them out: skip_unusable = true beside "
        "the file's name (bitnet distil --skip-unusable)"
    )
    assert f"{path}:2: not CSV (unexpected end of data)" in refused(load_prompts, write(path, 'prompt\n"a\nb\n'))
    assert "two columns are called 'a'" in refused(load_prompts, write(path, "a,a\n1,2\n"))
    path = write(path, "prompt\n" + "long " * 100_000)
    assert len(load_prompts(path)[0].messages[0]["content"]) == 500_000


@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1).filter(str.strip))
def test_every_text_survives(tmp_path_factory: pytest.TempPathFactory, text: str) -> None:
    """Line separators that are not newlines, control characters, all of it."""
    folder = tmp_path_factory.mktemp("texts")
    assert load_texts(jsonl(folder, json.dumps({"id": "a", "text": text}, ensure_ascii=False))) == (Text("a", text),)
    assert load_texts(write(folder / "t.json", json.dumps([{"id": "a", "text": text}]))) == (Text("a", text),)


MISTAKES: list[tuple[Any, str]] = [
    ("{", "not JSON (Expecting property name enclosed in double quotes)  → write one object a line"),
    ("[]", 'expected an object, got an empty list  → give "messages", '),
    ({"id": "a"}, "no column that is read; it has id  → give "),
    ({"promt": "x"}, 'no column that is read; it has promt  → give "messages", "conversations", "prompt", '),
    ({"prompt": " "}, '"prompt" is empty  → fill it, or take the row out'),
    ({"prompt": None}, '"prompt" is null  → fill it, or take the row out'),
    ({"prompt": 3}, '"prompt" is a number  → write a string'),
    ({"messages": "x"}, '"messages" is a string  → write a list of messages, as JSON'),
    ({"messages": ["x"]}, 'messages[0] is a string  → write {"role": "user", "content": "..."}'),
    ({"messages": [{"role": "user"}]}, '"messages[0]" is null  → write a string'),
    ({"messages": [{"role": "tool"}]}, 'messages[0]: its role is "tool"  → write one of system, user, assistant'),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "a message has a part that is no text  → leave such rows out: a student reads text alone",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x"}]},
        'nothing is asked: no user\'s turn stands at the end  → end with a "user" message',
    ),
    ('{"prompt": "\\ud800"}', '"prompt" holds half a surrogate pair  → write whole characters'),
]


@pytest.mark.parametrize(("record", "message"), MISTAKES)
def test_each_mistake_names_line_and_fix(tmp_path: Path, record: Any, message: str) -> None:
    path = jsonl(tmp_path, record)
    assert refused(load_prompts, path).startswith(f"{path}, line 1: {message}")


def test_all_mistakes_are_told_at_once_or_left_out(tmp_path: Path) -> None:
    bad = [record for record, _ in MISTAKES]
    path = jsonl(tmp_path, {"prompt": "good"}, *bad, *[{"prompt": ""}] * 20, {"prompt": "good too"})
    told = refused(load_prompts, path)
    assert f"{path}: 34 of 36 rows hold no prompt that can be used\n" in told
    assert '  line 6, 16, 17, 18, 19, 20, 21, 22 and 13 more: "prompt" is empty\n' in told
    assert told.endswith(
        "; or leave them out: skip_unusable = true beside the file's name (bitnet distil --skip-unusable)"
    )
    loaded = read_prompts(path, ColumnsConfig(), skip_unusable=True)
    assert [each.messages for each in loaded.items] == [user("good"), user("good too")]
    assert loaded.notes[0].startswith(f"{path}: 34 of 36 rows are left out (line 2: not JSON")
    with pytest.raises(ProviderError) as caught:  # nothing is left: told as without
        read_prompts(jsonl(tmp_path, *bad), ColumnsConfig(), skip_unusable=True)
    assert "14 of 14 rows" in caught.value.why
    assert "skip_unusable" not in caught.value.fix


def test_files_that_hold_nothing(tmp_path: Path) -> None:
    empty = write(tmp_path / "empty.jsonl", "\n \n")
    assert refused(load_prompts, empty) == f"{empty}: there is no prompt in it  → add one a line"
    missing = tmp_path / "missing.jsonl"
    told = f"{missing}: there is no such file  → correct the path, relative to the manifest"
    assert refused(load_prompts, missing) == told
    latin = write(tmp_path / "latin.txt", b"ok\ncaf\xe9")
    assert refused(load_prompts, latin) == f"{latin}:2: not UTF-8  → save the file in UTF-8"
    binary = write(tmp_path / "binary.txt", b"ok, ok\nno\0")
    assert f"{binary}:2: holds a NUL character" in refused(load_prompts, binary)
    assert refused(load_prompts, tmp_path / "prompts.xlsx").endswith(
        "prompts.xlsx: the ending says nothing about the format  → name it .jsonl, .json, .csv, .tsv, .parquet or .txt "
        "(also with .gz behind it), or name a folder that `datasets` saved"
    )
