"""The API on 127.0.0.1, with a toy of a model behind it and the conformance kit's faults."""

import json
import math
import random
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

WORDS = "the a cat dog tea is was hot cold and sat on red mat of house green river ran to it in small big I you like"
PIECES = [f" {word}" for word in WORDS.split()] + ["."]
REFUSALS = {"rate limit": 429, "unavailable": 503, "bad request": 400, "unauthorized": 401}


def logprobs(before: str) -> list[float]:
    """Of each piece behind `before`, nats."""
    draw = random.Random(f"talk {before}")
    logits = [draw.gauss(0.0, 2.0) for _ in PIECES]
    log_sum = math.log(sum(map(math.exp, logits)))
    return [each - log_sum for each in logits]


def pick(order: list[int], known: list[float], temperature: float, top_p: float, draw: random.Random) -> int:
    if temperature == 0:
        return order[0]
    weights = [math.exp(known[index] / temperature) for index in order]
    left = top_p * sum(weights)
    kept = []
    for index, weight in zip(order, weights, strict=True):
        kept.append((index, weight))
        left -= weight
        if left <= 0:
            break
    return draw.choices([index for index, _ in kept], [weight for _, weight in kept])[0]


def answer(asked: dict[str, Any]) -> dict[str, Any]:
    draw, before, tokens = random.Random(asked["seed"]), asked["text"][-1:], []
    for _ in range(asked["max_tokens"]):
        known = logprobs(before)
        order = sorted(range(len(PIECES)), key=lambda index: -known[index])
        chosen = pick(order, known, asked["temperature"], asked["top_p"], draw)
        before = PIECES[chosen]
        listed = [{"piece": PIECES[index], "lp": known[index]} for index in order[: asked["alternatives"]]]
        tokens.append({"piece": before, "lp": known[chosen], "alternatives": listed})
        if before == ".":
            break
    return {"answer": "".join(token["piece"] for token in tokens), "tokens": tokens}


class Talk(BaseHTTPRequestHandler):
    server: "TalkServer"

    def log_message(self, *_: Any) -> None:
        """Nothing is printed."""

    def do_POST(self) -> None:
        asked = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.fault
        status = REFUSALS.get(fault or "", 200) if self.headers["X-Talk-Key"] else 401
        said = answer(asked) if status == 200 and fault != "garbage" else {"error": f"{fault}: {self.headers}"}
        data = json.dumps(said).encode()
        self.send_response(status)
        if status == 429:
            self.send_header("Retry-After", "3")
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data[: len(data) // 2] if fault == "cut" else data)


class TalkServer(ThreadingHTTPServer):
    daemon_threads = True
    fault: str | None = None

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talk)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def play(self, fault: str | None) -> None:
        self.fault = fault
