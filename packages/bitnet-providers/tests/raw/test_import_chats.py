"""Dumps of OpenAI-shaped completions become raw shards; dumps are written by hand, faults included."""

import contextlib
import copy
import json
import math
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_providers.contract import ProviderError, check_answer
from bitnet_providers.raw.import_chats import import_chat_dump
from bitnet_providers.raw.no_answer import no_answer
from bitnet_providers.raw.write_shard import RAW_SCHEMA, completion_columns
from bitnet_providers.teachers.common.token_bytes import Token, all_spelt_bytes, rebuilt
from bitnet_providers.teachers.openai_compatible.answer import completion_of, decode

HELLO = [{"role": "user", "content": "Hello"}]


def token(text: str, logprob: Any = -0.5, raw: Any = "text", top: Any = None) -> dict[str, Any]:
    found = list(text.encode()) if raw == "text" else raw
    entry = {"token": text, "logprob": logprob, "bytes": found}
    return entry if top is None else {**entry, "top_logprobs": top}


def response(tokens: list[dict[str, Any]] | None, content: str | None = None, **fields: Any) -> dict[str, Any]:
    text = "".join(each["token"] for each in tokens or []) if content is None else content
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": None if tokens is None else {"content": tokens},
    }
    return {"id": "chatcmpl-1", "model": "m-1", "choices": [choice], "usage": {"prompt_tokens": 9}, **fields}


def line(tokens: list[dict[str, Any]] | None, content: str | None = None, **fields: Any) -> dict[str, Any]:
    request = {"messages": HELLO, "temperature": 1.0, "top_logprobs": 2}
    return {"request": request, "response": response(tokens, content), **fields}


def write(path: Path, *lines: Any) -> Path:
    texts = [each if isinstance(each, str) else json.dumps(each) for each in lines]
    path.write_text("\n".join(texts) + "\n")
    return path


