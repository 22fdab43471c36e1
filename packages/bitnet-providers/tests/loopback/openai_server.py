"""A server that speaks OpenAI's wire format, for tests: chat completions (whole and streamed) and legacy completions.

The shapes are those of OpenAI's API reference, as typed in its SDK; `prompt_logprobs` and the scoring of a given answer
are vLLM's. What it says is drawn from a hash of the request, so equal requests get equal answers. Faults come from
`faults.FaultPlayer`, or from `answer`, which gets the finished answer and may spoil it.

    server = OpenAIServer()
    with serving(server.app()) as url: ...  # url + "/v1" is the base URL
"""

import hashlib
import json
import math
import random
import zlib
from collections.abc import Callable
from typing import Any

import attrs
from aiohttp import web

from loopback.faults import FaultPlayer

KEY = "sk-loopback-this-is-no-key"
WORDS = [
    b" the",
    b" sea",
    b" is",
    b" calm",
    b" and",
    b" deep",
    b",",
    b".",
    b" blue",
    b" \xe7",
    b"\x8c\xab",
    b"\xc3\xa9",
]
"""Tokens as a tokenizer has them: some are pieces of a character."""
WORDS += [f" word{number}".encode() for number in range(52)]
MOST_CANDIDATES = 20

Json = dict[str, Any]


def error_body(status: int, message: str = "", code: str | None = None, param: str | None = None) -> Json:
    """OpenAI's envelope for an error."""
    kinds = {400: "invalid_request_error", 401: "invalid_request_error", 429: "requests", 500: "server_error"}
    return {
        "error": {
            "message": message or f"The server had an error ({status})",
            "type": kinds.get(status, "server_error"),
            "param": param,
            "code": code,
        }
    }


def token_entry(raw: bytes, logprob: float) -> Json:
    return {"token": raw.decode("utf-8", "replace"), "logprob": logprob, "bytes": list(raw)}


def words_of(text: str) -> list[bytes]:
    """A text as tokens: words with the space before them."""
    raw, cuts = text.encode(), [0]
    cuts += [index for index, byte in enumerate(raw) if byte == 0x20 and index]
    return [raw[start:stop] for start, stop in zip(cuts, [*cuts[1:], len(raw)], strict=True)] if raw else []


