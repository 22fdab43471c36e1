"""What any launcher must do, and workers that tests start in other processes."""

import asyncio
import os
import signal
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_cli.contract import Ask, Crew, Done, Event, Failed, Launcher, Lost, Worker
from bitnet_cli.errors import UserError


class Board:
    """What the workers share: who has done what, and a door that opens when all have knocked."""

    def __init__(self, knocks: int = 0) -> None:
        self.done: Counter[int] = Counter()
        self.closed: list[int] = []
        self._knocks = knocks
        self._open = asyncio.Event()

    async def count(self, worker: int) -> int:
        self.done[worker] += 1
        return self.done.total()

    async def knock(self) -> None:
        self._knocks -= 1
        if self._knocks <= 0:
            self._open.set()
        await self._open.wait()

    async def read(self) -> dict[int, int]:
        return dict(self.done)

    async def refuse(self) -> None:
        raise UserError("the board says no", "ask nicely")


def two_knocks() -> Board:
    return Board(2)


@attrs.frozen
class Doer:
    number: int
    ask: Ask

    async def do(self, task: Any) -> Any:
        match task:
            case "die":
                os.kill(os.getpid(), signal.SIGKILL)
            case "fail":
                raise UserError("no", "another way")
            case "bug":
                raise KeyError("x")
            case "refuse":
                await self.ask("refuse")
            case "meet":
                await self.ask("knock")
        await self.ask("count", self.number)
        return self.number, task

    async def aclose(self) -> None:
        return


async def open_doer(number: int, ask: Ask) -> Doer:
    print("noise on stdout", flush=True)
    return Doer(number, ask)


async def open_none(number: int, ask: Ask) -> Doer:
    raise UserError("there is no model", "bring one")


async def events_of(
    launcher: Launcher, tasks: list[Any], logs: Path, at_once: int = 1, again: bool = True
) -> tuple[list[Event], dict[int, int]]:
    """Every event, in order, and what the board says at the end; what a lost worker had is handed out again."""
    left, events = deque(tasks), []
    crew = Crew(open_worker=open_doer, open_shared=two_knocks, logs=logs, at_once=at_once)
    async with launcher.launch(crew) as team:
        async for event in team.run(lambda: left.popleft() if left else None):
            events.append(event)
            if isinstance(event, Lost) and again:
                left.extend("spared" if task == "die" else task for task in event.tasks)
        return events, await team.ask("read")


async def check_every_task_is_done_once(launcher: Launcher, logs: Path) -> None:
    events, counts = await events_of(launcher, [*range(20)], logs, at_once=2)
    assert sorted(event.task for event in events if isinstance(event, Done)) == [*range(20)]
    assert all(event.result == (event.worker, event.task) for event in events)
    assert sum(counts.values()) == 20


async def check_workers_run_side_by_side(launcher: Launcher, logs: Path) -> None:
    """Two tasks that wait for each other: one after the other they would never end."""
    events, counts = await events_of(launcher, ["meet", "meet"], logs)
    assert len(events) == 2
    assert counts == {0: 1, 1: 1}


async def check_errors_are_told_and_the_worker_goes_on(launcher: Launcher, logs: Path) -> None:
    events, _ = await events_of(launcher, ["fail", "bug", "refuse", "meet", "meet"], logs)
    failed = {event.task: (event.why, event.fix) for event in events if isinstance(event, Failed)}
    assert failed["fail"] == ("no", "another way")
    assert "KeyError" in failed["bug"][0]
    assert failed["refuse"] == ("the board says no", "ask nicely")
    assert sum(isinstance(event, Done) for event in events) == 2


async def check_the_tasks_of_a_dead_worker_go_to_another(launcher: Launcher, logs: Path) -> None:
    events, _ = await events_of(launcher, ["die", *range(10)], logs, at_once=2)
    lost = [event for event in events if isinstance(event, Lost)]
    assert len(lost) == 1
    assert "die" in lost[0].tasks
    assert sorted(map(str, (event.task for event in events if isinstance(event, Done)))) == sorted(
        [*map(str, range(10)), "spared"]
    )


