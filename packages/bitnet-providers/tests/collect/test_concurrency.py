"""Places for requests: grows while all goes well, shrinks once for a congestion, waits when asked to."""

import asyncio

import pytest

from bitnet_providers.collect.concurrency import Pacer


class Clock:
    """Seconds that pass in `sleep` only."""

    now = 100.0

    def __call__(self) -> float:
        return self.now

    async def sleep(self, seconds: float) -> None:
        self.now += seconds
        await asyncio.sleep(0)


def pacer(maximum: int = 64, adaptive: bool = True) -> Pacer:
    clock = Clock()
    return Pacer(maximum, adaptive=adaptive, clock=clock, sleep=clock.sleep)


async def fill(paced: Pacer) -> list[int]:
    return [await paced.enter() for _ in range(paced.limit - paced.at_once)]


def answer(paced: Pacer) -> None:
    paced.went_well()
    paced.leave()


def test_it_begins_with_eight_and_adds_one_for_each_answer_up_to_the_maximum() -> None:
    async def main() -> None:
        paced = pacer(maximum=12)
        await fill(paced)
        assert paced.limit == paced.at_once == 8
        for expected in (9, 10, 11, 12, 12):
            answer(paced)
            assert paced.limit == expected
            await fill(paced)

    asyncio.run(main())


def test_what_is_not_used_does_not_grow() -> None:
    async def main() -> None:
        paced = pacer()
        await paced.enter()
        for _ in range(20):
            answer(paced)
            await paced.enter()
        assert paced.limit == 8

    asyncio.run(main())


def test_a_429_shrinks_to_four_fifths_once_for_those_that_were_out() -> None:
    async def main() -> None:
        paced = pacer()
        numbers = await fill(paced)
        for number in numbers:  # all eight of one congestion
            paced.overloaded(number, None)
            paced.leave()
        assert paced._limit == pytest.approx(6.4)
        (again,) = [await paced.enter()]
        paced.overloaded(again, None)
        assert paced._limit == pytest.approx(5.12)

    asyncio.run(main())


def test_after_a_429_it_adds_one_for_each_round() -> None:
    async def main() -> None:
        paced = pacer()
        numbers = await fill(paced)
        paced.overloaded(numbers[0], None)
        paced.leave()
        before = paced._limit
        for _ in range(paced.limit + 1):
            answer(paced)
            await fill(paced)
        assert before + 0.9 < paced._limit < before + 1.2

    asyncio.run(main())


def test_it_never_falls_below_one() -> None:
    async def main() -> None:
        paced = pacer()
        for _ in range(50):
            paced.overloaded(await paced.enter(), None)
            paced.leave()
        assert paced.limit == 1
        assert await paced.enter() > 0

    asyncio.run(main())


def test_nobody_is_let_in_before_the_time_that_the_server_asked_for() -> None:
    async def main() -> None:
        clock = Clock()
        paced = Pacer(4, adaptive=True, clock=clock, sleep=clock.sleep)
        paced.overloaded(await paced.enter(), 30.0)
        paced.leave()
        await paced.enter()
        assert clock.now >= 130.0

    asyncio.run(main())


def test_a_model_here_gets_all_at_once_and_keeps_them() -> None:
    async def main() -> None:
        paced = pacer(maximum=64, adaptive=False)
        numbers = await fill(paced)
        assert len(numbers) == 64
        paced.overloaded(numbers[0], None)
        assert paced.limit == 64

    asyncio.run(main())


def test_who_waits_gets_the_place_that_is_left_even_if_the_first_in_line_gave_up() -> None:
    async def main() -> None:
        paced = pacer(maximum=1)
        await paced.enter()
        first, second = (asyncio.create_task(paced.enter()) for _ in range(2))
        await asyncio.sleep(0)
        paced.leave()  # the first is woken, and cancelled before it runs
        first.cancel()
        await asyncio.wait_for(second, 100)
        assert first.cancelled()
        assert paced.at_once == 1

    asyncio.run(main())
