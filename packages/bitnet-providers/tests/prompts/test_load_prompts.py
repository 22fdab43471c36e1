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
    # What the question is about: Dolly, SQuAD. NaN is nothing (pandas).
    (
        {"instruction": "Q", "context": "C", "response": "A", "input": float("nan")},
        user("Q\n\nC"),
        ("A", user("Q\n\nC")),
    ),
    ({"question": "Q", "context": "C", "answers": {"text": ["A"]}}, user("Q\n\nC"), None),
    (
        {"instruction": "Q", "output": "A", "history": [["q", "a"]], "system_message": "S"},  # LLaMA-Factory
        ({"role": "system", "content": "S"}, *user("q"), {"role": "assistant", "content": "a"}, *user("Q")),
        ("A", ({"role": "system", "content": "S"}, *user("q"), {"role": "assistant", "content": "a"}, *user("Q"))),
    ),
    ({"conversations": [{"from": "human", "value": "Q", "content": None, "role": None}]}, user("Q"), None),
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
        '{"train": ' + rows + ', "test": [{"prompt": "c"}]}',
        '{"data": ' + rows + ', "errors": []}',
        '{"context": {"licence": "x"}, "data": ' + rows + "}",  # about the file, not about a question
        '{"id": 7, "system": "s", "history": ["h"], "rows": ' + rows + ', "sizes": [1, 2]}',
        '{"prompt": {"0": "a", "1": "b"}, "n": {"0": 1, "1": 2}}',  # pandas
        '{"prompt": ["a", "b"], "n": [1, 2]}',
        '["a", "b"]',
    ):
        path = write(tmp_path / "p.json", content)
        assert [each.messages for each in load_prompts(path)] == both
    assert load_prompts(write(path, '{"prompt": "a"}')) == (Prompt("1", user("a")),)
    for one in ({"messages": [*user("a")]}, {"prompt": [*user("a")], "completion": [*user("b")]}):
        assert load_prompts(write(path, json.dumps(one))) == (Prompt("1", user("a")),)
    own = ColumnsConfig(text="context")
    for content, texts in (('{"context": ["a", "b"], "n": [1, 2]}', ["a", "b"]), ('{"context": "a", "n": [1]}', ["a"])):
        assert [each.text for each in load_texts(write(path, content), own)] == texts
    for name in ("p.jsonl", "p.jsonlines"):
        lines = write(tmp_path / name, '[\n{"prompt": "a"},\n{"prompt": "b"}\n]')
        assert [each.messages for each in load_prompts(lines)] == both
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
        ("", ": there is no prompt in it"),
    ):
        assert refused(load_prompts, write(path, content)).startswith(f"{path}{told}  → ")


def test_lines_of_other_systems(tmp_path: Path) -> None:
    """Of an old Mac; two files put together; lists with their commas."""
    both = [user("a"), user("b")]
    for content in ('{"prompt": "a"}\r{"prompt": "b"}\r', '\ufeff{"prompt": "a"}\n\ufeff{"prompt": "b"}\n'):
        assert [each.messages for each in load_prompts(write(tmp_path / "p.jsonl", content))] == both
    assert [each.messages for each in load_prompts(write(tmp_path / "p.txt", "a\rb"))] == both
    told = refused(load_prompts, write(tmp_path / "p.jsonl", '{"prompt": "a"},\n{"prompt": "b"},\n'))
    assert told.endswith("line 1, 2: not JSON (Extra data)\n  → take the comma off its end")


@pytest.mark.parametrize(
    ("name", "content", "why", "fix"),
    [
        ("p.txt", '{"prompt": "a"}\n{"prompt": "b"}\n', "no prompts but JSONL", "name it p.jsonl"),
        ("p.txt", '[\n {"prompt": "a"}\n]', "no prompts but JSON", "name it p.json"),
        ("p.txt", '{\n "prompt": "a"\n}', "no prompts but JSON", "name it p.json"),
        ("p.txt.gz", gzip.compress(b'{"prompt": "a"}'), "no prompts but JSONL", "name it p.jsonl.gz"),
        ("p.txt", "id\tprompt\tanswer\n1\ta\tb\n", "no prompts but CSV", "name it p.csv"),
        ("p.jsonl", gzip.compress(b"{}"), "begins as a .gz file does", "name it p.jsonl.gz"),
        ("p.csv", b"PAR1", "begins as a .parquet file does", "name it p.parquet"),
    ],
)
def test_another_format_under_this_name_is_told(
    tmp_path: Path, name: str, content: str | bytes, why: str, fix: str
) -> None:
    for load in (load_prompts, load_texts):
        told = refused(load, write(tmp_path / name, content))
        assert told.endswith(f"{why}  → {fix}")


def test_lines_with_brackets_are_prompts(tmp_path: Path) -> None:
    lines = ('{"a": 1} is what?', "[1, 2]: sum?", '{"a": 1}', "prompt, please", "{")
    for line in lines:
        assert load_prompts(write(tmp_path / "p.txt", f"{line}\nmore")) == (
            Prompt("1", user(line)),
            Prompt("2", user("more")),
        )


