"""A teacher of several servers: dealt by pace, taken over from servers that fail, the same shards as one server's."""

import asyncio
from collections.abc import Callable
from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_providers.collect.collect import collect
from bitnet_providers.collect.concurrency import FIRST
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import ProviderError, RetryableError

Teachers = Callable[..., Any]
LONGEST_S = 60.0


@pytest.fixture
def config(tmp_path: Path) -> CollectConfig:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("\n".join(f"question {n}" for n in range(40)))
    return CollectConfig(prompts=prompts, top_k=2, concurrency=4, retries=2, retry_wait_s=0.001, max_new_tokens=8)


class Several:
    """Servers as one teacher."""

    def __init__(self, *servers: Any) -> None:
        for number, each in enumerate(servers):
            each.description = {**each.description, "base_url": f"http://server-{number}/v1"}
        self.servers, self.capabilities = servers, servers[0].capabilities
        self.description = servers[0].description


def fails(teacher: Any, error: Callable[[int], Exception | None]) -> Any:
    """The call with this number, from 1, raises what `error` says; `teacher.tries` are counted."""
    answer, teacher.tries = teacher.generate, 0

    async def generate(request: Any) -> Any:
        teacher.tries += 1
        found = error(teacher.tries)
        await asyncio.sleep(0)
        if found is not None:
            raise found
        return await answer(request)

    teacher.generate = generate
    return teacher


def waits_for(teacher: Any, event: asyncio.Event) -> Any:
    answer = teacher.generate

    async def generate(request: Any) -> Any:
        await event.wait()
        return await answer(request)

    teacher.generate = generate
    return teacher


async def ended(teacher: Any, config: CollectConfig, folder: Path, **more: Any) -> dict[str, Any]:
    """A collection that must end: a request that no server has, or that is never said to be over, is waited for."""
    collecting = asyncio.ensure_future(collect(teacher, config, folder, "counting", 0, **more))
    done, _ = await asyncio.wait({collecting}, timeout=LONGEST_S)
    if not done:
        collecting.cancel()
        pytest.fail(f"not ended after {LONGEST_S:g} s: a request was given to no server, or never settled")
    return await collecting


def run(teacher: Any, config: CollectConfig, folder: Path, **more: Any) -> dict[str, Any]:
    return asyncio.run(ended(teacher, config, folder, **more))


def shards(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("shard_*.parquet")}


