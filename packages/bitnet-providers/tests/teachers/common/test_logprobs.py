"""Every fault of FACTS' provider table, through the one normaliser; and what is kept must be the truth."""

import json
import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_providers.contract import Completion, RetryableError
from bitnet_providers.teachers.common.logprobs import REPAIRS, columns
from bitnet_providers.teachers.common.token_bytes import Token
from bitnet_providers.teachers.openai_compatible.answer import completion_of, decode


def entry(text: str, logprob: Any = -0.5, raw: Any = "text", top: Any = None, **more: Any) -> dict[str, Any]:
    found = list(text.encode()) if raw == "text" else raw
    own = {"token": text, "logprob": logprob, "bytes": found, **more}
    return own if top is None else {**own, "top_logprobs": top}


def answer(
    tokens: list[dict[str, Any]] | None, content: str | None = None, finish: str = "stop", **message: Any
) -> dict[str, Any]:
    text = "".join(each["token"] for each in tokens or []) if content is None else content
    block = None if tokens is None else {"content": tokens, "refusal": None}
    choice = {"index": 0, "message": {"role": "assistant", "content": text, **message}, "finish_reason": finish,
              "logprobs": block}  # fmt: skip
    return {"id": "1", "model": "m-1", "choices": [choice], "usage": {"prompt_tokens": 9, "completion_tokens": 4}}


def completion(body: dict[str, Any] | bytes, top_k: int = 2, **settings: str) -> Completion:
    return completion_of(
        decode(body if isinstance(body, bytes) else json.dumps(body)),
        model="asked",
        top_k=top_k,
        latency_s=0.1,
        **{"reasoning": "drop", "end_of_turn": "", **settings},
    )


PAIR = [entry("Hi", -0.1), entry("Yo", -2.5)]


def test_as_documented_nothing_is_repaired() -> None:
    found = completion(
        answer([entry("Hi", -0.1, top=PAIR), entry(" é", -0.2, top=[entry(" é", -0.2), entry("!", -3)])])
    )
    assert found.text == "Hi é".encode()
    assert found.token_bytes == (b"Hi", " é".encode())
    assert found.candidate_bytes == (b"Hi", b"Yo", " é".encode(), b"!")
    assert found.candidate_counts.tolist() == [2, 2]
    assert found.candidate_logprobs.tolist() == pytest.approx([-0.1, -2.5, -0.2, -3.0])
    assert (found.model, found.prompt_tokens, found.finish_reason) == ("m-1", 9, "stop")
    assert found.usage == {"prompt_tokens": 9, "completion_tokens": 4}
    assert found.repairs == {}


@pytest.mark.parametrize(
    ("tokens", "counts", "logprobs", "repairs"),
    [
        # sentinels, null and Python's NaN
        ([entry("Hi", -9999.0, top=[entry("Hi", -0.1), entry("Yo", -9999.0)])], [1], [-0.1],
         {"sentinels": 1, "logprobs_missing": 1, "short": 1}),
        ([entry("Hi", None, top=[entry("Hi", -0.1), entry("Yo", None)])], [1], [-0.1],
         {"sentinels": 1, "logprobs_missing": 1, "short": 1}),
        ([entry("Hi", math.nan, top=[entry("Hi", -0.1), entry("Yo", -math.inf)])], [1], [-0.1],
         {"sentinels": 1, "logprobs_missing": 1, "short": 1}),
        # above 0 is no log-probability, but for rounding
        ([entry("Hi", 1e-4, top=[entry("Hi", 1e-4), entry("Yo", 0.5)])], [1], [1e-4], {"sentinels": 1, "short": 1}),
        # fewer than K, and a block without candidates
        ([entry("Hi", -0.1, top=PAIR[:1]), entry("a", -1, top=[])], [1, 0], [-0.1], {"short": 2}),
        # written down twice; two tokens of one spelling
        ([entry("Hi", -0.1, top=[*PAIR, PAIR[0]])], [2], [-0.1, -2.5], {"duplicates": 1}),
        ([entry("Hi", -0.1, top=[*PAIR, entry("Yo", -3)])], [3], [-0.1, -2.5, -3.0], {"same_bytes": 1}),
        # the drawn token is not among them; not in order
        ([entry("Ho", -4, top=PAIR)], [2], [-0.1, -2.5], {"sampled_outside": 1}),
        ([entry("Hi", -0.1, top=PAIR[::-1])], [2], [-0.1, -2.5], {"unsorted": 1}),
    ],
)  # fmt: skip
def test_faults_of_numbers(
    tokens: list[dict[str, Any]], counts: list[int], logprobs: list[float], repairs: dict[str, int]
) -> None:
    found = completion(answer(tokens))
    assert found.candidate_counts.tolist() == counts
    assert found.candidate_logprobs.tolist() == pytest.approx(logprobs)
    assert found.repairs == repairs
    assert math.isnan(found.token_logprobs[0]) == ("logprobs_missing" in repairs)