@attrs.define
class OpenAIServer:
    """What it expects and how it answers; change it between requests."""

    key: str = KEY
    """The bearer token that it takes; "": any."""
    model: str = "loopback-1"
    scores: bool = True
    """Legacy ``echo`` and vLLM's ``prompt_logprobs`` are heard; else they are ignored, as llama.cpp does."""
    answer: Callable[[Json], Json] | None = None
    """A finished answer in, what is sent out."""
    seen: list[Json] = attrs.field(factory=list)
    """The bodies of all requests that reached a handler."""
    _bodies: dict[str, bytes] = attrs.field(factory=dict)

    def app(self, player: FaultPlayer | None = None) -> web.Application:
        app = web.Application(middlewares=[player.middleware] if player else [], client_max_size=1 << 24)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/openai/v1/chat/completions", self._chat)  # Groq's
        app.router.add_post("/v1/completions", self._legacy)
        return app

    async def _chat(self, request: web.Request) -> web.Response:
        body, refused = await self._read(request)
        if refused is not None:
            return refused
        key = json.dumps(body, sort_keys=True)
        if self.answer is None and key in self._bodies:  # a benchmark asks the same thing thousands of times
            return _json(self._bodies[key])
        whole = self._with_prompt_logprobs(body, self.chat_completion(body))
        if self.answer is not None:
            whole = self.answer(whole)
        if body.get("stream"):
            return web.Response(body=b"".join(events(whole)), content_type="text/event-stream")
        sent = json.dumps(whole).encode()
        if self.answer is None and len(self._bodies) < 64:
            self._bodies[key] = sent
        return _json(sent)

    async def _legacy(self, request: web.Request) -> web.Response:
        body, refused = await self._read(request)
        if refused is not None:
            return refused
        whole = self.legacy_completion(body)
        return _json(json.dumps(whole if self.answer is None else self.answer(whole)).encode())

    async def _read(self, request: web.Request) -> tuple[Json, web.Response | None]:
        said = request.headers.get("Authorization", "")
        if self.key and said != f"Bearer {self.key}":
            wrong = error_body(401, f"Incorrect API key provided: {said}.", "invalid_api_key")
            return {}, web.json_response(wrong, status=401)
        body = json.loads(await request.read())
        self.seen.append(body)
        if (body.get("top_logprobs") or 0) > MOST_CANDIDATES:
            wrong = error_body(400, "Invalid value for 'top_logprobs': must be less than or equal to 20.",
                               "integer_above_max_value", "top_logprobs")  # fmt: skip
            return body, web.json_response(wrong, status=400)
        return body, None

    def chat_completion(self, body: Json) -> Json:
        """An answer of ``max_tokens`` tokens."""
        count = int(body.get("max_completion_tokens") or body.get("max_tokens") or 16)
        drawn = self._draw(json.dumps([body["messages"], body.get("seed")]), count)
        if body.get("temperature") == 0:
            drawn = [(candidates[0][0], candidates) for _, candidates in drawn]
        top = int(body.get("top_logprobs") or 0)
        entries = []
        for raw, candidates in drawn:
            logprob = dict(candidates)[raw]
            tops = [token_entry(each, value) for each, value in candidates[:top]]
            entries.append({**token_entry(raw, logprob), "top_logprobs": tops})
        content = b"".join(raw for raw, _ in drawn).decode("utf-8", "replace")
        message = {"role": "assistant", "content": content, "refusal": None, "annotations": []}
        choice = {
            "index": 0,
            "message": message,
            "logprobs": {"content": entries, "refusal": None} if body.get("logprobs") else None,
            "finish_reason": "length",
        }
        return self._envelope("chat.completion", choice, prompt_tokens=9, completion_tokens=count)

    def legacy_completion(self, body: Json) -> Json:
        """One token behind the prompt, and the prompt too with ``echo``."""
        prompt, top = str(body["prompt"]), int(body.get("logprobs") or 0)
        asked = words_of(prompt)
        behind = self._draw(prompt, 1)
        positions = [(raw, self._candidates(raw, index)) for index, raw in enumerate(asked)] + behind
        shown = positions if body.get("echo") and self.scores else behind
        texts = [raw.decode("utf-8", "replace") for raw, _ in shown]
        choice = {
            "index": 0,
            "text": "".join(texts),
            "logprobs": {
                "tokens": texts,
                "token_logprobs": [None if shown is positions and not index else dict(candidates)[raw]
                                   for index, (raw, candidates) in enumerate(shown)],
                "top_logprobs": [None if shown is positions and not index
                                 else {raw.decode("utf-8", "replace"): value for raw, value in candidates[:top]}
                                 for index, (_, candidates) in enumerate(shown)],
                "text_offset": [sum(map(len, texts[:index])) for index in range(len(texts))],
            },
            "finish_reason": "length",
        }  # fmt: skip
        found = self._envelope("text_completion", choice, prompt_tokens=len(asked), completion_tokens=1)
        if body.get("prompt_logprobs") and self.scores:
            choice["prompt_logprobs"] = self._prompt_logprobs(asked, int(body["prompt_logprobs"]))
        return found

    def _with_prompt_logprobs(self, body: Json, answer: Json) -> Json:
        """vLLM: the whole prompt, template included; here the answer stands behind two tokens of template."""
        if body.get("prompt_logprobs") and self.scores:
            template = [b"<|user|>", b"<|assistant|>"]
            tokens = template + words_of(body["messages"][-1]["content"])
            answer["prompt_logprobs"] = self._prompt_logprobs(tokens, int(body["prompt_logprobs"]))
        return answer

    def _prompt_logprobs(self, tokens: list[bytes], top: int) -> list[Json | None]:
        found: list[Json | None] = [None]
        for index, raw in enumerate(tokens[1:], start=1):
            candidates = self._candidates(raw, index)
            shown = {raw: dict(candidates)[raw], **dict(candidates[:top])}
            found.append({
                str(1000 + zlib.crc32(each) % 90000): {
                    "logprob": value, "rank": 1 + number, "decoded_token": each.decode("utf-8", "replace")
                }
                for number, (each, value) in enumerate(shown.items())
            })  # fmt: skip
        return found

    def _draw(self, seed: str, count: int) -> list[tuple[bytes, list[tuple[bytes, float]]]]:
        """(token, its candidates with their log-probabilities, best first) for each position."""
        dice = random.Random(hashlib.sha256(seed.encode()).digest())
        found = []
        for _ in range(count):
            words = dice.sample(WORDS, len(WORDS))
            weights = [math.exp(-0.35 * rank) for rank in range(len(words))]
            found.append((dice.choices(words, weights)[0], self._as_logprobs(words, weights)))
        return found

    def _candidates(self, raw: bytes, index: int) -> list[tuple[bytes, float]]:
        """Candidates at a position where `raw` stands."""
        words = [each for each in WORDS if each != raw][:40]
        words.insert(index % 30, raw)
        return self._as_logprobs(words, [math.exp(-0.35 * rank) for rank in range(len(words))])

    @staticmethod
    def _as_logprobs(words: list[bytes], weights: list[float]) -> list[tuple[bytes, float]]:
        total = sum(weights)
        return [(word, math.log(weight / total)) for word, weight in zip(words, weights, strict=True)]

    def _envelope(self, kind: str, choice: Json, *, prompt_tokens: int, completion_tokens: int) -> Json:
        return {
            "id": "chatcmpl-1",
            "object": kind,
            "created": 1_770_000_000,
            "model": self.model,
            "choices": [choice],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": completion_tokens,
                "total_tokens": prompt_tokens + completion_tokens,
                "prompt_tokens_details": {"cached_tokens": 0, "audio_tokens": 0},
                "completion_tokens_details": {"reasoning_tokens": 0, "audio_tokens": 0},
            },
            "service_tier": "default",
            "system_fingerprint": "fp_loopback",
        }


