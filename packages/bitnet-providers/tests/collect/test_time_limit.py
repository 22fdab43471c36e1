"""Time-outs while the process stands still, and while it runs."""

import asyncio
import time

import pytest

from bitnet_providers.collect.ask_and_retry import TimeLimit


@pytest.mark.parametrize("stopped_s", [0.5, 1.5])
def test_who_waits_gets_the_time_again_in_which_the_process_stood_still(stopped_s: float) -> None:
    """Nothing of the event loop runs meanwhile, as with SIGSTOP; the answers come after it, in time."""

    async def main() -> list[str]:
        limit, loop = TimeLimit(0.3, tick_s=0.02), asyncio.get_running_loop()

        async def ask(number: int) -> str:
            async with limit.each():
                await answers[number]
            return "answered"

        answers = [loop.create_future() for _ in range(20)]
        asking = [asyncio.create_task(ask(number)) for number in range(20)]
        await asyncio.sleep(0.05)
        time.sleep(stopped_s)
        for number, answer in enumerate(answers):
            loop.call_later(0.005 * number, answer.set_result, None)
        return await asyncio.gather(*asking)

    assert asyncio.run(main()) == ["answered"] * 20


def test_a_time_out_is_one_where_the_process_runs() -> None:
    async def main() -> float:
        limit, begun = TimeLimit(0.2, tick_s=0.02), time.monotonic()
        with pytest.raises(TimeoutError):
            async with limit.each():
                await asyncio.Event().wait()
        return time.monotonic() - begun

    assert asyncio.run(main()) >= 0.2


def test_no_limit_and_no_tick_that_stays() -> None:
    async def main() -> None:
        limit = TimeLimit(None)
        async with limit.each():
            assert limit._tick is None
        limit = TimeLimit(100.0, tick_s=0.001)
        async with limit.each():
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.01)
        assert limit._tick is None

    asyncio.run(main())