@pytest.fixture
def alone(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> dict[str, bytes]:
    """The shards of one server."""
    run(Several(counting_teacher()).servers[0], config, tmp_path / "alone")
    return shards(tmp_path / "alone")


@pytest.mark.parametrize("servers", [2, 3])
def test_the_shards_are_those_of_one_server(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, alone: dict[str, bytes], servers: int
) -> None:
    teachers = [counting_teacher() for _ in range(servers)]
    summary = run(Several(*teachers), config, tmp_path / "raw")
    assert shards(tmp_path / "raw") == alone
    asked = [len(each.calls) for each in teachers]
    assert sum(asked) == 40
    assert min(asked) > 0
    assert [each.most_at_once for each in teachers] == [4] * servers  # each has the whole concurrency
    assert [each["answered"] for each in summary["servers"]] == asked
    assert summary["spent"]["requests"] == 40


@pytest.mark.parametrize(("concurrency", "under_way"), [(4, 4), (40, FIRST)])
def test_a_slow_server_gets_fewer(
    tmp_path: Path,
    config: CollectConfig,
    counting_teacher: Teachers,
    alone: dict[str, bytes],
    concurrency: int,
    under_way: int,
) -> None:
    """No more than it has under way: what waits for a place there is still everybody's."""

    async def main() -> list[int]:
        enough = asyncio.Event()
        quick, slow = counting_teacher(), waits_for(counting_teacher(), enough)
        answer = quick.generate

        async def generate(request: Any) -> Any:
            completion = await answer(request)
            if len(quick.calls) == 40 - under_way:
                enough.set()
            return completion

        quick.generate = generate
        paced = attrs.evolve(config, concurrency=concurrency)
        await ended(Several(quick, slow), paced, tmp_path / "raw")
        return [len(quick.calls), len(slow.calls)]

    assert asyncio.run(main()) == [40 - under_way, under_way]
    assert shards(tmp_path / "raw") == alone


@pytest.mark.parametrize("answers_before", [0, 7])
def test_a_server_that_is_down_is_told_once_and_its_requests_go_to_others(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, alone: dict[str, bytes], answers_before: int
) -> None:
    """The other answers its last request only when this one is given up: nothing waits in vain for it."""
    told: list[str] = []

    async def main() -> tuple[Any, Any, dict[str, Any]]:
        given_up = asyncio.Event()

        def notice(line: str) -> None:
            told.append(line)
            given_up.set()

        other = counting_teacher()
        down = fails(counting_teacher(), lambda n: RetryableError("not reached") if n > answers_before else None)
        answer = other.generate

        async def generate(request: Any) -> Any:
            if len(other.calls) > 20:
                await given_up.wait()
            return await answer(request)

        other.generate = generate
        teacher = Several(other, down)
        return other, down, await ended(teacher, config, tmp_path / "raw", on_notice=notice)

    other, down, summary = asyncio.run(main())
    assert told == ["http://server-1/v1 is given up, its requests go to http://server-0/v1: not reached (3 tries)"]
    assert (len(other.calls), len(down.calls)) == (40 - answers_before, answers_before)
    assert shards(tmp_path / "raw") == alone
    assert not any(summary["missing"].values())
    assert summary["spent"]["requests"] == 40 + down.tries - answers_before  # what failed was sent, too
    assert "http://server-1/v1 given up, its requests went to the other servers" in summary["headline"]


def test_without_retries_a_request_of_a_server_that_is_down_is_asked_elsewhere(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, alone: dict[str, bytes]
) -> None:
    down = fails(counting_teacher(), lambda n: RetryableError("not reached"))
    summary = run(Several(down, counting_teacher()), attrs.evolve(config, retries=0), tmp_path / "raw")
    assert summary["completions"] == 40
    assert shards(tmp_path / "raw") == alone


@pytest.mark.parametrize(
    "error",
    [
        ProviderError("401: check the key"),
        RetryableError("429: come tomorrow", retry_after_s=80_000, overloaded=True),
    ],
)
def test_what_nothing_cures_gives_up_that_server_alone(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers, alone: dict[str, bytes], error: Exception
) -> None:
    told: list[str] = []
    other, barred = counting_teacher(), fails(counting_teacher(), lambda n: error)
    run(Several(barred, other), config, tmp_path / "raw", on_notice=told.append)
    assert len(told) == 1
    assert "http://server-0/v1 is given up" in told[0]
    assert barred.tries <= 4
    assert shards(tmp_path / "raw") == alone


def test_all_down_is_the_error_of_one(tmp_path: Path, config: CollectConfig, counting_teacher: Teachers) -> None:
    down = [fails(counting_teacher(), lambda n: RetryableError("503: down")) for _ in range(3)]
    with pytest.raises(ProviderError) as caught:
        run(Several(*down), config, tmp_path / "raw")
    assert "the teacher does not answer: 503: down (" in str(caught.value)
    assert str(caught.value).endswith("see that the server runs and can be reached, then run again to go on")
    barred = [fails(counting_teacher(), lambda n: ProviderError("401: check the key")) for _ in range(2)]
    with pytest.raises(ProviderError, match="401: check the key"):
        run(Several(*barred), config, tmp_path / "raw")
    summary = run(Several(counting_teacher(), counting_teacher()), config, tmp_path / "raw")
    assert summary["completions"] == 40


def test_a_request_that_no_server_answers_is_left_out(
    tmp_path: Path, config: CollectConfig, counting_teacher: Teachers
) -> None:
    def cracks(teacher: Any) -> Any:
        answer, teacher.tries = teacher.generate, 0

        async def generate(request: Any) -> Any:
            if request.messages[-1]["content"] == "question 2":
                teacher.tries += 1
                raise RetryableError("500: always")
            return await answer(request)

        teacher.generate = generate
        return teacher

    servers = [cracks(counting_teacher()), cracks(counting_teacher())]
    summary = run(Several(*servers), config, tmp_path / "raw")
    assert summary["unanswered"] == [{"id": "3", "sample": 0, "reason": "500: always"}]
    assert summary["completions"] == 39
    assert [each.tries for each in servers] == [3, 3]  # each was asked as often as one alone