def events(whole: Json) -> list[bytes]:
    """A finished answer as server-sent events: one a token, then the finish, the usage, and ``[DONE]``."""
    (choice,) = whole["choices"]
    message, entries = choice["message"], ((choice["logprobs"] or {}).get("content")) or []
    shared = {**{key: whole[key] for key in ("id", "created", "model")}, "object": "chat.completion.chunk"}

    def event(delta: Json, logprobs: Json | None = None, finish: str | None = None) -> Json:
        return {**shared, "usage": None,
                "choices": [{"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]}  # fmt: skip

    # A character that tokens cut is sent with its last token.
    content, pieces, held = message.get("content") or "", [], b""
    for entry in entries:
        held += bytes(entry["bytes"] or entry["token"].encode())
        try:
            pieces.append(held.decode())
        except UnicodeDecodeError:
            pieces.append("")
            continue
        held = b""
    if "".join(pieces) != content:
        pieces = [content, *[""] * (len(entries) - 1)]
    rest = {name: value for name, value in message.items() if name not in ("role", "content") and value}
    found = [event({"role": "assistant", "content": "", **rest})]
    found += [
        event({"content": piece}, {"content": [entry], "refusal": None})
        for piece, entry in zip(pieces, entries, strict=False)
    ]
    if not entries and content:
        found.append(event({"content": content}))
    found.append(event({}, finish=choice["finish_reason"]))
    found.append({**shared, "choices": [], "usage": whole["usage"]})
    return [b"data: %s\n\n" % json.dumps(each).encode() for each in found] + [b"data: [DONE]\n\n"]


def _json(body: bytes) -> web.Response:
    return web.Response(body=body, content_type="application/json")
