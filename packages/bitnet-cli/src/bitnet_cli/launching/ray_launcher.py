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

from bitnet_cli.contract import Crew, Done, Event, Failed, Lost, OpenWorker, Worker
from bitnet_cli.errors import UserError
from bitnet_cli.launching.messages import told
from bitnet_cli.launching.ray_config import RayConfig

OBJECT_STORE_BYTES = 100 * 2**20
"""Of a Ray that is started here: what passes through it is small."""
CALLS_AT_ONCE = 100_000
"""Calls that the shared object may have waiting: a request that waits for the budget is one."""

ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # else Ray packs the working folder and makes a new environment on every worker where it sees `uv run`
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}
ON_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray takes 127.0.0.1 as this machine's address, as it does on Windows and macOS."""


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
        return await _told(self._worker.do(task))

    async def aclose(self) -> tuple[str, str] | None:
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
        self._workers: dict[int, Any] = {
            number: worker.options(
                num_cpus=config.cpus_per_worker,
                num_gpus=config.gpus_per_worker,
                max_concurrency=crew.at_once + 8,
                scheduling_strategy="SPREAD",
            ).remote()
            for number in range(config.workers)
        }
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
        opening = [
            _future(actor.open.remote(self._crew.open_worker, number, self._shared))
            for number, actor in self._workers.items()
        ]
        for number, problem in enumerate(await asyncio.gather(*opening, return_exceptions=True)):
            if isinstance(problem, BaseException):
                raise UserError(_gone(number, problem), "see Ray's logs, then run again")
            if problem is not None:
                raise UserError(*problem)
        for number, actor in self._workers.items():
            self._in_hand[_future(actor.live.remote())] = (number, None)

    async def run(self, next_task: Callable[[], Any | None]) -> AsyncIterator[Event]:
        while True:
            self._deal(next_task)
            if not any(task is not None for _, task in self._in_hand.values()):
                if not self._workers and next_task() is not None:
                    raise UserError(f"all {self._config.workers} workers are gone", "run again to go on")
                return
            ended, _ = await asyncio.wait(self._in_hand, return_when=asyncio.FIRST_COMPLETED)
            for each in ended:
                if each in self._in_hand:  # a lost worker's others went with the first
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
        del self._workers[number]
        return Lost(number, tuple(each for each in tasks if each is not None), _gone(number, error))

    async def aclose(self) -> list[tuple[str, str]]:
        """Let every worker close what it has open; returns why some could not."""
        import ray

        for each in self._in_hand:
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
        for actor in (*self._workers.values(), *([] if self._shared is None else [self._shared])):
            ray.kill(actor)
        return found


@contextlib.contextmanager
def _connected(config: RayConfig) -> Any:
    """With Ray: started here and ended afterwards, joined, or as it was already. Raises UserError."""
    for name, value in (ENVIRONMENT | ({} if config.address else ON_LOOPBACK)).items():
        os.environ.setdefault(name, value)
    import ray

    if ray.is_initialized():
        _check_room(ray.cluster_resources(), config)
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
        _check_room(ray.cluster_resources(), config)
        yield
    finally:
        ray.shutdown()


def _check_room(there: dict[str, float], config: RayConfig) -> None:
    """Ray would wait for ever for cores and GPUs that no machine has."""
    for name, each in (("CPU", config.cpus_per_worker), ("GPU", config.gpus_per_worker)):
        wanted, has = config.workers * each, there.get(name, 0.0)
        if wanted > has:
            raise UserError(
                f"cluster: {config.workers} workers with {each:g} {name}s each want {wanted:g}, and Ray has {has:g}",
                f"lower cluster.workers or cluster.{name.lower()}s_per_worker, or add machines",
            )


def _future(reference: Any) -> "asyncio.Future[Any]":
    return asyncio.wrap_future(reference.future())


def _heard(future: "asyncio.Future[Any]") -> None:
    if not future.cancelled():
        future.exception()


def _gone(number: int, error: BaseException) -> str:
    return f"worker {number} is gone ({' '.join(str(error).split())[:200]})"