@pytest.mark.parametrize("block", [None, {"content": None}, {"content": []}, {}, []])
def test_without_log_probabilities_the_text_is_one_token(block: Any) -> None:
    body = answer(None, "some text")
    body["choices"][0]["logprobs"] = block
    found = completion(body)
    assert (found.text, found.token_bytes, found.candidate_bytes) == (b"some text", (b"some text",), ())
    assert math.isnan(found.token_logprobs[0])
    assert found.candidate_counts.tolist() == [0]
    assert found.repairs == {"logprobs_missing": 1}
    assert completion(body, top_k=0).repairs == {}  # nobody asked


def test_null_bytes_are_rebuilt_only_where_that_is_proved() -> None:
    top = [entry("Hi", raw=None), entry("\ufffd", -4.0, raw=None)]
    found = completion(answer([entry("Hi", raw=None, top=top), entry(" Öl", raw=None, top=[])]))
    assert found.token_bytes == (b"Hi", " Öl".encode())
    assert found.candidate_bytes == (b"Hi",)
    assert found.repairs == {"bytes_rebuilt": 2, "bytes_unknown": 1, "short": 2}
    other = completion(answer([entry("Hi", raw=None, top=top)], content=" Hi"))
    assert (other.text, other.token_bytes) == (b" Hi", (b" Hi",))
    assert other.repairs == {"tokens_unproved": 1}
    # A token behind the message's text is what ends the turn.
    ended = completion(answer([entry("Hi", raw=None), entry("</s>", raw=None)], content="Hi"), top_k=0)
    assert (ended.text, ended.token_bytes) == (b"Hi<|im_end|>", (b"Hi", b"<|im_end|>"))
    assert ended.repairs == {"bytes_rebuilt": 2}


def test_llamacpp_s_joined_entry_loses_the_last_token_s_numbers() -> None:
    """As its server answered: 猫 is three tokens; id, log-probability and candidates are those of the third."""
    cat, last = "猫".encode(), [entry("\ufffd", -0.07, raw=[0xAB], id=121), entry("\ufffd", -3.4, raw=[0xAA], id=120)]
    outside = entry("é", -10.7, id=119, top=[entry("\ufffd", -1.7, raw=[0x8E], id=232)])
    plain = entry("a", -0.3, id=7, top=[entry("a", -0.3, id=7), entry("b", -2, id=8)])
    body = answer([plain, {**entry("猫", -0.07, raw=list(cat), id=121), "top_logprobs": last}, outside])
    body["usage"]["completion_tokens"] = 6
    found = completion(body)
    assert found.token_bytes == (b"a", cat, "é".encode())
    assert found.candidate_counts.tolist() == [2, 0, 0]
    assert np.isnan(found.token_logprobs).tolist() == [False, True, True]
    assert found.repairs["joined_by_server"] == 2


