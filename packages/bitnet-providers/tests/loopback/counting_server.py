"""An OpenAI-shaped chat server in its own process that counts what it is asked, for tests and benchmarks.

    python counting_server.py '{"tokens": 8, "candidates": 5, "latency_s": 0.05, "fault_share": 0.3}'

prints its port, and ends when its standard input does. ``GET /counts`` tells what it has seen; see `Counts.report`.
Answers are made before the first request: the server takes little time for a big one.
"""

import asyncio
import json
import random
import subprocess
import sys
import time
import urllib.request
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

if __name__ == "__main__":  # started by its path: the other modules of this folder lie beside it
    sys.path.insert(0, str(Path(__file__).parents[1]))

from loopback.faults import CUT_BEFORE, CUT_BODY, INVALID_JSON, Fault, FaultPlayer, failing, mix, rate_limited

WINDOW_S = 60.0


@attrs.frozen(kw_only=True)
class Settings:
    """What the server plays."""

    tokens: int = 8
    """Of an answer."""
    candidates: int = 5
    latency_s: float = 0.0
    fault_share: float = 0.0
    retry_after: str = "0.2"
    seed: int = 0
    refuse: str = ""
    """A request whose last message holds this is answered 400."""
    requests_per_minute: int | None = None
    """More than this is answered 429, as a provider would."""


def all_faults(retry_after: str) -> list[Fault]:
    return [
        rate_limited(retry_after), rate_limited(), failing(500), failing(503), CUT_BEFORE, CUT_BODY, INVALID_JSON,
    ]  # fmt: skip


class Counts:
    """What came in, by the last message and the seed."""

    def __init__(self) -> None:
        self.arrived: Counter[str] = Counter()
        self.answered: Counter[str] = Counter()
        self.at_once = self.most_at_once = 0
        self._came: list[tuple[float, int, int]] = []

    def came(self, key: str, worst_tokens: int) -> None:
        self.arrived[key] += 1
        self.at_once += 1
        self.most_at_once = max(self.most_at_once, self.at_once)
        self._came.append((time.monotonic(), 1, worst_tokens))

    def in_last_minute(self) -> int:
        begin = time.monotonic() - WINDOW_S
        return sum(1 for when, _, _ in reversed(self._came) if when > begin)

    def report(self) -> dict[str, Any]:
        """Requests and answers by key; most of both in any 60 seconds, tokens as prompt words and max_tokens."""
        most_requests = most_tokens = requests = tokens = first = 0
        for when, one, worst in self._came:
            requests, tokens = requests + one, tokens + worst
            while self._came[first][0] <= when - WINDOW_S:
                requests, tokens = requests - self._came[first][1], tokens - self._came[first][2]
                first += 1
            most_requests, most_tokens = max(most_requests, requests), max(most_tokens, tokens)
        return {
            "arrived": self.arrived,
            "answered": self.answered,
            "most_at_once": self.most_at_once,
            "most_requests_in_a_minute": most_requests,
            "most_tokens_in_a_minute": most_tokens,
        }


def answer(settings: Settings, prompt_tokens: int) -> bytes:
    """A chat completion of `tokens` tokens with so many candidates each, as the API spells it."""
    draw = random.Random(settings.seed)
    content = []
    for position in range(settings.tokens):
        token = f" word{position}"
        logprobs = sorted((round(-draw.random() * 10 - 0.1, 8) for _ in range(settings.candidates)), reverse=True)
        entries = [
            {"token": text, "logprob": logprob, "bytes": list(text.encode())}
            for text, logprob in zip(
                [token, *(f" other{n}" for n in range(1, settings.candidates))], logprobs, strict=False
            )
        ]
        own = entries[0] if entries else {"token": token, "logprob": -0.5, "bytes": list(token.encode())}
        content.append({**own, "top_logprobs": entries})
    return json.dumps(
        {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": "counting-1",
            "choices": [
                {
                    "index": 0,
                    "message": {"role": "assistant", "content": "".join(each["token"] for each in content)},
                    "logprobs": {"content": content},
                    "finish_reason": "stop",
                }
            ],
            "usage": {
                "prompt_tokens": prompt_tokens,
                "completion_tokens": settings.tokens,
                "total_tokens": prompt_tokens + settings.tokens,
            },
        },
        separators=(",", ":"),
    ).encode()


def make_app(settings: Settings) -> web.Application:
    """The server's application."""
    counts, body = Counts(), answer(settings, prompt_tokens=12)
    plan = mix(settings.seed, settings.fault_share, all_faults(settings.retry_after))
    player = FaultPlayer(plan, error_body=lambda status: {"error": {"message": f"played {status}", "code": status}})

    @web.middleware
    async def count(request: web.Request, handler: Any) -> web.StreamResponse:
        if request.path == "/counts":
            return web.json_response(counts.report())
        try:
            asked = await request.json()
        except ConnectionError:  # killed while it was sending: no request
            return web.Response(status=400)
        key = f"{asked['messages'][-1]['content']} | {asked.get('seed')}"
        limit = asked.get("max_completion_tokens") or asked.get("max_tokens") or 0
        over = settings.requests_per_minute is not None and counts.in_last_minute() >= settings.requests_per_minute
        counts.came(key, 12 + limit)
        try:
            if over:
                return web.json_response({"error": {"message": "slow down"}}, status=429)
            number = len(player.played)
            response = await handler(request)
            if not player.played[number] and response.status == 200:
                counts.answered[key] += 1
            return response
        finally:
            counts.at_once -= 1

    async def chat(request: web.Request) -> web.Response:
        asked = await request.json()
        if settings.refuse and settings.refuse in asked["messages"][-1]["content"]:
            return web.json_response({"error": {"message": "this is not said here"}}, status=400)
        await asyncio.sleep(settings.latency_s)
        return web.Response(body=body, content_type="application/json")

    app = web.Application(middlewares=[count, player.middleware])
    app.add_routes([web.post("/v1/chat/completions", chat), web.get("/counts", chat)])
    return app


@contextmanager
def running(**settings: Any) -> Iterator[str]:
    """The server in a process of its own; gives ``http://127.0.0.1:PORT``."""
    process = subprocess.Popen(
        [sys.executable, __file__, json.dumps(settings)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        yield f"http://127.0.0.1:{int(process.stdout.readline())}"
    finally:
        process.stdin.close()
        process.wait(100)


def counts_of(url: str) -> dict[str, Any]:
    with urllib.request.urlopen(f"{url}/counts") as answer:
        found: dict[str, Any] = json.load(answer)
    return found


async def _serve(settings: Settings) -> None:
    runner = web.AppRunner(make_app(settings), access_log=None, shutdown_timeout=0.1)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0, backlog=2048).start()
    print(runner.addresses[0][1], flush=True)
    await asyncio.to_thread(sys.stdin.read)
    await runner.cleanup()


if __name__ == "__main__":
    asyncio.run(_serve(Settings(**json.loads(sys.argv[1]))))
