"""Google's generateContent on 127.0.0.1, from its published reference: what it takes, answers and refuses."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import attrs
from aiohttp import web

from loopback.faults import FaultPlayer

KEY = "AIzaFakeCanary0123456789abcdefghijklmno"

_NAMES = {
    400: "INVALID_ARGUMENT",
    401: "UNAUTHENTICATED",
    403: "PERMISSION_DENIED",
    404: "NOT_FOUND",
    429: "RESOURCE_EXHAUSTED",
    500: "INTERNAL",
    503: "UNAVAILABLE",
    504: "DEADLINE_EXCEEDED",
}


def error_body(status: int, message: str = "", *details: Mapping[str, Any], name: str = "") -> dict[str, Any]:
    error: dict[str, Any] = {"code": status, "message": message or f"told {status}"}
    error["status"] = name or _NAMES.get(status, "UNKNOWN")
    if details:
        error["details"] = [dict(each) for each in details]
    return {"error": error}


def retry_info(delay: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.RetryInfo", "retryDelay": delay}


def quota_failure(quota: str, value: str = "250") -> dict[str, Any]:
    violation = {"quotaMetric": "generate_content_requests", "quotaId": quota, "quotaValue": value}
    return {"@type": "type.googleapis.com/google.rpc.QuotaFailure", "violations": [violation]}


def error_info(reason: str, **metadata: str) -> dict[str, Any]:
    return {"@type": "type.googleapis.com/google.rpc.ErrorInfo", "reason": reason, "metadata": metadata}


def response(
    text: str | None,
    logprobs: Mapping[str, Any] | None = None,
    *,
    finish: str | None = "STOP",
    parts: Sequence[Mapping[str, Any]] = (),
    **usage: int,
) -> dict[str, Any]:
    """A GenerateContentResponse; `parts` stand before the text."""
    all_parts = [dict(part) for part in parts] + ([] if text is None else [{"text": text}])
    candidate: dict[str, Any] = {"content": {"parts": all_parts, "role": "model"}, "index": 0, "avgLogprobs": -0.2}
    if finish is not None:
        candidate["finishReason"] = finish
    if logprobs is not None:
        candidate["logprobsResult"] = logprobs
    return {
        "candidates": [candidate],
        "usageMetadata": {"promptTokenCount": 9, "candidatesTokenCount": 4, "totalTokenCount": 13} | usage,
        "modelVersion": "gemini-loopback-001",
        "responseId": "r1",
    }


def entry(token: str, logprob: float | str | None, token_id: int = 7) -> dict[str, Any]:
    found: dict[str, Any] = {"token": token, "tokenId": token_id}
    return found if logprob is None else found | {"logProbability": logprob}


def logprobs_result(tokens: Sequence[str], k: int) -> dict[str, Any]:
    """Each token with probability 1/2, then k − 1 others with half of what is left each."""
    top = [
        {
            "candidates": [
                entry(token if rank == 0 else f" other{rank}", math.log(0.5) * (rank + 1), 100 * index + rank)
                for rank in range(k)
            ]
        }
        for index, token in enumerate(tokens)
    ]
    chosen = [entry(token, math.log(0.5), 100 * index) for index, token in enumerate(tokens)]
    return {"chosenCandidates": chosen, "topCandidates": top}


def echo(request: Mapping[str, Any]) -> dict[str, Any]:
    said = request["contents"][-1]["parts"][0]["text"]
    tokens = ["You", " said", ":", f" {said}"]
    config = request.get("generationConfig", {})
    k = config.get("logprobs", 0) if config.get("responseLogprobs") else None
    return response("".join(tokens), None if k is None else logprobs_result(tokens, k))


_FINISH_NUMBERS = ("", "STOP", "MAX_TOKENS", "SAFETY", "RECITATION", "OTHER", "LANGUAGE", "BLOCKLIST")


def _with_numbers(answer: dict[str, Any]) -> dict[str, Any]:
    """Enumerations as numbers, for clients that ask for them; 99 where the reference is newer than they are."""
    for candidate in answer.get("candidates", []):
        reason = candidate.get("finishReason")
        if reason is not None:
            candidate["finishReason"] = _FINISH_NUMBERS.index(reason) if reason in _FINISH_NUMBERS else 99
    return answer


@attrs.define
class GeminiServer:
    """`answer` makes the reply to a request's JSON; `seen`, `headers` and `urls` hold what came."""

    answer: Callable[[Mapping[str, Any]], Any] = echo
    refuse: tuple[int, Any] | None = None
    """Answer every request with this status and body."""
    player: FaultPlayer = attrs.field(factory=lambda: FaultPlayer(error_body=error_body))
    seen: list[dict[str, Any]] = attrs.field(factory=list)
    headers: list[dict[str, str]] = attrs.field(factory=list)
    urls: list[str] = attrs.field(factory=list)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.player.middleware])
        app.router.add_post("/v1beta/models/{call}", self._generate)
        return app

    async def _generate(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        self.urls.append(str(request.rel_url))
        if self.refuse is not None:
            return web.json_response(self.refuse[1], status=self.refuse[0])
        refusal = self._refusal(request.match_info["call"], body, self.headers[-1])
        if refusal is not None:
            return web.json_response(refusal, status=refusal["error"]["code"])
        answer = self.answer(body)
        if "enum-encoding=int" in request.rel_url.query.get("$alt", ""):
            answer = _with_numbers(answer)
        return web.json_response(answer)

    def _refusal(self, call: str, body: Mapping[str, Any], headers: Mapping[str, str]) -> dict[str, Any] | None:
        if headers.get("x-goog-api-key") != KEY:
            message = f"API key not valid. Please pass a valid API key, not {headers.get('x-goog-api-key')}."
            return error_body(400, message, error_info("API_KEY_INVALID"))
        model, _, method = call.partition(":")
        if method != "generateContent" or not model.startswith("gemini-"):
            return error_body(404, f"models/{model} is not found for API version v1beta")
        if not body.get("contents"):
            return error_body(400, "* GenerateContentRequest.contents: contents is not specified")
        for turn in body["contents"]:
            if turn.get("role") not in ("user", "model"):
                return error_body(400, "Please use a valid role: user, model.")
        config = body.get("generationConfig", {})
        if config.get("responseLogprobs") and model.endswith("-nologprobs"):
            return error_body(400, f"Logprobs is not enabled for models/{model}")
        if "logprobs" in config and not (config.get("responseLogprobs") and 0 <= config["logprobs"] <= 20):
            return error_body(400, "logprobs: must be in [0, 20] and response_logprobs must be set")
        return None
