"""Workers as actors of a Ray cluster: of one that is there, or of one that is started here for as long as they work."""

import asyncio
import contextlib
import logging
import math
import os
import sys
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs

from bitnet_cli.contract import Crew, Done, ElsewhereConfig, Event, Failed, Lost, OpenWorker, Worker
from bitnet_cli.errors import UserError
from bitnet_cli.launching.lost_workers import REPLACEMENTS, all_gone, in_its_place, not_opened, told
from bitnet_core.settings import setting

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a Ray that is started here: what passes through it is small."""
CALLS_AT_ONCE = 100_000
"""Calls that the shared object may have waiting: a request that waits for the budget is one."""

LAST_HOPE_S = 1800.0
"""How long replacements may take to open where no other worker is left: Ray waits for ever for a machine that died."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray packs the working folder and makes a new environment on every worker where it sees `uv run`
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray takes 127.0.0.1 as this machine's address, as it does on Windows and macOS."""


@attrs.frozen(kw_only=True)
class RayConfig(ElsewhereConfig):
    """``[cluster] kind = "ray"``: workers on the machines of a Ray cluster."""

    address: str = setting("", help='of the cluster, HOST:PORT or "auto"; empty: Ray is started on this machine')


class SharedActor:
    """Holds the object that the workers share."""

    def __init__(self, open_shared: Callable[[], Any]) -> None:
        self._open, self._shared = open_shared, None

    async def call(self, method: str, arguments: tuple[Any, ...]) -> tuple[tuple[str, str] | None, Any]:
        if self._shared is None:
            self._shared = self._open()
        try:
            return None, await getattr(self._shared, method)(*arguments)
        except Exception as error:
            return told(error), None


class WorkerActor:
    """Holds a worker. Errors are told, not raised: what Ray raises is that a worker is gone."""

    def __init__(self) -> None:
        self._worker: Worker | None = None
        self._doing: set[asyncio.Future[Any]] = set()

    async def open(self, open_worker: OpenWorker, number: int, shared: Any) -> tuple[str, str] | None:
        async def ask(method: str, *arguments: Any) -> Any:
            problem, value = await shared.call.remote(method, arguments)
            if problem is not None:
                raise UserError(*problem)
            return value

        async def open_() -> None:
            self._worker = await open_worker(number, ask)

        return (await _told(open_()))[0]

    async def do(self, task: Any) -> tuple[tuple[str, str] | None, Any]:
        assert self._worker is not None
        doing = asyncio.ensure_future(self._worker.do(task))
        self._doing.add(doing)
        doing.add_done_callback(self._doing.discard)
        return await _told(doing)

    async def aclose(self) -> tuple[str, str] | None:
        for doing in self._doing:
            doing.cancel()
        await asyncio.gather(*self._doing, return_exceptions=True)
        return None if self._worker is None else (await _told(self._worker.aclose()))[0]

    async def live(self) -> None:
        """Never ends, but by an error where this worker is gone."""
        await asyncio.Event().wait()


async def _told(work: Awaitable[Any]) -> tuple[tuple[str, str] | None, Any]:
    try:
        return None, await work
    except Exception as error:
        traceback.print_exc()
        return told(error), None


class RayLauncher:
    """A `Launcher`; see `bitnet_cli.contract`."""

    def __init__(self, config: RayConfig) -> None:
        self._config = config

    @property
    def workers(self) -> int:
        return self._config.workers

    @asynccontextmanager
    async def launch(self, crew: Crew) -> AsyncIterator["RayTeam"]:
        with _connected(self._config):
            team = RayTeam(crew, self._config)
            problem: BaseException | None = None
            try:
                await team.open()
                yield team
            except BaseException as error:
                problem = error
                raise
            finally:
                not_closed = await team.aclose()
                if problem is None and not_closed:
                    raise UserError(*not_closed[0])