def imported(tmp_path: Path, *lines: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    summary = import_chat_dump(write(tmp_path / "dump.jsonl", *lines), tmp_path / "raw")
    tables = [pq.read_table(str(file)) for file in sorted((tmp_path / "raw").glob("*.parquet"))]
    assert tables[0].schema.remove_metadata().equals(RAW_SCHEMA)
    return summary, [row for table in tables for row in table.to_pylist()]


PAIR = [token("Hi", -0.1), token("Yo", -2.5)]


def test_a_completion_comes_in_as_it_is(tmp_path: Path) -> None:
    tokens = [token("Hi", -0.1, top=PAIR), token(" é", -0.2, top=[token(" é", -0.2), token("!", -3.0)])]
    summary, (row,) = imported(tmp_path, line(tokens, custom_id="q7"))
    assert row["text"] == "Hi é".encode()
    assert row["token_bytes"] == [b"Hi", " é".encode()]
    assert row["candidate_bytes"] == [b"Hi", b"Yo", " é".encode(), b"!"]
    assert row["candidate_counts"] == [2, 2]
    assert row["candidate_logprobs"] == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    assert (row["token_ids"], row["candidate_ids"], row["prompt_ids"]) == (None, None, None)
    assert json.loads(row["messages"]) == HELLO
    assert (row["source_id"], row["model"], row["prompt_tokens"], row["kind"]) == ("q7", "m-1", 9, "sample")
    assert (summary["completions"], summary["tokens"], summary["top_k"]) == (1, 2, 2)
    assert not any(summary["counted"].values())
    metadata = json.loads(pq.read_schema(str(tmp_path / "raw" / "shard_000.parquet")).metadata[b"bitnet_raw"])
    assert (metadata["version"], metadata["top_k"], metadata["kind"]) == (1, 2, "import")
    assert metadata["teacher"] == {"model": "m-1"}
    assert metadata["sampling"] == {"temperature": 1.0}


@pytest.mark.parametrize(
    ("seeds", "sampling"),
    [((3, 3), {"temperature": 1.0, "seed": 3}), ((3, 4), {"temperature": 1.0}), ((3, None), {"temperature": 1.0})],
)
def test_seeds_of_their_own_are_no_other_sampling(tmp_path: Path, seeds: tuple[Any, ...], sampling: Any) -> None:
    lines = [line([token("Hi")]) for _ in seeds]
    for each, seed in zip(lines, seeds, strict=True):
        each["request"]["seed"] = seed
    imported(tmp_path, *lines)
    metadata = json.loads(pq.read_schema(str(tmp_path / "raw" / "shard_000.parquet")).metadata[b"bitnet_raw"])
    assert metadata["sampling"] == sampling  # a list of all seeds would stand in every shard


@pytest.mark.parametrize(
    "shape",
    [
        {"messages": HELLO, **response([token("Hi", top=PAIR)])},
        {"messages": HELLO, "response": response([token("Hi", top=PAIR)])},
        {
            "custom_id": "x",
            "request": {"body": {"messages": HELLO}},
            "response": {"status_code": 200, "body": response([token("Hi", top=PAIR)])},
        },
        {"request": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
         "response": response([token("Hi", top=PAIR)])},
    ],
)  # fmt: skip
def test_shapes_of_a_line(tmp_path: Path, shape: dict[str, Any]) -> None:
    _, (row,) = imported(tmp_path, shape)
    assert (row["text"], row["candidate_bytes"]) == (b"Hi", [b"Hi", b"Yo"])
    assert json.loads(row["messages"]) == HELLO


def test_the_same_messages_again_are_another_sample(tmp_path: Path) -> None:
    other = {**line([token("Hm")]), "request": {"messages": [{"role": "user", "content": "Else"}]}}
    two = line([token("Hi")])
    two["response"]["choices"].append(two["response"]["choices"][0])
    _, rows = imported(tmp_path, line([token("Hi")]), other, two)
    assert [(row["prompt_idx"], row["sample_idx"]) for row in rows] == [(0, 0), (1, 0), (0, 1), (0, 2)]
    assert len({row["source_id"] for row in rows}) == 2
    assert len({row["request_sha256"] for row in rows}) == 4


# --- missing bytes ---------------------------------------------------------------------------------------------------


def test_null_bytes_are_rebuilt_where_the_texts_give_the_response(tmp_path: Path) -> None:
    top = [token("Hi", raw=None), token("\ufffd", raw=None, logprob=-4.0), token("Ö", raw=None, logprob=-5.0)]
    summary, (row,) = imported(tmp_path, line([token("Hi", raw=None, top=top), token(" Öl", raw=None)]))
    assert row["token_bytes"] == [b"Hi", " Öl".encode()]
    assert row["candidate_bytes"] == [b"Hi", "Ö".encode()]
    assert row["candidate_counts"] == [2, 0]
    assert (summary["counted"]["bytes_rebuilt"], summary["counted"]["bytes_unknown"]) == (2, 1)


def test_tokens_that_cut_a_character_are_joined(tmp_path: Path) -> None:
    tokens = [
        token("so ", -0.1, raw=None, top=[token("so ", -0.1, raw=None)]),
        token("\ufffd", -1.0, raw=None, top=[token("ha", -0.4, raw=None), token("\ufffd", -1.0, raw=None)]),
        token("\ufffd", -2.0, raw=None, top=[token("\ufffd", -2.0, raw=None)]),
        token("!", -0.3, raw=None),
    ]
    summary, (row,) = imported(tmp_path, line(tokens, content="so 猫!"))
    assert row["token_bytes"] == [b"so ", "猫".encode(), b"!"]
    assert row["token_logprobs"] == pytest.approx([-0.1, -3.0, -0.3])
    assert row["candidate_counts"] == [1, 1, 0]
    assert row["candidate_bytes"] == [b"so ", b"ha"]
    assert summary["counted"]["tokens_joined"] == 1


@pytest.mark.parametrize("content", ["Hi there", " Hi", "Hi\ufffd?"])
def test_texts_that_do_not_give_the_response_prove_nothing(tmp_path: Path, content: str) -> None:
    summary, (row,) = imported(tmp_path, line([token("Hi", raw=None, top=PAIR)], content=content))
    assert row["text"] == content.encode()
    assert (row["token_bytes"], row["candidate_counts"]) == ([content.encode()], [0])
    assert math.isnan(row["token_logprobs"][0])
    assert summary["counted"]["tokens_unproved"] == 1


def test_a_gap_whose_end_is_ambiguous_proves_nothing() -> None:
    def unknown(text: str) -> Token:
        return Token(text, -1.0)

    tokens = [unknown("\ufffd"), unknown("a"), unknown("\ufffd"), unknown("b")]
    # "a" stands at 3, and at 4 as well: the first gap may be either three or four bytes long.
    assert rebuilt(tokens, all_spelt_bytes(tokens), "猫aaб".encode() + b"b") is None


@given(st.text(max_size=12).filter(lambda text: "\ufffd" not in text), st.data())
@settings(deadline=None)
def test_what_is_rebuilt_is_the_truth(text: str, data: Any) -> None:
    """Cut the bytes anywhere; each cut's text is what a lossy decoder makes of it. Rebuilding is right or refused."""
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=6))) if len(whole) > 1 else []
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)] if whole else []
    tokens = [Token(piece.decode("utf-8", "replace"), -1.0) for piece in pieces]
    result = rebuilt(tokens, all_spelt_bytes(tokens), whole)
    if result is None:
        assert any("\ufffd" in each.token for each in tokens)
        return
    assert b"".join(each.raw for each in result) == whole
    assert sum(each.logprob or 0.0 for each in result) == pytest.approx(-len(pieces))
    offsets = {0, *cuts}
    place = 0
    for each in result:
        assert place in offsets, "an entry begins where no token began"
        place += len(each.raw)


