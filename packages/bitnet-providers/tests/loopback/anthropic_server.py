"""Anthropic's Messages API on 127.0.0.1, from its published reference: what it takes, answers and refuses."""

from collections.abc import Callable, Mapping
from typing import Any

import attrs
from aiohttp import web

from loopback.faults import FaultPlayer

KEY = "sk-ant-fake-canary-0123456789"
LAST_WITH_SAMPLING = "2023-06-01"

_TYPES = {
    400: "invalid_request_error",
    401: "authentication_error",
    402: "billing_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "api_error",
    504: "timeout_error",
    529: "overloaded_error",
}


def error_body(status: int, message: str = "", **details: str) -> dict[str, Any]:
    error: dict[str, Any] = {"type": _TYPES.get(status, "api_error"), "message": message or f"told {status}"}
    if details:
        error["details"] = details
    return {"type": "error", "error": error, "request_id": "req_011CSHoEeqs5C35K2UUqR7Fy"}


def message(*content: Mapping[str, Any], stop_reason: str | None = "end_turn", **usage: Any) -> dict[str, Any]:
    """A ``message`` object as the API answers with."""
    return {
        "id": "msg_013Zva2CMHLNnXjNJJKqJ2EF",
        "type": "message",
        "role": "assistant",
        "model": "claude-loopback-4-20260101",
        "content": [dict(block) for block in content],
        "stop_reason": stop_reason,
        "stop_sequence": None,
        "usage": {"input_tokens": 12, "output_tokens": 5} | usage,
    }


def text(words: str) -> dict[str, Any]:
    return {"type": "text", "text": words}


def echo(request: Mapping[str, Any]) -> dict[str, Any]:
    return message(text(f"You said: {request['messages'][-1]['content']}"))


@attrs.define
class AnthropicServer:
    """`answer` makes the reply to a request's JSON; `seen` and `headers` hold what came."""

    answer: Callable[[Mapping[str, Any]], Any] = echo
    refuse: tuple[int, dict[str, Any]] | None = None
    """Answer every request with this status and body."""
    player: FaultPlayer = attrs.field(factory=lambda: FaultPlayer(error_body=error_body))
    seen: list[dict[str, Any]] = attrs.field(factory=list)
    headers: list[dict[str, str]] = attrs.field(factory=list)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self.player.middleware])
        app.router.add_post("/v1/messages", self._messages)
        return app

    async def _messages(self, request: web.Request) -> web.Response:
        body = await request.json()
        self.seen.append(body)
        self.headers.append({name.lower(): value for name, value in request.headers.items()})
        if self.refuse is not None:
            return web.json_response(self.refuse[1], status=self.refuse[0])
        status, problem = self._problem(body, self.headers[-1])
        if problem:
            return web.json_response(error_body(status, problem), status=status)
        return web.json_response(self.answer(body), headers={"request-id": "req_1"})

    def _problem(self, body: Mapping[str, Any], headers: Mapping[str, str]) -> tuple[int, str]:
        key = headers.get("x-api-key") or headers.get("authorization", "").removeprefix("Bearer ")
        if key != KEY:
            return 401, f"invalid x-api-key {key}"
        version = headers.get("anthropic-version")
        if version is None:
            return 400, "anthropic-version: header is required"
        for name in ("model", "messages", "max_tokens"):
            if name not in body:
                return 400, f"{name}: Field required"
        if not str(body["model"]).startswith("claude-"):
            return 404, f"model: {body['model']}"
        if version > LAST_WITH_SAMPLING:
            for name in ("temperature", "top_p", "top_k"):
                if name in body:
                    return 400, f"{name}: Extra inputs are not permitted"
        if not 0 <= body.get("temperature", 1) <= 1:
            return 400, "temperature: range: 0..1"
        if body["max_tokens"] > 8192:
            return 400, f"max_tokens: {body['max_tokens']} > 8192, which is the maximum allowed number of output tokens"
        for index, turn in enumerate(body["messages"]):
            if turn["role"] not in ("user", "assistant") or not turn["content"]:
                return 400, f"messages.{index}: unexpected role or empty content"
        if body["messages"][0]["role"] != "user":
            return 400, "messages: first message must use the user role"
        return 200, ""
