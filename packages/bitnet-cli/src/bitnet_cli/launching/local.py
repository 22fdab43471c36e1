"""Workers in processes of this machine."""

import asyncio
import contextlib
import itertools
import os
import signal
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import attrs

from bitnet_cli.contract import ClusterConfig, Crew, Done, Event, Failed, Lost
from bitnet_cli.errors import UserError
from bitnet_cli.launching.local_worker import receive, send
from bitnet_cli.launching.lost_workers import REPLACEMENTS, all_gone, in_its_place, not_opened, told

CLOSING_S = 60.0
"""How long a worker may take to close what it has open."""


@attrs.define(eq=False)
class _Process:
    """A worker as its starter sees it."""

    number: int
    environment: dict[str, str]
    replacements: int
    """How many more may follow it."""
    popen: "subprocess.Popen[bytes]"
    log: str
    opened: "asyncio.Future[None]"
    in_hand: dict[int, Any] = attrs.Factory(dict)
    alive: bool = True

    @property
    def is_replacement(self) -> bool:
        return self.replacements < REPLACEMENTS

    @property
    def is_opening(self) -> bool:
        return self.alive and not self.opened.done()

    @property
    def is_ready(self) -> bool:
        return self.alive and self.opened.done() and self.opened.exception() is None

    def send(self, *message: Any) -> None:
        assert self.popen.stdin is not None
        with contextlib.suppress(OSError):  # it is gone: its end of the pipe tells
            send(self.popen.stdin, message)


class LocalLauncher:
    """A `Launcher`; see `bitnet_cli.contract`."""

    def __init__(self, config: ClusterConfig) -> None:
        self._config = config

    @property
    def workers(self) -> int:
        return self._config.workers

    @asynccontextmanager
    async def launch(self, crew: Crew) -> AsyncIterator["LocalTeam"]:
        environments = _environments(self._config)
        crew.logs.mkdir(parents=True, exist_ok=True)
        team = LocalTeam(crew)
        try:
            for environment in environments:
                team.start(environment)
            await team.opened()
            yield team
        finally:
            await team.aclose()