# --- what providers get wrong ----------------------------------------------------------------------------------------


def test_faults_of_providers_are_survived_and_counted(tmp_path: Path) -> None:
    tokens = [
        token("Hi", -9999.0, top=[token("Hi", -9999.0), token("Yo", -9999.0)]),
        token("a", None, top=[token("b", -0.7), token("b", -1.2)]),  # sampled outside, a duplicate
        token("b", -0.1, top=[token("b", -0.1)]),  # fewer than K
        token("c", -0.1, top=[]),
    ]
    empty = response([], content="nothing")
    none = response(None, content="none")
    failed = {"custom_id": "z", "response": None, "error": {"code": "server_error"}}
    summary, rows = imported(
        tmp_path, line(tokens), {"request": {"messages": HELLO}, "response": empty},
        {"request": {"messages": HELLO}, "response": none}, failed,
    )  # fmt: skip
    assert rows[0]["candidate_counts"] == [0, 2, 1, 0]
    assert rows[0]["candidate_logprobs"] == pytest.approx([-0.7, -1.2, -0.1])
    assert [math.isnan(each) for each in rows[0]["token_logprobs"]] == [True, True, False, False]
    assert [row["text"] for row in rows[1:]] == [b"nothing", b"none"]
    assert [row["token_bytes"] for row in rows[1:]] == [[b"nothing"], [b"none"]]
    assert {name: count for name, count in summary["counted"].items() if count} == {
        "failed_requests": 1,
        "without_logprobs": 2,
        "sentinels": 2,
        "logprobs_missing": 2,
        "same_bytes": 1,
        "short": 3,
        "sampled_outside": 1,
    }


GOOD = line([token("Hi")])
HALF = [{"role": "user", "content": "hi \ud83d"}]


