"""No answer ends a collection: what a server writes in any field is mended, or that one answer is refused, once."""

import asyncio
import contextlib
import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import attrs
import msgspec
import numpy as np
import pytest

from bitnet_providers.collect.collect import collect
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import UNBELIEVABLE, Capabilities, Completion, ProviderError
from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.teachers.anthropic.answer import read_answer as read_anthropic
from bitnet_providers.teachers.common.http_errors import answer_lost, wrong_shape
from bitnet_providers.teachers.gemini.answer import decode as decode_gemini
from bitnet_providers.teachers.gemini.answer import read_answer as read_gemini
from bitnet_providers.teachers.openai_compatible.answer import completion_of, decode

ODD = (
    *("-1", "-0.0", "2147483648", "-2147483649", "4294967296", "9223372036854775808", "18446744073709551616", "1e18"),
    *("1e300", "1e999", "-1e999", "NaN", "Infinity", f"1{'0' * 400}", "1.5", "256", '"12"', '"\\ud800"', '"\\u0000"'),
    *('""', "true", "null", "[]", "{}", "[[1]]", '{"a": 1}', "[-1, 300]"),
)
"""JSON, as text: Python's own can't write all of it."""
OPENAI: Any = {
    "model": "m",
    "created": 1,
    "choices": [
        {
            "index": 0,
            "message": {"role": "assistant", "content": "Hi you"},
            "finish_reason": "stop",
            "logprobs": {
                "content": [
                    {
                        "token": text, "logprob": -0.5, "bytes": list(text.encode()), "id": 3,
                        "top_logprobs": [{"token": text, "logprob": -0.5, "bytes": list(text.encode()), "id": 3}],
                    }
                    for text in ("Hi", " you")
                ]
            },
        }
    ],
    "usage": {
        "prompt_tokens": 5, "completion_tokens": 2, "total_tokens": 7, "prompt_time": 0.1,
        "completion_tokens_details": {"reasoning_tokens": 1}, "prompt_tokens_details": {"cached_tokens": 1},
    },
    "timings": {"prompt_ms": 1.0, "predicted_ms": 2.0},
}  # fmt: skip
ANTHROPIC: Any = {
    "model": "m",
    "content": [{"type": "text", "text": "Hi you"}],
    "stop_reason": "end_turn",
    "usage": {
        "input_tokens": 5, "output_tokens": 2, "cache_read_input_tokens": 1, "cache_creation_input_tokens": 1,
        "output_tokens_details": {"thinking_tokens": 1},
    },
}  # fmt: skip
GEMINI: Any = {
    "modelVersion": "m",
    "candidates": [
        {
            "content": {"parts": [{"text": "Hi you"}]},
            "finishReason": "STOP",
            "logprobsResult": {
                "chosenCandidates": [{"token": text, "tokenId": 3, "logProbability": -0.5} for text in ("Hi", " you")],
                "topCandidates": [
                    {"candidates": [{"token": text, "tokenId": 3, "logProbability": -0.5}]} for text in ("Hi", " you")
                ],
            },
        }
    ],
    "usageMetadata": {
        "promptTokenCount": 5, "candidatesTokenCount": 2, "thoughtsTokenCount": 1, "cachedContentTokenCount": 1,
        "toolUsePromptTokenCount": 1,
    },
}  # fmt: skip


def odd_bodies(body: Any) -> Iterator[str]:
    """The body with each of its values, one after the other, as each of ODD."""
    mark = "the value that is replaced"

    def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for name, each in items:
            yield (*path, name)
            yield from places(each, (*path, name))

    for path in places(body):
        changed = json.loads(json.dumps(body))
        holder = changed
        for name in path[:-1]:
            holder = holder[name]
        holder[path[-1]] = mark
        for odd in ODD:
            yield json.dumps(changed).replace(f'"{mark}"', odd)


def openai(body: str) -> Completion:
    try:
        response = decode(body.encode())
    except msgspec.ValidationError as error:
        raise wrong_shape("openai", str(error)) from None
    except (ValueError, msgspec.MsgspecError) as error:
        raise answer_lost("openai", str(error), answered=True) from None
    if not response.choices:
        raise answer_lost("openai", "no choice", answered=True)
    return completion_of(response, model="m", top_k=1, reasoning="drop", latency_s=0.1)


def anthropic(body: str) -> Completion:
    return read_anthropic(json.loads(body), 0.1)


def gemini(body: str) -> Completion:
    try:
        response = decode_gemini(body)
    except msgspec.ValidationError as error:
        raise wrong_shape("gemini", str(error)) from None
    except (msgspec.DecodeError, UnicodeError) as error:
        raise answer_lost("gemini", str(error), answered=True) from None
    return read_gemini(response, who="gemini", top_k=1, model="m", latency_s=0.1)


