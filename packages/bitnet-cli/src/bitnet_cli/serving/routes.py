"""The server's routes on aiohttp, the chat page among them."""

import asyncio
import base64
import hashlib
import json
import re
import sys
import time
import traceback
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from functools import cache
from pathlib import Path
from typing import Any

import attrs
from aiohttp import web

from bitnet_cli.errors import problem_of
from bitnet_cli.serving.access_control import Access
from bitnet_cli.serving.connections import BODY_S, WRITE_S, Connections
from bitnet_cli.serving.openai_answer import ChatShape, TextShape
from bitnet_cli.serving.openai_request import ApiError, Asked, read_chat, read_completion
from bitnet_cli.serving.waiting_line import Turns
from bitnet_core.errors import CoreError
from bitnet_core.runtime.contract import Ending, Piece, PromptError, RuntimeEndedError

MAX_BODY = 4 * 2**20
"""Bytes of a request: far beyond any context."""
MAX_HEADERS = 100

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
Items = AsyncGenerator[Piece | Ending, None]


@attrs.frozen(kw_only=True)
class Service:
    """What the routes answer with."""

    model: str
    """The name that clients ask for."""
    turns: Turns
    access: Access
    default_tokens: int
    """Of an answer, where the request names no limit."""
    created: int
    """Unix seconds of the model."""
    log: Callable[[str], None]
    """Gets one line a request: no text of anybody's."""
    connections: Connections = attrs.field(factory=Connections)

    def app(self) -> web.Application:
        app = web.Application(middlewares=[self._middleware], client_max_size=MAX_BODY)
        app.router.add_post("/v1/chat/completions", self._chat)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_get("/v1/models", self._models)
        app.router.add_get("/v1/models/{model:.+}", self._one_model)
        app.router.add_get("/health", self._health)
        app.router.add_get("/", chat_page)
        return app

    @property
    def _about(self) -> dict[str, Any]:
        return {
            "id": self.model,
            "object": "model",
            "created": self.created,
            "owned_by": "bitnet-kde",
            "runtime": self.turns.runtime.description,
        }

    async def _chat(self, request: web.Request) -> web.StreamResponse:
        asked = read_chat(await self._json(request), self.default_tokens)
        shape = ChatShape(model=self.model, logprobs=asked.sampling.top_logprobs is not None)
        with self.connections.answering(request.transport):
            return await self._answer(request, asked, shape)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        asked = read_completion(await self._json(request), self.default_tokens)
        shape = TextShape(model=self.model, logprobs=asked.sampling.top_logprobs is not None)
        with self.connections.answering(request.transport):
            return await self._answer(request, asked, shape)

    async def _answer(self, request: web.Request, asked: Asked, shape: ChatShape | TextShape) -> web.StreamResponse:
        if asked.model not in (None, self.model):
            raise self._no_such_model(str(asked.model))
        async with aclosing(self.turns.answer(asked.prompt, asked.sampling)) as items:
            first = await anext(items)
            if asked.stream:
                return await _streamed(request, asked, shape, first, items)
            pieces, item = [], first
            while isinstance(item, Piece):
                pieces.append(item)
                item = await anext(items)
            return web.json_response(shape.whole(pieces, item))

    async def _models(self, request: web.Request) -> web.Response:
        return web.json_response({"object": "list", "data": [self._about]})

    async def _one_model(self, request: web.Request) -> web.Response:
        name = request.match_info["model"]
        if name != self.model:
            raise self._no_such_model(name)
        return web.json_response(self._about)

    async def _health(self, request: web.Request) -> web.Response:
        status, number = ("ended", 503) if self.turns.ended else ("ok", 200)
        return web.json_response({"status": status, "model": self.model, "waiting": self.turns.waiting}, status=number)

    def _no_such_model(self, name: str) -> ApiError:
        return ApiError(
            404, f"model {name!r}: not here", f"ask for {self.model!r}, the only one", "model", "model_not_found"
        )

    async def _json(self, request: web.Request) -> Any:
        # A web page may send any other type to this machine without asking first.
        if request.content_type != "application/json":
            raise ApiError(415, f"Content-Type is {request.content_type}", "send application/json")
        if request.headers.get("Content-Encoding", "identity").lower() != "identity":
            raise ApiError(415, "the body is packed (Content-Encoding)", "send it as it is")
        try:
            async with asyncio.timeout(BODY_S):
                body = await request.read()
            return json.loads(body)
        except TimeoutError:
            raise ApiError(408, f"the body didn't come within {BODY_S:.0f} s", "send it at once") from None
        except web.RequestPayloadError as error:
            raise ApiError(400, f"the body can't be read ({error})", "send it whole, and as its headers say") from None
        except (ValueError, RecursionError) as error:
            raise ApiError(400, f"the body is no JSON: {error}", "send a JSON object") from None

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        """Errors in OpenAI's shape; access; one line for the log."""
        start, status = time.monotonic(), 499  # where the client leaves
        try:
            with self.connections.request(request.transport):
                response = await self._guarded(request, handler)
            status = response.status
            return response
        finally:
            path = request.path.encode("unicode_escape").decode()  # it can hold line ends, and what drives a terminal
            self.log(f"{request.method} {path} {status} {time.monotonic() - start:.2f} s")

    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        try:
            if len(request.raw_headers) > MAX_HEADERS:
                raise ApiError(431, f"{len(request.raw_headers)} headers", f"send at most {MAX_HEADERS}")
            self.access.check_host(request.headers.get("Host", ""))
            if request.path not in ("/health", "/"):  # the page holds nothing: it asks for the key
                self.access.check_key(request.headers.get("Authorization", ""))
            return await handler(request)
        except Exception as error:
            answer = api_error(error)
        headers = {} if answer.retry_after_s is None else {"Retry-After": str(answer.retry_after_s)}
        return web.json_response(answer.body(), status=answer.status, headers=headers)


