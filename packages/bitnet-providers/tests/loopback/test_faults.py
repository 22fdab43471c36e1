"""The fault player plays what its plan says, as a client sees it."""

import asyncio
from collections.abc import Iterator
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from loopback.faults import (
    CUT_BEFORE,
    CUT_BODY,
    INVALID_JSON,
    WRONG_CONTENT_TYPE,
    FaultPlayer,
    damaged,
    failing,
    http_date,
    mix,
    rate_limited,
    script,
    serving,
    slow,
)

ANSWER = {"text": "hello " * 50}


@pytest.fixture
def player() -> FaultPlayer:
    return FaultPlayer(error_body=lambda status: {"error": status})


@pytest.fixture
def url(player: FaultPlayer) -> Iterator[str]:
    async def answer(request: web.Request) -> web.Response:
        return web.json_response(ANSWER)

    app = web.Application(middlewares=[player.middleware])
    app.router.add_post("/ask", answer)
    with serving(app) as base:
        yield f"{base}/ask"


def ask(url: str, times: int = 1) -> list[Any]:
    """(status, Retry-After, content type, body), or the error's type."""

    async def run() -> list[Any]:
        results: list[Any] = []
        async with aiohttp.ClientSession() as session:
            for _ in range(times):
                try:
                    async with session.post(url, json={"q": 1}) as response:
                        retry_after = response.headers.get("Retry-After")
                        results.append((response.status, retry_after, response.content_type, await response.read()))
                except aiohttp.ClientError as error:
                    results.append(type(error).__name__)
        return results

    return asyncio.run(run())


def test_a_script_is_played_in_order_and_then_all_is_well(player: FaultPlayer, url: str) -> None:
    date = http_date(30)
    player.reset(script(rate_limited("2"), None, rate_limited(date), rate_limited(), failing(503, "1")))
    results = ask(url, 7)
    assert [(status, retry) for status, retry, _, _ in results] == [
        (429, "2"),
        (200, None),
        (429, date),
        (429, None),
        (503, "1"),
        (200, None),
        (200, None),
    ]
    assert results[0][3] == b'{"error": 429}'
    assert [bool(name) for name in player.played] == [True, False, True, True, True, False, False]


def test_connections_are_cut_and_bodies_spoilt(player: FaultPlayer, url: str) -> None:
    player.reset(script(CUT_BEFORE, CUT_BODY, INVALID_JSON, WRONG_CONTENT_TYPE))
    before, within, invalid, wrong = ask(url, 4)
    assert before == "ServerDisconnectedError"
    assert within == "ClientPayloadError"
    assert invalid[0] == 200
    assert invalid[3].endswith(b'"choi')
    assert wrong[2] == "text/html"


def test_slow_bytes_are_all_there_and_damage_is_done_to_the_json(player: FaultPlayer, url: str) -> None:
    player.reset(script(slow(0.001, 100), damaged("no text", lambda answer: {**answer, "text": None})))
    whole, without = ask(url, 2)
    assert len(whole[3]) > 300
    assert without[3] == b'{"text": null}'


def test_a_mix_has_its_share_and_is_the_same_again() -> None:
    faults = [rate_limited(), failing(500)]
    plan, same, other = mix(1, 0.3, faults), mix(1, 0.3, faults), mix(2, 0.3, faults)
    played = [plan(number) for number in range(2000)]
    assert played == [same(number) for number in range(2000)]
    assert played != [other(number) for number in range(2000)]
    assert 0.25 < sum(fault is not None for fault in played) / 2000 < 0.35
    assert {fault.name for fault in played if fault} == {"429 (None)", "500"}


def test_a_server_that_can_not_start_says_why() -> None:
    async def refuse(app: web.Application) -> None:
        raise RuntimeError("no")

    app = web.Application()
    app.on_startup.append(refuse)
    with pytest.raises(RuntimeError, match="no"), serving(app):
        pass