class Server:
    """Answers "n" with the n-th body; counts what it is asked."""

    capabilities = Capabilities(max_top_logprobs=1, token_ids=False, token_bytes=True, scoring=False, external=True)

    def __init__(self, bodies: list[str], read: Any, good: str) -> None:
        self.description = {"model": "m"}
        self.bodies, self.read, self.good = bodies, read, good
        self.asked: Counter[str] = Counter()

    async def generate(self, request: Any) -> Completion:
        name = request.messages[-1]["content"]
        self.asked[name] += 1
        completion: Completion = self.read(self.good if name.startswith("good") else self.bodies[int(name)])
        return completion

    async def aclose(self) -> None:
        pass


def asked_of(server: Server, folder: Path) -> dict[str, Any]:
    names = [text for n in range(len(server.bodies)) for text in (str(n), f"good {n}")]
    (folder / "prompts.txt").write_text("\n".join(names))
    config = CollectConfig(prompts=folder / "prompts.txt", top_k=1, max_new_tokens=4, retries=0, concurrency=4)
    return asyncio.run(collect(server, config, folder / "raw", "odd", 0))  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize(("read", "body"), [(openai, OPENAI), (anthropic, ANTHROPIC), (gemini, GEMINI)])
def test_every_field_with_every_odd_value(tmp_path: Path, read: Any, body: Any) -> None:
    bodies = list(odd_bodies(body))
    server = Server(bodies, read, json.dumps(body))
    summary = asked_of(server, tmp_path)
    assert len(bodies) > 200
    assert all(server.asked[f"good {n}"] == 1 for n in range(len(bodies)))
    assert summary["completions"] >= len(bodies), "the answers around the odd ones are kept"
    assert summary["completions"] + summary["missing"]["refused"] + summary["missing"]["unanswered"] == 2 * len(bodies)
    with contextlib.suppress(ProviderError):  # where only such are left to ask
        asked_of(server, tmp_path)
    again = {name for name, times in server.asked.items() if times > 1}
    assert len(again) <= summary["missing"]["unanswered"], "only where nothing came that could be read"
    assert len(again) < len(bodies) / 4


@pytest.mark.parametrize(
    "usage",
    [
        {"prompt_tokens": 2**31}, {"completion_tokens": -1}, {"prompt_tokens": 2**70}, {"completion_tokens": 1e300},
        {"prompt_tokens": "12"}, {"completion_tokens": True}, "none", [1], {"prompt_tokens": {"a": 1}},
    ],
)  # fmt: skip
def test_an_absurd_count_costs_the_worst_case_and_no_answer(tmp_path: Path, usage: Any) -> None:
    server = Server([json.dumps(OPENAI | {"usage": usage})], openai, json.dumps(OPENAI))
    summary = asked_of(server, tmp_path)
    assert (summary["completions"], summary["missing"]["refused"]) == (2, 0)
    rows = read_journal(tmp_path / "raw").rows
    repairs = [json.loads(rows.row(n).batch.column("repairs")[0].as_py() or "{}") for n in range(2)]
    spent = read_ledger(tmp_path / "raw", read_journal(tmp_path / "raw"), None).spent.tokens
    numbers = isinstance(usage, dict) and all(type(value) in (int, float) for value in usage.values())
    assert sum(UNBELIEVABLE in each for each in repairs) == numbers
    # the good one took 7; of the other's prompt nobody knows more than that of its worst case
    assert spent.total > 7 + 256
    server.asked.clear()
    asked_of(server, tmp_path)
    assert server.asked.total() == 0


class Broken(Server):
    """Some answers trip up what reads them; some completions hold what no shard takes."""

    async def generate(self, request: Any) -> Completion:
        completion = await super().generate(request)
        match request.messages[-1]["content"]:
            case "0":
                raise KeyError("choices")
            case "1":
                return attrs.evolve(completion, token_ids=np.array([2**40, 1]))
            case "2":
                return attrs.evolve(completion, model="\ud800")
            case "3":
                return attrs.evolve(completion, text=None)
            case "4":
                return attrs.evolve(completion, candidate_counts=np.array([1], np.int32))
            case "5":
                return attrs.evolve(completion, latency_s=-1.0, prompt_tokens=-5)
        return completion


def test_a_teacher_of_somebody_elses_that_answers_oddly(tmp_path: Path) -> None:
    server = Broken([json.dumps(OPENAI)] * 6, openai, json.dumps(OPENAI))
    summary = asked_of(server, tmp_path)
    assert (summary["completions"], summary["missing"]["refused"]) == (7, 5)
    reasons = {entry["id"]: entry["reason"] for entry in summary["refused"]}
    assert reasons["1"] == "its answer can't be read (KeyError: 'choices')"
    assert reasons["3"] == "its answer holds ids or counts that are no 32-bit whole numbers"
    assert "column model of the raw shard does not take it" in reasons["5"]
    assert reasons["7"] == "its answer can't be kept: it has no text"
    assert "whose candidate_counts has 1 entries instead of 2" in reasons["9"]
    asked_of(server, tmp_path)
    assert set(server.asked.values()) == {1}