def test_the_end_of_a_turn_gets_its_name() -> None:
    end = [entry("", -0.2, id=2), entry("", -4, id=0), entry("!", -5, id=9)]
    early = entry("Hi", -0.1, id=5, top=[entry("Hi", -0.1, id=5), entry("", -3, id=2)])
    found = completion(answer([early, {**entry("", -0.2, id=2), "top_logprobs": end}]))
    assert found.text == b"Hi<|im_end|>"
    assert found.candidate_bytes == (b"Hi", b"<|im_end|>", b"<|im_end|>", b"", b"!")
    cut = completion(answer([early], finish="length"))
    assert cut.text == b"Hi"


@pytest.mark.parametrize(
    "name", ["<|user|>", "[|endofturn|]", "<|message_sep|>\n", "<｜end▁of▁sentence｜>", "<|turn>", "<turn|>"]
)
def test_an_end_that_the_server_leaves_in_the_text_is_no_text(name: str) -> None:
    found = completion(answer([entry("Hi"), entry(name)], f"Hi{name.strip()}"))
    assert (found.text, found.token_bytes) == (b"Hi<|im_end|>", (b"Hi", b"<|im_end|>"))
    about = completion(answer([entry("Hi"), entry(name[:2]), entry(name[2:])], f"Hi{name}"))  # no token of that name
    cut = completion(answer([entry("Hi"), entry(name)], f"Hi{name}", finish="length"))
    assert about.text == cut.text == f"Hi{name}".encode()


def test_refusals_are_kept_with_their_own_log_probabilities() -> None:
    body = answer(None, "", refusal="No way")
    body["choices"][0]["message"]["content"] = None
    body["choices"][0]["logprobs"] = {"content": None, "refusal": [entry("No", top=[]), entry(" way", top=[])]}
    found = completion(body, top_k=0)
    assert (found.text, found.token_bytes, found.repairs) == (b"No way", (b"No", b" way"), {"refusals": 1})


THINKING = [entry("<think>"), entry("hm"), entry("</think>"), entry("\n"), entry("Yes", top=PAIR), entry("!")]


@pytest.mark.parametrize(
    "body",
    [
        answer(THINKING),
        answer(THINKING, content="Yes!", reasoning_content="hm"),
        answer(THINKING, content="Yes!", reasoning="hm"),
        answer(THINKING[-2:], content="Yes!", reasoning_content="hm"),  # DeepSeek gives the answer's alone
        answer(THINKING, content=[{"type": "thinking", "text": None}, {"type": "text", "text": "Yes!"}]),  # type: ignore[arg-type]
    ],
)
def test_reasoning_is_dropped_with_its_tokens(body: dict[str, Any]) -> None:
    found = completion(body, top_k=0)
    assert (found.text, found.token_bytes) == (b"Yes!", (b"Yes", b"!"))
    assert found.repairs == {"reasoning_dropped": 1, "sampled_outside": 1}


def test_reasoning_can_be_kept_and_is_never_half_an_answer() -> None:
    kept = completion(answer(THINKING, content="Yes!", reasoning_content="hm"), top_k=0, reasoning="keep")
    assert kept.text == b"<think>hm</think>\nYes!"
    unfinished = completion(answer(THINKING[:2], finish="length"), top_k=0)
    assert (unfinished.text, unfinished.token_bytes, unfinished.finish_reason) == (b"", (), "length")
    spanning = answer([entry("hm</think>Y"), entry("es")], content="Yes", reasoning_content="hm")
    found = completion(spanning, top_k=0)
    assert (found.text, found.token_bytes) == (b"Yes", (b"Yes",))  # no token begins where the answer does
    assert found.repairs == {"reasoning_dropped": 1, "tokens_unproved": 2}


def test_tool_calls_are_no_text() -> None:
    body = answer([entry('{"name":'), entry("1}")], content="", finish="tool_calls", tool_calls=[{"id": "1"}])
    found = completion(body, top_k=0)
    assert (found.text, found.token_bytes, found.finish_reason) == (b"", (), "tool_calls")
    assert found.repairs == {"tool_calls": 1}