async def check_another_takes_the_place_of_a_dead_worker(launcher: Launcher, logs: Path) -> None:
    """One of two dies, and each of two tasks waits for the other: they end if there are two workers again."""
    async with asyncio.timeout(300):
        events, counts = await events_of(launcher, ["die", "meet", "meet"], logs)
    (lost,) = [event for event in events if isinstance(event, Lost)]
    assert lost.why.endswith("; worker 2 takes its place")
    assert counts.keys() == {1 - lost.worker, 2}
    assert sum(counts.values()) == 3


async def check_no_more_than_some_follow(launcher: Launcher, logs: Path) -> None:
    """Each of two workers has two that follow it: what kills all of them ends the work, and none is left to do it."""
    with pytest.raises(UserError, match="all 2 workers are gone, and those that took their places") as error:
        await events_of(launcher, ["die"] * 7, logs, again=False)
    assert error.value.fix


async def open_two(number: int, ask: Ask) -> Doer:
    return await (open_doer if number < 2 else open_none)(number, ask)


async def check_the_others_go_on_where_none_can_follow(launcher: Launcher, logs: Path) -> None:
    """The one that is left waits until all has been tried."""
    left, events = deque(["die", "meet"]), []
    crew = Crew(open_worker=open_two, open_shared=two_knocks, logs=logs)
    async with asyncio.timeout(300), launcher.launch(crew) as team:
        async for event in team.run(lambda: left.popleft() if left else None):
            events.append(event)
            if len(events) == 3:
                await team.ask("knock")
    *lost, done = events
    assert isinstance(done, Done)
    assert [event.why.partition("; ")[2] for event in lost if isinstance(event, Lost)] == [
        "worker 2 takes its place",
        "worker 3 takes its place",
        "",
    ]
    assert [event.why.partition("; ")[0] for event in lost if isinstance(event, Lost)][1:] == [
        "worker 2 can't be opened (there is no model)",
        "worker 3 can't be opened (there is no model)",
    ]


async def check_all_of_it(launcher: Launcher, logs: Path) -> None:
    """The checks above with one start of two workers."""
    tasks = ["meet", "meet", *range(10), "fail", "bug", "refuse", "die", "after"]
    events, _ = await events_of(launcher, tasks, logs, at_once=2)
    failed = {event.task: (event.why, event.fix) for event in events if isinstance(event, Failed)}
    assert failed["fail"] == ("no", "another way")
    assert "KeyError" in failed["bug"][0]
    assert failed["refuse"] == ("the board says no", "ask nicely")
    done = [event for event in events if isinstance(event, Done)]
    assert all(event.result == (event.worker, event.task) for event in done)
    wanted = ["meet", "meet", *range(10), "spared", "after"]
    assert sorted(str(event.task) for event in done) == sorted(map(str, wanted))
    assert [type(event) for event in events].count(Lost) == 1


@attrs.define(eq=False)
class HereLauncher:
    """Workers that are coroutines of this process: what needs no process of its own is tested in no time."""

    workers: int

    @asynccontextmanager
    async def launch(self, crew: Crew) -> AsyncIterator["HereTeam"]:
        team = HereTeam(crew)
        team.workers = [await crew.open_worker(number, team.ask) for number in range(self.workers)]
        try:
            yield team
        finally:
            for worker in team.workers:
                await worker.aclose()


class HereTeam:
    def __init__(self, crew: Crew) -> None:
        self.crew, self.workers = crew, list[Worker]()
        self.shared = None if crew.open_shared is None else crew.open_shared()

    async def ask(self, method: str, *arguments: Any) -> Any:
        return await getattr(self.shared, method)(*arguments)

    async def run(self, next_task: Callable[[], Any | None]) -> AsyncIterator[Event]:
        doing: dict[asyncio.Task[Any], tuple[int, Any]] = {}
        places = [*range(len(self.workers))] * self.crew.at_once
        while True:
            while places and (task := next_task()) is not None:
                number = places.pop(0)
                doing[asyncio.create_task(self.workers[number].do(task))] = (number, task)
            if not doing:
                return
            ended, _ = await asyncio.wait(doing, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                number, task = doing.pop(each)
                places.append(number)
                yield Done(number, task, each.result())