class RayTeam:
    """A `Team`; one event loop's."""

    def __init__(self, crew: Crew, config: RayConfig) -> None:
        import ray
        from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

        self._crew, self._config = crew, config
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        shared: Any = ray.remote(SharedActor)
        self._shared = None
        if crew.open_shared is not None:
            options = {"num_cpus": 0, "max_concurrency": CALLS_AT_ONCE, "scheduling_strategy": here}
            self._shared = shared.options(**options).remote(crew.open_shared)
        worker: Any = ray.remote(WorkerActor)
        self._worker = worker.options(
            num_cpus=config.cpus_per_worker,
            num_gpus=config.gpus_per_worker,
            max_concurrency=crew.at_once + 8,
            scheduling_strategy="SPREAD",
        )
        self._workers: dict[int, Any] = {}
        self._replacements: list[int] = []
        """Of each worker there ever was: how many more may follow it."""
        self._opening: dict[asyncio.Future[Any], tuple[int, Any]] = {}
        """What `open` will give; the worker."""
        self._in_hand: dict[asyncio.Future[Any], tuple[int, Any]] = {}
        """What `do` and `live` will give; of `live` the task is None."""

    async def ask(self, method: str, *arguments: Any) -> Any:
        assert self._shared is not None
        problem, value = await self._shared.call.remote(method, arguments)
        if problem is not None:
            raise UserError(*problem)
        return value

    async def open(self) -> None:
        """Raises UserError for the first worker that could not be opened."""
        for _ in range(self._config.workers):
            self._start(REPLACEMENTS)
        await asyncio.wait(self._opening)
        problems = [problem for _, problem in map(self._opened, tuple(self._opening)) if problem is not None]
        if problems:
            raise UserError(*problems[0])

    def _start(self, replacements: int) -> int:
        """A worker's number, which is then opening."""
        number, actor = len(self._replacements), self._worker.remote()
        self._replacements.append(replacements)
        opened = _future(actor.open.remote(self._crew.open_worker, number, self._shared))
        self._opening[opened] = (number, actor)
        return number

    def _opened(self, ended: "asyncio.Future[Any]") -> tuple[int, tuple[str, str] | None]:
        """Which worker it is, and why it could not be opened."""
        number, actor = self._opening.pop(ended)
        self._workers[number] = actor
        if (error := ended.exception()) is not None:
            return number, (_gone(number, error), "see Ray's logs, then run again")
        problem: tuple[str, str] | None = ended.result()
        if problem is None:
            self._in_hand[_future(actor.live.remote())] = (number, None)
        return number, problem

    async def run(self, next_task: Callable[[], Any | None]) -> AsyncIterator[Event]:
        while True:
            self._deal(next_task)
            if not any(task is not None for _, task in self._in_hand.values()):
                if self._workers:
                    return
                if not self._opening:
                    if next_task() is None:
                        return
                    raise UserError(all_gone(self._config.workers), "run again to go on")
            waited_s = None if self._workers else LAST_HOPE_S
            ended, _ = await asyncio.wait(
                {*self._in_hand, *self._opening}, timeout=waited_s, return_when=asyncio.FIRST_COMPLETED
            )
            if not ended:
                raise UserError(
                    f"{all_gone(self._config.workers)}: Ray has had no room for any since {waited_s:,.0f} s",
                    "see `ray status`, then run again to go on",
                )
            for each in ended:
                if each in self._opening:
                    number, problem = self._opened(each)
                    if problem is not None:
                        yield self._lost(number, (), not_opened(number, UserError(*problem)))
                elif each in self._in_hand:  # a lost worker's others went with the first
                    yield self._event(each)

    def _deal(self, next_task: Callable[[], Any | None]) -> None:
        """Give tasks to those with room, one each in turn."""
        for _ in range(self._crew.at_once):
            for number, actor in self._workers.items():
                if sum(of == number for of, _ in self._in_hand.values()) > self._crew.at_once:  # with `live`
                    continue
                if (task := next_task()) is None:
                    return
                self._in_hand[_future(actor.do.remote(task))] = (number, task)

    def _event(self, ended: "asyncio.Future[Any]") -> Event:
        number, task = self._in_hand.pop(ended)
        error = ended.exception()
        if error is None:
            problem, result = ended.result()
            return Done(number, task, result) if problem is None else Failed(number, task, *problem)
        tasks = [task]
        for each in [each for each, (of, _) in self._in_hand.items() if of == number]:
            each.add_done_callback(_heard)
            tasks.append(self._in_hand.pop(each)[1])
        return self._lost(number, tuple(each for each in tasks if each is not None), _gone(number, error))

    def _lost(self, number: int, tasks: tuple[Any, ...], why: str) -> Lost:
        """With another in its place, where one may follow and there is room for it."""
        import ray

        ray.kill(self._workers.pop(number))
        if self._replacements[number]:
            try:
                _check_room(ray.cluster_resources(), self._config, 1 + len(self._workers) + len(self._opening))
                why += in_its_place(self._start(self._replacements[number] - 1))
            except UserError as error:
                why += f"; no other can be started ({error.why})"
        return Lost(number, tasks, why)

    async def aclose(self) -> list[tuple[str, str]]:
        """Let every worker close what it has open; returns why some could not."""
        import ray

        for each in (*self._in_hand, *self._opening):
            each.add_done_callback(_heard)
        closing = {number: _future(actor.aclose.remote()) for number, actor in self._workers.items()}
        found: list[tuple[str, str]] = []
        for number, future in closing.items():
            try:
                problem = await future
            except ray.exceptions.RayError as error:
                problem = (_gone(number, error), "run again to go on")
            if problem is not None:
                found.append(problem)
        opening = [actor for _, actor in self._opening.values()]
        for actor in (*self._workers.values(), *opening, *([] if self._shared is None else [self._shared])):
            ray.kill(actor)
        return found


@contextlib.contextmanager
def _connected(config: RayConfig) -> Any:
    """With Ray: started here and ended afterwards, joined, or as it was already. Raises UserError."""
    for name, value in (ENVIRONMENT | ({} if config.address else ON_LOOPBACK)).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        _check_room(ray.cluster_resources(), config, config.workers)
        yield
        return
    own: dict[str, Any] = (
        {}
        if config.address
        else {
            "num_cpus": max(os.cpu_count() or 1, math.ceil(config.workers * config.cpus_per_worker)),
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "runtime_env": {"env_vars": {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}},
        }
    )
    try:
        ray.init(
            address=config.address or "local",
            log_to_driver=False,
            logging_level=logging.ERROR,
            **own,
        )
    except Exception as error:
        where = f"of {config.address} can't be joined" if config.address else "can't be started on this machine"
        raise UserError(f"cluster: Ray {where}: {' '.join(str(error).split())[:300]}", "see `ray status`") from error
    try:
        _check_room(ray.cluster_resources(), config, config.workers)
        yield
    finally:
        ray.shutdown()


def _check_room(there: dict[str, float], config: RayConfig, workers: int) -> None:
    """Ray would wait for ever for cores and GPUs that no machine has."""
    for name, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        wanted, has = workers * each, there.get(name, 0.0)
        if wanted > has:
            raise UserError(
                f"cluster: {workers} workers with {each:g} {name}s each want {wanted:g}, and Ray has {has:g}",
                f"lower cluster.workers or cluster.{name.lower()}s_per_worker, or add machines",
            )


def _future(reference: Any) -> "asyncio.Future[Any]":
    return asyncio.wrap_future(reference.future())


def _heard(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()


def _gone(number: int, error: BaseException) -> str:
    return f"worker {number} is gone ({' '.join(str(error).split())[:200]})"
