"""Limits per minute: no window of sixty seconds holds more, whichever way the server counts."""

import asyncio
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from bitnet_providers.collect.rate_limits import RateLimits
from bitnet_providers.contract import ProviderError
from bitnet_providers.spending.token_counts import Tokens


class Time:
    """A clock that jumps to the next sleeper's time when nobody else can run."""

    def __init__(self) -> None:
        self.now = 0.0
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        woken: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._sleepers.append((self.now + seconds, len(self._sleepers), woken))
        await woken

    async def run(self, done: "asyncio.Future[object]") -> None:
        while not done.done():
            for _ in range(20):
                await asyncio.sleep(0)
            waiting = sorted(each for each in self._sleepers if not each[2].done())
            if done.done() or not waiting:
                continue
            self.now = max(self.now, waiting[0][0])
            waiting[0][2].set_result(None)


def most_in_a_minute(events: list[tuple[float, int]]) -> int:
    """The greatest sum over any window [t, t + 60)."""
    return max(sum(amount for when, amount in events if begin <= when < begin + 60.0) for begin, _ in events)


@settings(max_examples=60, deadline=None)
@given(
    seed=st.integers(0, 10**6),
    requests=st.sampled_from([None, 3, 10]),
    tokens=st.sampled_from([None, 100, 1000]),
    workers=st.integers(1, 8),
)
def test_no_minute_holds_more_at_the_server(seed: int, requests: int | None, tokens: int | None, workers: int) -> None:
    """The server sees a request up to 0.9 s late, and counts its worst case then or its tokens at its end."""
    draw = random.Random(seed)
    time, came, worst, took = Time(), [], [], []
    limits = RateLimits(requests, tokens, clock=time, sleep=time.sleep)

    async def work() -> None:
        for _ in range(6):
            bound = Tokens(draw.randint(1, 50), draw.randint(1, 50))
            admission = await limits.admit(bound)
            limits.sent(admission)
            arrived = time.now + draw.uniform(0, 0.9)
            came.append((arrived, 1))
            worst.append((arrived, bound.total))
            await time.sleep(draw.uniform(1, 90))
            real = Tokens(bound.input, draw.randint(0, bound.output))
            took.append((time.now, real.total))
            limits.ended(admission, real)

    async def main() -> None:
        async with asyncio.timeout(20):
            done = asyncio.gather(*(work() for _ in range(workers)))
            await time.run(done)
            await done

    asyncio.run(main())
    assert requests is None or most_in_a_minute(came) <= requests
    assert tokens is None or max(most_in_a_minute(worst), most_in_a_minute(took)) <= tokens


def test_it_lets_through_as_much_as_fits() -> None:
    """A hundred requests at ten a minute take nine windows, not more."""
    time = Time()
    limits = RateLimits(10, None, clock=time, sleep=time.sleep)

    async def work() -> None:
        for _ in range(100):
            admission = await limits.admit(Tokens(1, 1))
            limits.sent(admission)
            limits.ended(admission, Tokens(1, 1))

    async def main() -> None:
        task = asyncio.ensure_future(work())
        await time.run(task)
        await task

    asyncio.run(main())
    assert time.now == pytest.approx(9 * 61.0)


def test_a_request_that_never_fits_is_told_with_the_fix() -> None:
    with pytest.raises(ProviderError) as caught:
        RateLimits(None, 100).check(Tokens(80, 30))
    assert str(caught.value) == (
        "collect.tokens_per_minute is 100, and one request may take 110 tokens (the bytes of its prompt and "
        "max_new_tokens)  → raise collect.tokens_per_minute, or lower collect.max_new_tokens"
    )


def test_a_stop_ends_the_waiting() -> None:
    stopped = False
    time = Time()
    limits = RateLimits(1, None, clock=time, sleep=time.sleep, stopped=lambda: stopped)

    async def main() -> None:
        nonlocal stopped
        limits.sent(await limits.admit(Tokens(1, 1)))
        waiting = asyncio.ensure_future(limits.admit(Tokens(1, 1)))
        for _ in range(5):
            await asyncio.sleep(0)
        assert not waiting.done()
        stopped = True
        await time.run(waiting)
        assert time.now == pytest.approx(61.0)

    asyncio.run(main())
