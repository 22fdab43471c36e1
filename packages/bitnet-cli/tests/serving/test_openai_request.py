"""What a request may say, and how it is told where it may not."""

from contextlib import suppress
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_cli.serving.access_control import Access, is_loopback
from bitnet_cli.serving.openai_request import ApiError, read_chat, read_completion

HELLO = [{"role": "user", "content": "tea?"}]


def test_openais_defaults() -> None:
    asked = read_chat({"messages": HELLO}, 77)
    sampling = asked.sampling
    assert asked.prompt == HELLO
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens, sampling.stop) == (1.0, 1.0, 77, ())
    assert sampling.top_logprobs is None
    assert not asked.stream
    assert read_chat({"messages": HELLO}, 1).sampling.seed != sampling.seed, "each its own, unless one is given"


def test_everything_that_may_be_set() -> None:
    asked = read_chat(
        {
            "messages": [
                {"role": "developer", "content": "Be brief."},
                {"role": "user", "name": "A", "content": [{"type": "text", "text": each} for each in ("tea", "?")]},
                {"role": "assistant", "content": "Yes.", "refusal": None, "tool_calls": []},
            ],
            "model": "tea", "max_tokens": 9, "max_completion_tokens": 5, "temperature": 0, "top_p": 0.5, "seed": -1,
            "stop": ["\n", "."], "logprobs": True, "top_logprobs": 20, "stream": True, "n": 1, "top_k": -1, "user": "u",
            "stream_options": {"include_usage": True}, "logit_bias": None, "presence_penalty": 0.0,
        },
        77,
    )  # fmt: skip
    sampling = asked.sampling
    assert asked.prompt == [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "tea?"},
        {"role": "assistant", "content": "Yes."},
    ]  # fmt: skip
    assert (sampling.temperature, sampling.top_p, sampling.max_new_tokens) == (0.0, 0.5, 5)
    assert (sampling.seed, sampling.stop, sampling.top_logprobs) == (2**32 - 1, ("\n", "."), 20)
    assert asked.stream
    assert asked.include_usage
    assert asked.model == "tea"
    legacy = read_completion({"prompt": ["Tea is"], "logprobs": 3, "echo": False, "best_of": 1, "stop": "."}, 16)
    assert (legacy.prompt, legacy.sampling.top_logprobs, legacy.sampling.max_new_tokens) == ("Tea is", 3, 16)
    assert read_chat({"messages": HELLO, "logprobs": True}, 1).sampling.top_logprobs == 0


@pytest.mark.parametrize(
    ("change", "param", "said"),
    [
        ({"messages": []}, "messages", "at least one message"),
        ({"messages": "tea"}, "messages", "at least one message"),
        ({"messages": HELLO * 4097}, "messages", "at most 4,096"),
        ({"messages": [{"role": "user", "content": "x" * 600_000}] * 2}, "messages", "1,200,000 characters, at most"),
        ({"stop": "x" * 1001}, "stop", "at most 1,000 characters"),
        ({"messages": ["tea"]}, None, "messages[0]: expected a JSON object"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": ["user"], "content": "x"}]}, "messages[0].role", "one of system"),
        ({"messages": [{"role": "user"}]}, "messages[0].content", "expected a text"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages[0].content[0].type", "images"),
        ({"messages": [{"role": "user", "content": "\ud800"}]}, "messages[0].content", "half a surrogate pair"),
        ({"messages": [{"role": "user", "content": "a", "colour": 1}]}, "messages[0].colour", "unknown field"),
        ({"temperature": 2.5}, "temperature", "from 0 to 2"),
        ({"temperature": "hot"}, "temperature", "expected a number"),
        ({"temperature": True}, "temperature", "expected a number"),
        ({"temperature": float("nan")}, "temperature", "expected a number"),
        ({"top_p": 0}, "top_p", "from 1e-06 to 1"),
        ({"max_tokens": 0}, "max_tokens", "whole number from 1"),
        ({"max_completion_tokens": 1.5}, "max_completion_tokens", "whole number"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs", "from 0 to 20"),
        ({"top_logprobs": 2}, "top_logprobs", "needs logprobs beside it  → add logprobs: true"),
        ({"logprobs": 5}, "logprobs", "true or false"),
        ({"n": 2}, "n", "only takes 1"),
        ({"tools": [{}]}, "tools", "only takes []"),
        ({"response_format": {"type": "json_object"}}, "response_format", "only takes"),
        ({"stop": [""]}, "stop", "none of them empty"),
        ({"stop": ["x"] * 17}, "stop", "at most 16"),
        ({"stop": [1]}, "stop", "expected a text"),
        ({"stream": "yes"}, "stream", "true or false"),
        ({"stream_options": {"includeusage": True}}, "stream_options.includeusage", 'did you mean "include_usage"'),
        ({"stream_options": []}, None, "stream_options: expected a JSON object"),
        ({"temprature": 1}, "temprature", 'did you mean "temperature"'),
        ({"model": 7}, "model", "expected a text"),
    ],
)
def test_what_makes_no_sense_is_told_with_its_field(change: dict[str, Any], param: str | None, said: str) -> None:
    with pytest.raises(ApiError) as error:
        read_chat({"messages": HELLO} | change, 8)
    assert error.value.status == 400
    assert error.value.param == param
    assert said in str(error.value)


@pytest.mark.parametrize(
    "body",
    [
        {}, {"prompt": ""}, {"prompt": ["a", "b"]}, {"prompt": [1, 2]}, {"prompt": "a", "echo": True},
        {"prompt": "a", "logprobs": True}, {"prompt": "a", "logprobs": 21}, [], "tea", None,
        {"prompt": "x" * 1_000_001},
    ],
)  # fmt: skip
def test_legacy_requests_that_make_no_sense(body: Any) -> None:
    with pytest.raises(ApiError) as error:
        read_completion(body, 8)
    assert error.value.status == 400


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["messages", "role", "content", "type", "text", "stop", "stream_options", "prompt", "seed", "logprobs", "x"]
    ), inner, max_size=5),
    max_leaves=12,
)  # fmt: skip


@given(JSON)
def test_any_json_is_read_or_refused(body: Any) -> None:
    for read in (read_chat, read_completion):
        with suppress(ApiError):
            assert read(body, 8).prompt


def test_who_may_ask() -> None:
    assert is_loopback("127.0.0.1")
    assert is_loopback("::1")
    assert is_loopback("localhost")
    assert not is_loopback("0.0.0.0")
    assert not is_loopback("example.org")
    local = Access(local=True, key=None)
    for host in ("127.0.0.1:8158", "localhost", "[::1]:8158"):
        local.check_host(host)
    for host in ("evil.example:8158", "", "[", "127.0.0.1.evil.example"):
        with pytest.raises(ApiError):
            local.check_host(host)
    Access(local=False, key=None).check_host("evil.example")
    local.check_key("")
    keyed = Access(local=False, key="fake-key-é")
    keyed.check_key("Bearer fake-key-é")
    keyed.check_key("bearer  fake-key-é ")
    assert "fake-key" not in repr(keyed)
    for wrong in ("", "Bearer", "Bearer fake-key", "Basic fake-key-é", "fake-key-é"):
        with pytest.raises(ApiError) as error:
            keyed.check_key(wrong)
        assert error.value.status == 401
        assert "fake-key" not in str(error.value)