async def _streamed(
    request: web.Request, asked: Asked, shape: ChatShape | TextShape, first: Piece | Ending, items: Items
) -> web.StreamResponse:
    """Server-sent events. What goes wrong from here on is the stream's last event: its status is sent already."""
    response = web.StreamResponse(headers={"Content-Type": "text/event-stream", "Cache-Control": "no-cache"})
    await response.prepare(request)

    async def send(event: dict[str, Any] | None) -> None:
        if event is not None:
            async with asyncio.timeout(WRITE_S):
                await response.write(f"data: {json.dumps(event)}\n\n".encode())

    try:
        await send(shape.first())
        item = first
        while isinstance(item, Piece):
            if item.text or item.tokens:
                await send(shape.piece(item))
            item = await anext(items)
        await send(shape.last(item))
        if asked.include_usage:
            await send(shape.usage(item))
        await response.write(b"data: [DONE]\n\n")
    except (ConnectionError, TimeoutError):  # the client has gone, or takes nothing
        if request.transport is not None:
            request.transport.abort()
    except Exception as error:
        with suppress(ConnectionError, TimeoutError):
            await send(api_error(error).body())
    return response  # aiohttp ends it


def api_error(error: Exception) -> ApiError:
    """What is sent to the client. A fault of ours goes to stderr with its traceback, and to the client without."""
    match error:
        case ApiError():
            return error
        case web.HTTPException():
            return ApiError(error.status, error.reason, "see docs/serve.md for what is served")
        case PromptError():  # too long, refused by the template
            return ApiError(400, problem_of(error).why, problem_of(error).fix)
        case RuntimeEndedError():
            return ApiError(503, problem_of(error).why, problem_of(error).fix, code="runtime_ended")
        case CoreError():
            return ApiError(500, problem_of(error).why, problem_of(error).fix)
    traceback.print_exception(error, file=sys.stderr)
    return ApiError(500, "the server failed", "read its terminal, which says how")


@cache
def _page() -> tuple[str, dict[str, str]]:
    text = Path(__file__).with_name("chat.html").read_text(encoding="utf-8")
    return text, {
        # Only this very script runs, whatever an answer holds; and nobody puts the page into a frame of theirs.
        "Content-Security-Policy": (
            f"default-src 'none'; script-src {_hash(text, 'script')}; style-src {_hash(text, 'style')}; img-src data:; "
            "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
        ),
        "Cache-Control": "no-cache",
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
    }


def _hash(page: str, tag: str) -> str:
    """As a content security policy names an inline element."""
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


async def chat_page(request: web.Request) -> web.Response:
    """At ``/``: one file, which asks nobody but the server that it comes from."""
    text, headers = _page()
    return web.Response(text=text, content_type="text/html", headers=headers)