@pytest.mark.parametrize(
    ("unusable", "why"),
    [
        ("{not json", "no JSON .*  → write one JSON object a line"),
        ("[" * 100_000, "no JSON"),
        ("[1]", "a list, not a JSON object"),
        ({"response": response([token("x")])}, "no messages  → put the request beside the response"),
        ({"messages": HELLO, "choices": []}, "a content filter cut its answer, or left it out"),
        ({"messages": HELLO, "choices": None}, "no choices in the response"),
        ({"messages": [{"content": "x"}], **response([token("x")])}, "a message without a role"),
        ({**GOOD, "response": {**response([]), "model": None}}, "no model  → add the name"),
        (line([token("a", "high")]), "another shape than a completion's: Expected `float"),
        (line([token("a", top={"b": 1})]), "another shape than a completion's: Expected `array"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}], **response([])}, "only text can be"),
        ({"messages": HALF, **response([token("x")])}, "half a surrogate pair"),
        ({"messages": HELLO, **response(None, content="")}, "the answer is empty"),
    ],
)
def test_a_line_that_cannot_be_used_is_counted_told_and_skipped(tmp_path: Path, unusable: Any, why: str) -> None:
    summary, rows = imported(tmp_path, GOOD, unusable, GOOD)
    assert len(rows) == 2
    assert summary["counted"]["skipped"] == 1
    (skipped,) = summary["skipped"]
    assert skipped["line"] == 2
    assert re.search(why, f"{skipped['why']}  → {skipped['fix']}")


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (
            (GOOD, {"messages": HELLO, **response([token("x")], model="m-2")}),
            'line 2 is of model "m-2", line 1 of "m-1"  → split the dump',
        ),
        (("",), "no completion in it"),
        (("", "{not json"), "no completion in it that can be used; line 2: no JSON .*  → write one JSON object a line"),
    ],
)
def test_refusals_leave_nothing(tmp_path: Path, lines: tuple[Any, ...], message: str) -> None:
    dump = write(tmp_path / "dump.jsonl", *lines)
    with pytest.raises(ProviderError, match=message):
        import_chat_dump(dump, tmp_path / "raw")
    assert not list(tmp_path.glob("raw/*"))


# --- as live answers -------------------------------------------------------------------------------------------------