def test_what_is_not_read_and_what_is_garbled_is_told(tmp_path: Path) -> None:
    rows = [{"prompt": "Gr\u00c3\u00bc\u00c3\u0178e", "choices": [1]}, {"prompt": "\ufffd", "id": 3, "answer": "4"}]
    path = jsonl(tmp_path, *rows, {"prompt": "NÃO, Grüße, â, €"})
    assert read_prompts(path, ColumnsConfig()).notes == (
        f"{path}: columns that are not read: choices",
        f"{path}: 2 rows hold characters as a wrong encoding leaves them, as \ufffd or Ã¼ (the first: line 1): see "
        "whether the file was saved in UTF-8",
    )


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
    excel = write(path, "\ufeffsep=;\r\nprompt;answer;;\r\nQ;A;;\r\n")  # its own first line, and columns of nothing
    assert load_texts(excel) == (Text("3", "A", user("Q")),)
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
    ({"messages": [{"role": "tool"}]}, 'messages[0]: its role is "tool"  → leave such rows out: a student '),
    (
        {"messages": [{"role": "prompter"}]},
        'messages[0]: its role is "prompter"  → write one of system, user, assistant',
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}]},
        "a message has a part that is no text  → leave such rows out: a student reads text alone",
    ),
    (
        {"messages": [{"role": "assistant", "content": "x"}]},
        'nothing is asked: no user\'s turn stands at the end  → end with a "user" message',
    ),
    ({"messages": {"role": "user"}}, '"messages" is an object  → write a list of {"role", "content"} objects'),
    (
        {"messages": [*user("Q"), {"role": "assistant", "tool_calls": [{"id": "1"}]}, *user("Q")]},
        "messages[1] calls a tool  → leave such rows out: a student learns no calls of tools",
    ),
    (
        {"messages": [{"role": "user", "content": [{"type": "image", "text": ""}, {"type": "text", "text": "Q"}]}]},
        "a message has a part that is no text  → leave such rows out: a student reads text alone",
    ),
    (
        {"conversations": [{"from": "human", "value": "<image>\nQ"}]},
        "a message has a picture, sound or film  → leave such rows out: a student reads text alone",
    ),
    ({"text": ["a", "b"]}, '"text" is a list  → write a string'),
    (
        {"text": "### Human: Q### Assistant: A"},
        '"text" is a whole chat, with its answer  → give the turns as "messages", or set collect.columns.text = "text"',
    ),
    ({"text": "<|im_start|>user\nQ<|im_end|>\n<|im_start|>assistant\nA<|im_end|>"}, '"text" is a whole chat'),
    ({"text": "[INST] Q [/INST] A"}, '"text" is a whole chat'),
    ({"instruction": "Q", "input": {"a": 1}}, '"input" is an object  → write a string'),
    (
        {"question": "Q", "context": {"contexts": ["C"]}},
        '"context" is an object  → write a string, or set collect.columns.prompt = "question", to ask without it',
    ),
    (
        {"prompt": "Q", "history": "before"},
        '"history" is a string, and no list of [question, answer] pairs  → write one, or set collect.columns.prompt = '
        '"prompt", to ask without it',
    ),
    ('{"prompt": "\\ud800"}', '"prompt" holds half a surrogate pair  → write whole characters'),
]


@pytest.mark.parametrize(("record", "message"), MISTAKES)
def test_each_mistake_names_line_and_fix(tmp_path: Path, record: Any, message: str) -> None:
    path = jsonl(tmp_path, record)
    assert refused(load_prompts, path).startswith(f"{path}, line 1: {message}")


TAUGHT_WRONG: list[tuple[dict[str, Any], str]] = [
    ({"role": "assistant", "content": "A", "weight": 0}, "messages[1] is not to be learned: its weight is 0"),
    ({"role": "assistant", "content": "A", "train": False}, "messages[1] is not to be learned: its weight is 0"),
    ({"role": "assistant", "content": "A", "tool_calls": [{"id": "1"}]}, "messages[1] calls a tool"),
    ({"role": "assistant", "content": "A", "function_call": {"name": "f"}}, "messages[1] calls a tool"),
]


@pytest.mark.parametrize(("answer", "message"), TAUGHT_WRONG)
def test_an_answer_that_is_none_to_learn_is_asked_for_and_never_scored(
    tmp_path: Path, answer: dict[str, Any], message: str
) -> None:
    path = jsonl(tmp_path, {"messages": [*user("Q"), answer]})
    assert load_prompts(path) == (Prompt("1", user("Q")),)
    assert refused(load_texts, path).startswith(f"{path}, line 1: {message}")


def test_an_answer_to_nothing_is_no_text(tmp_path: Path) -> None:
    path = jsonl(tmp_path, {"messages": [{"role": "assistant", "content": "A"}]})
    assert "messages[0] answers nothing: no turn is before it" in refused(load_texts, path)