def test_columns_of_legacy_completions_and_together() -> None:
    body = answer(None, "Hi 猫")
    body["choices"][0]["logprobs"] = {
        "tokens": ["Hi", " ", "bytes:\\xe7\\x8c", "bytes:\\xab"], "token_logprobs": [-0.1, -0.2, -0.3, -9999.0],
        "top_logprobs": [{"Yo": -2.5, "Hi": -0.1}, None, {"bytes:\\xe7\\x8c": -0.3}, None], "token_ids": [1, 2, 3, 4],
    }  # fmt: skip
    found = completion(body)
    assert found.token_bytes == (b"Hi", b" ", b"\xe7\x8c", b"\xab")
    assert found.candidate_bytes == (b"Hi", b"Yo", b"\xe7\x8c")
    assert found.candidate_counts.tolist() == [2, 0, 1, 0]
    assert found.repairs["logprobs_missing"] == 1


@pytest.mark.parametrize("reason", ["insufficient_system_resource", "error", "abort"])
def test_an_answer_that_broke_off_is_asked_again(reason: str) -> None:
    with pytest.raises(RetryableError, match="broke the answer off") as caught:
        completion(answer([entry("Hi")], finish=reason))
    assert caught.value.possibly_paid


def test_clocks_of_servers() -> None:
    body = answer([entry("Hi")])
    body["timings"] = {"prompt_ms": 12.5, "predicted_ms": 250.0, "predicted_n": 4}
    assert completion(body).usage == {"prompt_tokens": 9, "completion_tokens": 4, "prompt_s": 0.0125, "decode_s": 0.25}
    body = answer(None, "Hi")
    body["usage"] |= {"prompt_time": 0.01, "completion_time": 0.2, "completion_tokens_details": {"reasoning_tokens": 3}}
    found = completion(body).usage
    assert (found["prompt_s"], found["decode_s"], found["reasoning_tokens"]) == (0.01, 0.2, 3)


def test_thoughts_that_only_the_total_counts_are_part_of_the_bill() -> None:
    body = answer(None, "Hi")
    body["usage"] = {"prompt_tokens": 9, "completion_tokens": 4, "total_tokens": 113}
    assert completion(body).usage == {"prompt_tokens": 9, "completion_tokens": 104, "reasoning_tokens": 100}
    assert completion(body).finish_reason == "stop"  # the limit is compared with what the answer itself took
    body["usage"] |= {"total_tokens": 13}
    assert completion(body).usage == {"prompt_tokens": 9, "completion_tokens": 4}
    del body["usage"]["completion_tokens"]  # Google's, where the thoughts took all there was
    assert completion(body).usage == {"prompt_tokens": 9, "completion_tokens": 4, "reasoning_tokens": 4}
    body["usage"] = {"prompt_tokens": 0, "completion_tokens": 5, "total_tokens": 15}  # the prompt is not counted
    assert completion(body).usage["completion_tokens"] == 5


def test_a_candidate_without_the_field_costs_only_itself() -> None:
    bare = {"token": "Yo", "logprob": -2.5}
    found = completion(answer([entry("Hi", -0.1, top=[PAIR[0], bare])]))
    assert found.candidate_bytes == (b"Hi", b"Yo")  # the texts of this response are its bytes
    cut = completion(answer([entry("Hi", -0.1, top=[PAIR[0], {**bare, "token": "\ufffd"}])]))
    assert (cut.candidate_bytes, cut.repairs) == ((b"Hi",), {"bytes_unknown": 1, "short": 1})


# Reconstruction is either the truth or refused, whatever is missing.
texts = st.text(st.characters(exclude_characters="\ufffd", exclude_categories=("Cs",)), min_size=1, max_size=12)