class LocalTeam:
    """A `Team`; one event loop's."""

    def __init__(self, crew: Crew) -> None:
        self._crew = crew
        self._shared = None if crew.open_shared is None else crew.open_shared()
        self._loop = asyncio.get_running_loop()
        self._events: asyncio.Queue[Event | None] = asyncio.Queue()
        """None: a worker is ready."""
        self._workers: list[_Process] = []
        self._numbers = itertools.count()
        self._calls: dict[asyncio.Task[None], _Process] = {}
        self._closing = False

    async def ask(self, method: str, *arguments: Any) -> Any:
        return await getattr(self._shared, method)(*arguments)

    def start(self, environment: dict[str, str], replacements: int = REPLACEMENTS) -> _Process:
        number = len(self._workers)
        log = self._crew.logs / f"worker-{number}.log"
        with log.open("wb") as errors:
            popen = subprocess.Popen(
                [sys.executable, "-m", "bitnet_cli.launching.local_worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                start_new_session=True,  # Ctrl-C is ours to pass on; and all that it starts ends with it
            )
        worker = _Process(number, environment, replacements, popen, str(log), self._loop.create_future())
        self._workers.append(worker)
        threading.Thread(target=self._listen, args=(worker,), name=f"worker-{number}", daemon=True).start()
        worker.send("open", self._crew.open_worker, number)
        return worker

    async def opened(self) -> None:
        """Raises UserError for the first worker that could not be opened."""
        await asyncio.gather(*(worker.opened for worker in self._workers))

    async def run(self, next_task: Callable[[], Any | None]) -> AsyncIterator[Event]:
        while True:
            self._deal(next_task)
            if not any(worker.in_hand for worker in self._workers) and self._events.empty():
                if any(worker.is_ready for worker in self._workers):
                    return
                if not any(worker.is_opening for worker in self._workers):
                    if next_task() is None:
                        return
                    count = sum(not worker.is_replacement for worker in self._workers)
                    raise UserError(all_gone(count), f"see why in {self._crew.logs}, then run again to go on")
            event = await self._events.get()
            if event is not None:
                yield event

    def _deal(self, next_task: Callable[[], Any | None]) -> None:
        """Give tasks to those with room, one each in turn."""
        for _ in range(self._crew.at_once):
            for worker in self._workers:
                if not worker.is_ready or len(worker.in_hand) >= self._crew.at_once:
                    continue
                if (task := next_task()) is None:
                    return
                number = next(self._numbers)
                worker.in_hand[number] = task
                worker.send("do", number, task)

    # What workers say

    def _listen(self, worker: _Process) -> None:
        """In a thread: a worker's messages, until it is gone."""
        assert worker.popen.stdout is not None
        with worker.popen.stdout as pipe, contextlib.suppress(RuntimeError):  # the loop is closed: nobody listens
            try:
                while True:
                    self._loop.call_soon_threadsafe(self._hear, worker, *receive(pipe))
            except Exception:  # it is gone, in the middle of a message perhaps
                code = worker.popen.wait()
                self._loop.call_soon_threadsafe(self._gone, worker, code)

    def _hear(self, worker: _Process, what: str, *rest: Any) -> None:
        match what, *rest:
            case "call", number, method, arguments:
                call = self._loop.create_task(self._answer(worker, number, method, arguments))
                self._calls[call] = worker
                call.add_done_callback(self._calls.pop)
            case "opened", problem, _:
                if problem is None:
                    worker.opened.set_result(None)
                    self._events.put_nowait(None)
                else:
                    worker.opened.set_exception(UserError(*problem))
                    worker.send("close")
            case "done", number, problem, result:
                task = worker.in_hand.pop(number)
                failed = problem and Failed(worker.number, task, *problem)
                self._events.put_nowait(failed or Done(worker.number, task, result))

    async def _answer(self, worker: _Process, number: int, method: str, arguments: tuple[Any, ...]) -> None:
        try:
            worker.send("told", number, None, await self.ask(method, *arguments))
        except Exception as error:
            worker.send("told", number, told(error), None)

    def _gone(self, worker: _Process, code: int) -> None:
        worker.alive = False
        why = f"worker {worker.number} ended with code {code} (its messages: {worker.log})"
        for call, asker in self._calls.items():
            if asker is worker:
                call.cancel()
        if not worker.opened.done():
            worker.opened.set_exception(UserError(why, "see what it says, then run again"))
        elif (error := worker.opened.exception()) is not None:
            why = not_opened(worker.number, error)
        has_opened = worker.opened.exception() is None
        if not self._closing:  # who takes its place must not meet what it has started
            _end_group(worker.popen)
        if not self._closing and (has_opened or worker.is_replacement):
            tasks = tuple(worker.in_hand.values())
            self._events.put_nowait(Lost(worker.number, tasks, why + self._replace(worker)))
        worker.in_hand.clear()

    def _replace(self, worker: _Process) -> str:
        """Start another in its place; what there is to say about it."""
        if not worker.replacements:
            return ""
        try:
            return in_its_place(self.start(worker.environment, worker.replacements - 1).number)
        except OSError as error:
            return f"; no other can be started ({error})"

    async def aclose(self) -> None:
        """Let every worker close what it has open; one that doesn't is ended."""
        self._closing = True
        for worker in self._workers:
            if worker.is_opening and worker.is_replacement:  # nobody waits for it any more
                _end(worker.popen)
            worker.send("close")
            if worker.opened.done():
                worker.opened.exception()  # heard
        try:
            await asyncio.gather(*(asyncio.to_thread(worker.popen.wait, CLOSING_S) for worker in self._workers))
        except (subprocess.TimeoutExpired, asyncio.CancelledError):
            for worker in self._workers:
                _end(worker.popen)
        for call in tuple(self._calls):
            call.cancel()
        for worker in self._workers:
            assert worker.popen.stdin is not None
            with contextlib.suppress(OSError):
                worker.popen.stdin.close()


def _end_group(popen: "subprocess.Popen[bytes]") -> None:
    """What a process that is gone has started."""
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(popen.pid, signal.SIGKILL)


def _end(popen: "subprocess.Popen[bytes]") -> None:
    """With all that it has started."""
    if popen.poll() is None:
        with contextlib.suppress(ProcessLookupError):
            if hasattr(os, "killpg"):
                os.killpg(popen.pid, signal.SIGKILL)
            else:
                popen.kill()
        popen.wait()


def _environments(config: ClusterConfig) -> list[dict[str, str]]:
    """Of each worker: this process's, its modules, as many threads as it has cores, and its own GPUs."""
    threads = str(max(1, int(config.cpus_per_worker)))
    common = dict(os.environ) | {"PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    common |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS"), threads)
    if not config.gpus_per_worker:
        return [common] * config.workers
    gpus = _gpus()
    each = config.gpus_per_worker
    if each > 1 and each != int(each):
        raise UserError(f"{each:g} GPUs for each worker", "name a whole number, or a part of one")
    if config.workers > (len(gpus) * int(1 / each) if each < 1 else len(gpus) // each):
        raise UserError(
            f"{config.workers} workers with {config.gpus_per_worker:g} GPUs each, and this machine has {len(gpus)}",
            "ask for fewer workers, or for a smaller part of a GPU each",
        )
    return [
        common | {"CUDA_VISIBLE_DEVICES": ",".join(_share(gpus, number, config.gpus_per_worker))}
        for number in range(config.workers)
    ]


def _share(gpus: list[str], number: int, each: float) -> list[str]:
    if each < 1:
        return [gpus[number // int(1 / each)]]
    return gpus[number * int(each) : (number + 1) * int(each)]


def _gpus() -> list[str]:
    """As CUDA_VISIBLE_DEVICES names them; CUDA is not started for it."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [name.strip() for name in visible.split(",") if name.strip()]
    import torch

    return [str(number) for number in range(torch.cuda.device_count())]