def test_a_whole_chat_is_a_text_to_score_and_a_prompt_where_its_column_is_named(tmp_path: Path) -> None:
    chat = "### Human: Q\n### Assistant: A"
    assert load_texts(jsonl(tmp_path, {"text": chat})) == (Text("1", chat),)
    assert load_prompts(jsonl(tmp_path, {"text": chat}), ColumnsConfig(text="text")) == (Prompt("1", user(chat)),)
    waits = "### Human: Q\n### Assistant:"
    assert load_prompts(jsonl(tmp_path, {"text": waits})) == (Prompt("1", user(waits)),)


@pytest.mark.parametrize(
    "text",
    [
        "What is wrong here?\n<video>\n<source src='a'>\n</video>\nIt is silent.",
        "Human: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:",
        "[INST] Q [/INST] A </s>[INST] Q [/INST]",
    ],
)
def test_a_text_that_only_looks_like_a_picture_or_an_answer_is_asked(tmp_path: Path, text: str) -> None:
    assert load_prompts(jsonl(tmp_path, {"text": text})) == (Prompt("1", user(text)),)


@pytest.mark.parametrize(
    "beside",
    [
        {"history": " "}, {"history": None}, {"context": " "}, {"input": " \n"},
        {"messages": None},
    ],
)  # fmt: skip
def test_what_says_nothing_is_not_there(tmp_path: Path, beside: dict[str, Any]) -> None:
    assert load_prompts(jsonl(tmp_path, {"instruction": "Q", **beside})) == (Prompt("1", user("Q")),)


def test_a_list_a_line_is_no_row(tmp_path: Path) -> None:
    path = jsonl(tmp_path, ["question", "answer"], ["question", "answer"])
    assert "2 of 2 rows hold no prompt" in refused(load_prompts, path)


def test_a_history_of_another_kind(tmp_path: Path) -> None:
    shp = {"history": "How do I cook rice?", "human_ref_A": "Gently."}
    columns = ColumnsConfig(prompt="history", response="human_ref_A")
    assert load_prompts(jsonl(tmp_path, shp), columns) == (Prompt("1", user("How do I cook rice?")),)
    assert load_texts(jsonl(tmp_path, shp), columns) == (Text("1", "Gently.", user("How do I cook rice?")),)
    lines = {"question": "Q", "history": ["a", "b"]}
    assert load_prompts(jsonl(tmp_path, lines), ColumnsConfig(prompt="question")) == (Prompt("1", user("Q")),)


@pytest.mark.parametrize("empty", [{"function_call": {"name": None, "arguments": None}}, {"tool_calls": "[]"}])
def test_a_call_that_a_table_leaves_empty_is_none(tmp_path: Path, empty: dict[str, Any]) -> None:
    turns = [*user("Q"), {"role": "assistant", "content": "A", **empty}]
    assert load_texts(jsonl(tmp_path, {"messages": turns})) == (Text("1", "A", user("Q")),)


def test_all_mistakes_are_told_at_once_or_left_out(tmp_path: Path) -> None:
    bad = [record for record, _ in MISTAKES]
    path = jsonl(tmp_path, {"prompt": "good"}, *bad, *[{"prompt": ""}] * 20, {"prompt": "good too"})
    told = refused(load_prompts, path)
    assert f"{path}: {len(bad) + 20} of {len(bad) + 22} rows hold no prompt that can be used\n" in told
    first = ", ".join(str(len(bad) + 2 + each) for each in range(7))
    assert f'  line 6, {first} and 13 more: "prompt" is empty\n' in told
    assert told.endswith(
        "; or leave them out: skip_unusable = true beside the file's name (bitnet distil --skip-unusable)"
    )
    loaded = read_prompts(path, ColumnsConfig(), skip_unusable=True)
    assert [each.messages for each in loaded.items] == [user("good"), user("good too")]
    assert loaded.notes[0].startswith(f"{path}: {len(bad) + 20} of {len(bad) + 22} rows are left out (line 2: not JSON")
    with pytest.raises(ProviderError) as caught:  # nothing is left: told as without
        read_prompts(jsonl(tmp_path, *bad), ColumnsConfig(), skip_unusable=True)
    assert f"{len(bad)} of {len(bad)} rows" in caught.value.why
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
    assert refused(load_prompts, tmp_path / "chats").endswith(
        "chats: there is no such file or folder  → correct the path, relative to the manifest"
    )
    assert "folder of Parquet, JSON or CSV files" in refused(load_prompts, tmp_path / "*.jsonl")
    (tmp_path / "prompts.xlsx").touch()
    assert refused(load_prompts, tmp_path / "prompts.xlsx").endswith(
        "prompts.xlsx: the ending says nothing about the format  → name it .jsonl, .json, .csv, .tsv, .parquet or .txt "
        "(also with .gz behind it), or name a folder that `datasets` saved"
    )