@given(texts, st.data())
def test_what_is_kept_is_the_truth(text: str, data: Any) -> None:
    whole = text.encode()
    cuts = sorted(data.draw(st.sets(st.integers(1, max(1, len(whole) - 1)), max_size=5))) if len(whole) > 1 else []
    pieces = [whole[a:b] for a, b in zip([0, *cuts], [*cuts, len(whole)], strict=True)]
    shown = [data.draw(st.booleans()) for _ in pieces]
    tokens = [
        Token(piece.decode("utf-8", "replace"), -1.0, list(piece) if known else None)
        for piece, known in zip(pieces, shown, strict=True)
    ]
    repairs = Counter[str]()
    found = columns(text, tokens, 0, repairs)
    assert found.text == whole
    assert b"".join(found.token_bytes) == whole
    starts = np.cumsum([0, *map(len, found.token_bytes)])[:-1].tolist()
    assert set(starts) <= {0, *cuts}
    if not repairs["tokens_unproved"]:
        assert float(found.token_logprobs.sum()) == pytest.approx(-len(pieces))
    assert set(repairs) <= set(REPAIRS)


# How an answer ends


@pytest.mark.parametrize(
    ("reason", "finish"),
    [
        *((each, "stop") for each in ("stop", "STOP", "eos", "end_turn", "eos_token", "FinishReason.STOP")),
        *((each, "length") for each in ("length", "MAX_TOKENS", "maxTokens", "model_length", "max_output_tokens")),
        *((each, "length") for each in ("model_context_window_exceeded", "incomplete", "FinishReason.MAX_TOKENS")),
        *((each, "content_filter") for each in ("content_filter", "sensitive", "SAFETY", "content-filter")),
        *((each, "tool_calls") for each in ("tool_calls", "function_call", "tool_use")),
    ],
)
def test_reasons_in_other_words(reason: str, finish: str) -> None:
    found = completion(answer(None, "Hi", finish=reason), top_k=0)
    assert (found.finish_reason, found.repairs) == (finish, {})


@pytest.mark.slow
@given(st.none() | st.text(max_size=8).filter(lambda text: not text.isascii() or "stop" not in text.lower()))
def test_an_unknown_reason_is_never_the_end_of_a_turn(reason: str | None) -> None:
    body = answer([entry("Hi"), entry("<|user|>")], "Hi")
    body["choices"][0]["finish_reason"] = reason
    try:
        found = completion(body, top_k=0)
    except RetryableError:
        return
    if found.finish_reason != "stop":  # one of the known words, drawn by chance
        assert found.text == b"Hi"
    if "finish_unknown" in found.repairs:
        assert found.finish_reason == "length"
        assert any(name.startswith("finish_unknown ") for name in found.repairs)
    json.dumps(dict(found.repairs)).encode()


@pytest.mark.parametrize("reason", ["network_error", "cancelled", "engine_overloaded", "ERROR"])
def test_more_ways_to_break_off(reason: str) -> None:
    with pytest.raises(RetryableError, match="broke the answer off") as caught:
        completion(answer([entry("Hi")], finish=reason))
    assert caught.value.answered


def test_a_limit_that_was_reached_is_no_end_whatever_the_server_calls_it() -> None:
    body = answer([entry("Hi")])
    assert completion_of(decode(json.dumps(body)), model="m", top_k=0, reasoning="drop", latency_s=0.1,
                         most_tokens=4).finish_reason == "length"  # fmt: skip
    ended = answer([entry("Hi"), entry("</s>")], "Hi")
    assert completion_of(decode(json.dumps(ended)), model="m", top_k=0, reasoning="drop", latency_s=0.1,
                         most_tokens=4).finish_reason == "stop"  # fmt: skip


# Thoughts


