"""Several servers of one model as one teacher: `teacher.base_urls`."""

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any

from bitnet_providers.contract import Capabilities, Completion, GenerateRequest, RetryableError, ScoreRequest, Teacher


class ManyServers:
    """A `Teacher`. A collection deals its requests among `servers` itself, each at its own pace (`servers_of`).

    A single call goes to the server that has failed least since its last answer, of those to the one with the fewest
    calls under way; where that one is not reached, to the next.
    """

    def __init__(self, servers: Sequence[Teacher]) -> None:
        """`servers`: at least one; the first one's capabilities and description are the whole's."""
        self._all = tuple(servers)
        self.servers = self._all
        """Those that are asked."""
        self._failures = dict.fromkeys(range(len(servers)), 0)
        self._under_way = dict.fromkeys(range(len(servers)), 0)

    @property
    def capabilities(self) -> Capabilities:
        return self._all[0].capabilities

    @property
    def description(self) -> Mapping[str, Any]:
        """The servers' own; ``base_url`` has all of them."""
        said = dict(self._all[0].description)
        return said | {"base_url": ", ".join(str(each.description["base_url"]) for each in self._all)}

    @property
    def left_out(self) -> tuple[Teacher, ...]:
        """Servers that are not asked."""
        return tuple(each for each in self._all if each not in self.servers)

    def leave_out(self, names: Collection[str]) -> None:
        """Ask the servers with these base URLs nothing more."""
        self.servers = tuple(each for each in self.servers if each.description["base_url"] not in names)

    async def generate(self, request: GenerateRequest) -> Completion:
        return await self._ask(lambda server: server.generate(request))

    async def score(self, request: ScoreRequest) -> Completion:
        return await self._ask(lambda server: server.score(request))

    async def aclose(self) -> None:
        for each in self._all:
            await each.aclose()

    async def _ask(self, ask: Callable[[Teacher], Awaitable[Completion]]) -> Completion:
        numbers = [number for number, each in enumerate(self._all) if each in self.servers]
        numbers.sort(key=lambda number: (self._failures[number], self._under_way[number]))
        for number in numbers:
            self._under_way[number] += 1
            try:
                completion = await ask(self._all[number])
                self._failures[number] = 0
                return completion
            except RetryableError as error:
                self._failures[number] += 1
                if error.possibly_paid or error.answered or error.overloaded or number == numbers[-1]:
                    raise  # who asks counts what it took, and asks again: another server then
            finally:
                self._under_way[number] -= 1
        raise AssertionError("a teacher has at least one server")