WORDS = st.sampled_from(["Yes", " no", "猫", " é", "\n", "<think>", "</think>", "<|eot|>"])
messages = st.fixed_dictionaries(
    {"content": st.none() | st.just([]) | st.text(max_size=6) | st.just("hm</think>\n\nYes") | st.just("<think>hm")},
    optional={
        "refusal": st.none() | st.just("I can't"),
        "reasoning_content": st.just("hm"),
        "tool_calls": st.just([{"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}]),
    },
)
reasons = st.sampled_from(["stop", "length", None, "MAX_TOKENS", "tool_calls", "content_filter", "error", "new"])


@pytest.mark.slow
@given(st.lists(WORDS, max_size=5), messages, reasons)
@settings(max_examples=60, deadline=None)
def test_what_is_imported_is_what_is_collected_live(words: list[str], message: Any, reason: str | None) -> None:
    """A line becomes the very columns that the same answer becomes live, or is skipped where that is no answer."""
    body = response([token(word, top=[token(word)]) for word in words], content="")
    body["choices"][0] |= {"message": {"role": "assistant", **message}, "finish_reason": reason}
    live = None
    with contextlib.suppress(ProviderError):
        live = completion_of(
            decode(json.dumps(body)), model="m", top_k=2, reasoning="drop", latency_s=math.nan, most_tokens=0
        )
        check_answer(live)
        if no_answer(live.finish_reason, json.dumps(dict(live.repairs)), in_thought=False) is not None:
            live = None
    with tempfile.TemporaryDirectory() as folder:
        other = {"request": {"messages": HELLO, "top_logprobs": 2}, "response": response([token("Hi")])}
        mine = {"custom_id": "x", "request": {"messages": HELLO, "top_logprobs": 2}, "response": body}
        _, rows = imported(Path(folder), other, mine)
    row = next((each for each in rows if each["source_id"] == "x"), None)
    if row is None:
        assert live is None or live.text == b""
        return
    assert live is not None
    expected = completion_columns(live)
    for name in ("text", "token_bytes", "candidate_bytes", "finish_reason", "repairs", "usage"):
        assert row[name] == expected[name]
    np.testing.assert_array_equal(row["token_logprobs"], expected["token_logprobs"])


def test_thoughts_that_begin_in_the_prompt_leave_out_what_is_thought_alone(tmp_path: Path) -> None:
    """One answer shows that this teacher's begin within thoughts; one that was cut before their end is no answer."""
    cut = response(None, content="Okay, the user wants")
    cut["choices"][0]["finish_reason"] = "length"
    whole = response(None, content="Okay.\n</think>\n\nTea.")
    lines = [{"messages": HELLO, **each} for each in (cut, whole)]
    summary, (row,) = imported(tmp_path, *lines)
    assert row["text"] == b"Tea."
    assert [(each["line"], each["why"]) for each in summary["skipped"]] == [
        (1, "its answer was cut within the thoughts (max_new_tokens is too low)")
    ]


def test_folders_in_the_way(tmp_path: Path) -> None:
    imported(tmp_path, GOOD)
    with pytest.raises(ProviderError, match="holds raw shards already  → name an empty folder"):
        import_chat_dump(tmp_path / "dump.jsonl", tmp_path / "raw")
    with pytest.raises(ProviderError, match=r"nowhere\.jsonl: cannot be read \(No such file"):
        import_chat_dump(tmp_path / "nowhere.jsonl", tmp_path / "raw2")


def test_many_completions_make_several_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_providers.raw.import_chats.COMPLETIONS_PER_SHARD", 2)
    summary, rows = imported(tmp_path, *[GOOD] * 5)
    assert summary["shards"] == ["shard_000.parquet", "shard_001.parquet", "shard_002.parquet"]
    assert [row["sample_idx"] for row in rows] == [0, 1, 2, 3, 4]


ODD = (None, True, 5, -0.5, 1e999, "", "x\ud83d", [], {}, [None], {"a": 1}, [["x"]])


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place of a JSON value, as the keys that lead there."""
    if path:
        yield path
    for key, each in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(each, (*path, key))


def with_odd(record: dict[str, Any], path: tuple[Any, ...], odd: Any) -> dict[str, Any]:
    changed = copy.deepcopy(record)
    inner: Any = changed
    for key in path[:-1]:
        inner = inner[key]
    inner[path[-1]] = odd
    return changed


def test_no_odd_value_anywhere_ends_an_import(tmp_path: Path) -> None:
    """Each place of a line by turns holds something else: the line is used or told, and the others go on."""
    token = {"token": "Hi", "bytes": [72, 105], "logprob": -0.5,
             "top_logprobs": [{"token": "Hi", "bytes": [72, 105], "logprob": -0.5}]}  # fmt: skip
    choice = {"message": {"role": "assistant", "content": "Hi", "refusal": None}, "finish_reason": "stop",
              "logprobs": {"content": [token]}}  # fmt: skip
    good = {
        "custom_id": "a",
        "request": {"messages": HELLO, "model": "m-1", "temperature": 0.5, "top_logprobs": 1, "max_tokens": 9,
                    "response_format": {"type": "json_object"}},
        "response": {"id": "c", "model": "m-1", "choices": [choice],
                     "usage": {"prompt_tokens": 3, "completion_tokens": 1}},
    }  # fmt: skip
    # Another name of the model is another model, which is no fault of a line.
    changed = [path for path in places(good) if path != ("response", "model")]
    lines = [good, *(with_odd(good, path, odd) for path in changed for odd in ODD), good]
    dump = tmp_path / "dump.jsonl"
    dump.write_text("".join(json.dumps(line) + "\n" for line in lines))
    told = import_chat_dump(dump, tmp_path / "raw")
    counted = told["counted"]
    assert told["completions"] + counted["skipped"] + counted["failed_requests"] == len(lines)
    assert told["completions"] > len(lines) / 2
    assert counted["skipped"] > 20