@pytest.mark.parametrize(
    ("begin", "end"),
    [
        *((f"<{tag}>", f"</{tag}>") for tag in ("think", "seed:think", "THINK", "thinking", "longcat_think")),
        ("[THINK]", "[/THINK]"),
        ("◁think▷", "◁/think▷"),
        ("<|START_THINKING|>", "<|END_THINKING|><|START_RESPONSE|>"),
        ("<|begin_of_thought|>", "<|end_of_thought|>\n\n<|begin_of_solution|>"),
    ],
)
@given(thought=st.text("ab \n<猫", max_size=8), said=st.text("ab 猫", max_size=8).map(str.strip), apart=st.booleans())
def test_thoughts_are_dropped_wherever_their_first_tag_stands(
    begin: str, end: str, thought: str, said: str, apart: bool
) -> None:
    """In the text, or in the prompt; with log-probabilities of all of it."""
    opened, begin = begin, "" if apart else begin
    pieces = [each for each in (begin, thought, end, "\n\n", said) if each]
    found = completion(answer([entry(each) for each in pieces], finish="length"), top_k=0)
    assert found.text == said.encode()
    assert found.token_bytes == ((said.encode(),) if said else ())
    assert ("thought_in_prompt" in found.repairs) == apart
    cut = completion(answer([entry(f"{opened}{thought}")], finish="length"), top_k=0)
    assert (cut.text, cut.token_bytes) == (b"", ())


@pytest.mark.parametrize(
    ("thoughts", "cut"),
    [
        ("<think>a</think>\n<think>b</think>\n", "<think>a</think>\n<think>b"),
        ("<thought>a</thought>", "<thought>a"),
        ("<reasoning>a</reasoning>\n\n", "<reasoning>a</reas"),
        (
            "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>final<|message|>",
            "<|channel|>analysis<|message|>a",
        ),
        ("analysisLet us see.assistantfinal", None),  # without its end it may be any text
    ],
)
def test_other_thoughts_before_an_answer(thoughts: str, cut: str | None) -> None:
    found = completion(answer([entry(thoughts), entry("Yes")], f"{thoughts}Yes"), top_k=0)
    assert (found.text, found.repairs) == (b"Yes", {"reasoning_dropped": 1})
    if cut is not None:
        assert completion(answer(None, cut, finish="length"), top_k=0).text == b""


@pytest.mark.parametrize(
    "text",
    ["Close it with `</think>`.\nBye", "The <think> tag and its </think>", "a </reasoning> b", "analysis is hard",
     "<reasoning is>", "rethink>", "Use <thought>x</thought>"],
)  # fmt: skip
def test_a_text_about_the_tag_is_no_thought(text: str) -> None:
    found = completion(answer(None, text), top_k=0)
    assert (found.text, found.repairs) == (text.encode(), {})


@pytest.mark.parametrize("field", ["reasoning", "reasoning_content", "thinking", "reasoning_details"])
def test_thoughts_in_any_field(field: str) -> None:
    thought: Any = [{"type": "reasoning.text", "text": "hm"}] if field == "reasoning_details" else "hm"
    found = completion(answer(THINKING, content="Yes!", **{field: thought}), top_k=0)
    assert (found.text, found.token_bytes) == (b"Yes!", (b"Yes", b"!"))


# Halves of surrogate pairs

HALVES = st.text(st.sampled_from("ab猫\ud83d\ude42"), max_size=6)


@given(HALVES, HALVES, st.booleans())
def test_half_a_pair_is_never_kept(content: str, token: str, escaped: bool) -> None:
    """In the text, in tokens and names; escaped, or as the bytes that UTF-8 has no place for."""
    body = answer([entry(token, raw=None, top=[entry(token, raw=None)])], content=content, finish="length")
    body["model"] = f"m{token}"
    sent = json.dumps(body, ensure_ascii=escaped).encode("utf-8", "surrogatepass")
    found = completion(sent)
    said = found.text.decode()
    found.model.encode()
    whole = content.replace("\ud83d\ude42", "🙂")
    assert said == "".join(
        "\ufffd" if "\ud800" <= each <= "\udfff" else each
        for each in (whole[:-1] if whole.endswith("\ud83d") else whole)
    )


@pytest.mark.parametrize("name", ["\x0b", "\x1c", "\x85", "\u2028", "\u2029"])
def test_control_characters_as_they_are(name: str) -> None:
    assert completion(json.dumps(answer(None, f"a{name}b"), ensure_ascii=False).encode()).text == f"a{name}b".encode()
    raw = json.dumps(answer(None, "a#b"), ensure_ascii=False).replace("#", name).encode()
    assert completion(raw).text == f"a{name}b".encode()
