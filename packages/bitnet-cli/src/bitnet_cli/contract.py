"""What a launcher is: it starts workers, on this machine or on others, and hands tasks out to them.

An author writes a `LauncherPlugin`, which the hook `bitnet_launchers` returns, and a `Launcher`. Who uses one says what
a worker does (`Crew`), and gives it tasks::

    async with launcher.launch(Crew(open_worker=open_mine, logs=folder)) as team:
        async for event in team.run(tasks.pop):
            match event:
                case Done(): ...

What goes to a worker and back is pickled: records, paths and functions of modules that a worker can import, too.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Any, Protocol

import attrs

from bitnet_core.settings import not_negative, positive, setting


@attrs.frozen(kw_only=True)
class ClusterConfig:
    """The settings that every launcher has; a plugin's options extend them."""

    workers: int = setting(1, validator=positive, help="how many workers")
    cpus_per_worker: float = setting(1.0, validator=positive, help="CPU cores that a worker counts as, or uses")
    gpus_per_worker: float = setting(0.0, validator=not_negative, help="GPUs that a worker has for itself; 0.5: half")
    lease: int = setting(200, validator=positive, help="requests of a collection that are dealt out at once, at most")


@attrs.frozen(kw_only=True)
class ElsewhereConfig(ClusterConfig):
    """The settings of launchers whose workers may be on other machines."""

    push_every: float = setting(
        60.0,
        validator=positive,
        help="seconds after which a worker pushes what it has kept to the store, at the latest",
    )
    scratch: Path | None = setting(
        None, path=True, help="a machine's folder for what is not pushed yet (none: the one for temporary files)"
    )


Ask = Callable[..., Awaitable[Any]]
"""``await ask("method", *arguments)`` calls a method (async) of what `Crew.open_shared` has made, wherever that is."""


class Worker(Protocol):
    """What `Crew.open_worker` makes in each worker."""

    async def do(self, task: Any) -> Any:
        """One task to its end. An error with ``why`` and ``fix`` (UserError, ProviderError ...) becomes `Failed`."""
        ...

    async def aclose(self) -> None: ...


OpenWorker = Callable[[int, Ask], Awaitable[Worker]]


@attrs.frozen(kw_only=True)
class Crew:
    """What the workers are."""

    open_worker: OpenWorker
    """``await open_worker(number, ask)`` runs in each worker; numbers count from 0, those of replacements go on."""
    logs: Path
    """The folder for what workers print (``worker-N.log``)."""
    open_shared: Callable[[], Any] | None = None
    """Makes the one object that all of them share; it lives beside the caller, on one event loop."""
    at_once: int = 1
    """Tasks that a worker has in hand, so that it need not wait for the next."""


@attrs.frozen
class Done:
    worker: int
    task: Any
    result: Any


@attrs.frozen
class Failed:
    """A task raised an error; the worker goes on."""

    worker: int
    task: Any
    why: str
    fix: str


@attrs.frozen
class Lost:
    """A worker is gone. Its tasks are the caller's again, who may hand them to others.

    A launcher may start another in its place, under a number that nobody has had.
    """

    worker: int
    tasks: tuple[Any, ...]
    why: str


Event = Done | Failed | Lost


class Team(Protocol):
    """Workers at work."""

    def ask(self, method: str, *arguments: Any) -> Awaitable[Any]:
        """As a worker's `Ask`."""
        ...

    def run(self, next_task: Callable[[], Any | None]) -> AsyncIterator[Event]:
        """Call `next_task` whenever a worker has room, until it gives None and nothing is in hand; tells each end.

        After an event it is asked again: a caller may have put back what a lost worker had. Raises UserError where no
        worker is left and there is still something to do.
        """
        ...


class Launcher(Protocol):
    @property
    def workers(self) -> int:
        """How many `launch` starts."""
        ...

    def launch(self, crew: Crew) -> AbstractAsyncContextManager[Team]:
        """Start the workers and open each; at the end they are closed, after an error too.

        Raises UserError where they can't be had, and where `Crew.open_worker` fails.
        """
        ...


@attrs.frozen
class LauncherPlugin:
    """What a plugin says of a launcher, light enough to list."""

    name: str
    """The manifest's ``cluster.kind``."""
    options: type
    """A frozen attrs class that extends `ClusterConfig`; the manifest's ``[cluster]`` table becomes one."""
    open: Callable[[Any], Launcher]
    """Options in, launcher out; starts nothing yet."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1
