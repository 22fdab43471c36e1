"""Faults for a loopback server: rate limits, server errors, cut connections, slow bytes, spoilt bodies.

    player = FaultPlayer(script(rate_limited("2"), None, CUT_BODY), error_body=openai_error)
    app = web.Application(middlewares=[player.middleware])
    with serving(app) as url: ...

A handler answers with a whole `web.Response` (an event stream too): the player spoils it on its way out.
"""

import asyncio
import json
import random
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from threading import Event, Thread
from typing import Any, Literal

import attrs
from aiohttp import web

ErrorBody = Callable[[int], Any]
"""A status in, the provider's own JSON for that error out."""


@attrs.frozen
class Fault:
    """What happens to one request. The handler runs first where the request reaches the model (see `reaches_model`)."""

    name: str
    status: int = 200
    """Not 200: the handler doesn't run; the provider's error body is sent."""
    retry_after: str | None = None
    cut: Literal["before", "body"] | None = None
    """Close the connection: with nothing sent, or in the middle of the body."""
    piece_bytes: int = 0
    """Send the body in pieces of so many bytes, `pause_s` apart; 0: whole."""
    pause_s: float = 0.0
    body: bytes | None = None
    """Sent in place of the body."""
    content_type: str | None = None
    damage: Callable[[Any], Any] | None = None
    """The answer's JSON in, what is sent in its place out."""

    @property
    def reaches_model(self) -> bool:
        """Whether a real provider would bill the request."""
        return self.status == 200


def rate_limited(retry_after: str | None = None) -> Fault:
    """429 with the header as given, or without."""
    return Fault(f"429 ({retry_after})", status=429, retry_after=retry_after)


def http_date(seconds: float) -> str:
    """So many seconds from now, as Retry-After says a date."""
    return format_datetime(datetime.now(UTC) + timedelta(seconds=seconds), usegmt=True)


def failing(status: int, retry_after: str | None = None) -> Fault:
    return Fault(str(status), status=status, retry_after=retry_after)


def slow(pause_s: float, piece_bytes: int = 64) -> Fault:
    return Fault("slow", piece_bytes=piece_bytes, pause_s=pause_s)


def damaged(name: str, damage: Callable[[Any], Any]) -> Fault:
    """A sentinel put in, a block taken out: whatever `damage` makes of the provider's JSON."""
    return Fault(name, damage=damage)


CUT_BEFORE = Fault("cut before the answer", cut="before")
CUT_BODY = Fault("cut within the body", cut="body")
INVALID_JSON = Fault("invalid JSON", body=b'{"id": "1", "choi')
WRONG_CONTENT_TYPE = Fault("wrong content type", body=b"<html>Bad gateway</html>", content_type="text/html")

Plan = Callable[[int], Fault | None]
"""A request's number, from 0, in; its fault out."""


def script(*faults: Fault | None) -> Plan:
    """The first requests meet these in turn, later ones none."""
    return lambda number: faults[number] if number < len(faults) else None


def mix(seed: int, share: float, faults: Sequence[Fault]) -> Plan:
    """A share of the requests meets one of `faults`; the same for the same seed and number."""

    def pick(number: int) -> Fault | None:
        draw = random.Random(seed * 1_000_003 + number)
        return draw.choice(faults) if draw.random() < share else None

    return pick


class FaultPlayer:
    """An aiohttp middleware that plays a plan; `plan` may be replaced between requests."""

    def __init__(self, plan: Plan | None = None, *, error_body: ErrorBody) -> None:
        self.plan = plan or script()
        self.error_body = error_body
        self.played: list[str] = []
        """One name for each request, in order of arrival: of its fault, or "" for none."""

    def reset(self, plan: Plan) -> None:
        """Play another plan, counted from its beginning."""
        self.plan = plan
        self.played.clear()

    @property
    def middleware(self) -> Any:
        @web.middleware
        async def play(
            request: web.Request, handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
        ) -> web.StreamResponse:
            fault = self.plan(len(self.played))
            self.played.append("" if fault is None else fault.name)
            if fault is None:
                return await handler(request)
            if not fault.reaches_model:
                headers = {} if fault.retry_after is None else {"Retry-After": fault.retry_after}
                return web.json_response(self.error_body(fault.status), status=fault.status, headers=headers)
            await request.read()
            response = await handler(request)
            assert isinstance(response, web.Response), "the player spoils whole responses"
            return await _spoil(request, response, fault)

        return play


async def _spoil(request: web.Request, answer: web.Response, fault: Fault) -> web.StreamResponse:
    body = answer.body if fault.body is None else fault.body
    assert isinstance(body, bytes)
    if fault.damage is not None:
        body = json.dumps(fault.damage(json.loads(body))).encode()
    if fault.cut == "before":
        _cut(request)
        return answer
    response = web.StreamResponse(status=answer.status)
    response.content_type = fault.content_type or answer.content_type
    response.content_length = len(body)
    await response.prepare(request)
    if fault.cut == "body":
        await response.write(body[: len(body) // 2])
        await asyncio.sleep(0.01)  # the first half leaves before the connection goes
        _cut(request)
        return response
    step = fault.piece_bytes or max(1, len(body))
    try:
        for start in range(0, len(body), step):
            await response.write(body[start : start + step])
            await asyncio.sleep(fault.pause_s)
        await response.write_eof()
    except ConnectionError:  # the client has lost its patience
        _cut(request)
    return response


def _cut(request: web.Request) -> None:
    if request.transport is not None:
        request.transport.abort()


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """Run an app in a thread of its own on a free port; gives ``http://127.0.0.1:PORT``."""
    started, loop = Event(), asyncio.new_event_loop()
    failure: list[BaseException] = []
    address: list[tuple[str, int]] = []

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, access_log=None, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0, backlog=1024).start()
        address.append(runner.addresses[0][:2])
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        try:
            runner = loop.run_until_complete(start())
        except BaseException as error:
            failure.append(error)
            return
        finally:
            started.set()
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = Thread(target=run, name="loopback server", daemon=True)
    thread.start()
    started.wait()
    if failure:
        raise failure[0]
    host, port = address[0]
    try:
        yield f"http://{host}:{port}"
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(timeout=10)
