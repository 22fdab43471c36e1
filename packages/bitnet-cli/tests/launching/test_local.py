"""Workers in processes of this machine."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest

import launched
from bitnet_cli.contract import ClusterConfig, Crew, Done, Event, Launcher
from bitnet_cli.errors import UserError
from bitnet_cli.launching.local import LocalLauncher, _environments

pytestmark = pytest.mark.slow  # each starts processes


@pytest.mark.parametrize(
    "check",
    [
        launched.check_every_task_is_done_once,
        launched.check_workers_run_side_by_side,
        launched.check_errors_are_told_and_the_worker_goes_on,
        launched.check_the_tasks_of_a_dead_worker_go_to_another,
        launched.check_another_takes_the_place_of_a_dead_worker,
        launched.check_the_others_go_on_where_none_can_follow,
    ],
)
def test_it_is_a_launcher(check: Callable[[Launcher, Path], Awaitable[None]], tmp_path: Path) -> None:
    asyncio.run(check(LocalLauncher(ClusterConfig(workers=2)), tmp_path))


def test_where_all_die_the_error_says_where_to_look(tmp_path: Path) -> None:
    asyncio.run(launched.check_no_more_than_some_follow(LocalLauncher(ClusterConfig(workers=2)), tmp_path))
    logs = sorted(tmp_path.glob("worker-*.log"))
    assert [log.name for log in logs] == [f"worker-{number}.log" for number in range(6)]
    assert all("noise on stdout" in log.read_text() for log in logs)


def test_a_worker_that_cannot_be_opened_is_told(tmp_path: Path) -> None:
    async def launch() -> None:
        crew = Crew(open_worker=launched.open_none, logs=tmp_path)
        async with LocalLauncher(ClusterConfig(workers=2)).launch(crew):
            raise AssertionError("it opened")

    with pytest.raises(UserError) as error:
        asyncio.run(launch())
    assert (error.value.why, error.value.fix) == ("there is no model", "bring one")


def test_cores_and_gpus_are_shared_out(monkeypatch: pytest.MonkeyPatch) -> None:
    def seen(**config: Any) -> list[str]:
        return [each["CUDA_VISIBLE_DEVICES"] for each in _environments(ClusterConfig(**config))]

    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    assert seen(workers=4, gpus_per_worker=1.0) == ["3", "5", "6", "7"]
    assert seen(workers=2, gpus_per_worker=2.0) == ["3,5", "6,7"]
    assert seen(workers=3, gpus_per_worker=0.5) == ["3", "3", "5"]
    assert _environments(ClusterConfig(workers=1, cpus_per_worker=3.0))[0]["OMP_NUM_THREADS"] == "3"
    with pytest.raises(UserError, match="3 workers with 2 GPUs each, and this machine has 4"):
        seen(workers=3, gpus_per_worker=2.0)
    with pytest.raises(UserError, match=r"9 workers with 0\.4 GPUs each"):  # two on each
        seen(workers=9, gpus_per_worker=0.4)
    with pytest.raises(UserError, match=r"1\.5 GPUs for each worker"):
        seen(workers=1, gpus_per_worker=1.5)


def test_a_task_is_not_lost_where_all_die_at_the_same_moment(tmp_path: Path) -> None:
    """The first is heard of while the second's end waits to be heard: what is left to do is not taken for done."""

    async def both_at_once() -> list[Event]:
        left, events = ["die", "die", "left"], []
        async with LocalLauncher(ClusterConfig(workers=2)).launch(
            Crew(open_worker=launched.open_doer, open_shared=launched.two_knocks, logs=tmp_path)
        ) as team:
            async for event in team.run(lambda: left.pop(0) if left else None):
                while any(process.alive for process in team._workers[:2]):
                    await asyncio.sleep(0.01)
                events.append(event)
        return events

    done = [event.task for event in asyncio.run(both_at_once()) if isinstance(event, Done)]
    assert done == ["left"]
