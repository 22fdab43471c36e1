"""The teacher's servers, each asked at its own pace, and the queue that all of them take their requests from.

Who is quick takes more: nothing is dealt out beforehand. Most teachers are one server; `base_urls` names several.
"""

import asyncio
from collections import deque
from collections.abc import Iterator, Sequence

import attrs

from bitnet_providers.collect.concurrency import Pacer
from bitnet_providers.collect.plan_requests import Planned
from bitnet_providers.collect.rate_limits import LimitsBook, RateLimits
from bitnet_providers.collect.stop import GIVEN_UP_IN_A_ROW, Stop
from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Teacher, servers_of


@attrs.define(eq=False, kw_only=True)
class Server:
    """Who is asked, and how fast."""

    teacher: Teacher
    pacer: Pacer
    limits: LimitsBook
    stop: Stop
    """Set when the whole collection stops, and when this server is given up."""
    given_up: str | None = None
    """Why."""
    answered: int = 0
    failed_in_a_row: int = 0
    """Requests that failed since its last answer."""
    rounds_in_a_row: int = 0
    """The same in rounds: requests that were out together are one."""
    _round_began: int = 0

    @property
    def name(self) -> str:
        return str(self.teacher.description.get("base_url") or self.teacher.description.get("model"))

    def went_well(self) -> None:
        """A request was answered."""
        self.pacer.went_well()
        self.answered += 1
        self.failed_in_a_row = self.rounds_in_a_row = 0

    def failed(self, number: int) -> None:
        """The request with this number (of `Pacer.enter`) was not answered."""
        self.failed_in_a_row += 1
        if number > self._round_began:
            self.rounds_in_a_row += 1
            self._round_began = self.pacer.entered

    def seems_down(self, retries: int) -> bool:
        """As many tries as one request has, and no answer to any."""
        alone = self.pacer.at_once == 0
        return self.rounds_in_a_row > retries and (alone or self.failed_in_a_row >= GIVEN_UP_IN_A_ROW)


def servers_to_ask(
    teacher: Teacher, config: CollectConfig, stop: Stop, limits: LimitsBook | None = None
) -> list[Server]:
    """Those of a teacher that the probe has not left out."""
    return [_server(each, config, stop, limits) for each in servers_of(teacher)]


def _server(teacher: Teacher, config: CollectConfig, stop: Stop, limits: LimitsBook | None) -> Server:
    """With a pace and, where none are given, limits of its own; it stops when all do."""
    own = Stop()
    pacer = Pacer(config.concurrency, adaptive=teacher.capabilities.paced, sleep=own.sleep)
    own_limits = RateLimits(
        config.requests_per_minute, config.tokens_per_minute, sleep=own.sleep, stopped=lambda: bool(own)
    )
    stop.also(lambda: None if stop.error is None else own.now(stop.error))
    own.also(pacer.wake_all)
    return Server(teacher=teacher, pacer=pacer, limits=limits or own_limits, stop=own)


@attrs.define(eq=False)
class Asked:
    """A request on its way through the servers."""

    planned: Planned
    answered_before: int | None = None
    """How many others were answered before it was first sent."""
    failures: int = 0
    """Rounds in which no server answered it: with one server, tries."""
    failed_at: set[Server] = attrs.field(factory=set)
    """In this round."""


class WorkQueue:
    """Requests that wait for a server; one event loop's. Each is with one server at a time."""

    def __init__(self, planned: Iterator[Planned], servers: Sequence[Server]) -> None:
        self._fresh, self._servers = planned, servers
        self._back: deque[Asked] = deque()
        self._under_way = 0
        self._closed = False
        self._changed, self._over = asyncio.Event(), asyncio.Event()

    def others(self, server: Server) -> list[Server]:
        """The other servers that are not given up."""
        return [each for each in self._servers if each is not server and not each.stop]

    def take(self, server: Server) -> Asked | None:
        """The next request for this server, which then owes `ended`; None: there is none now, `more` waits for one."""
        found = next((each for each in self._back if self._may_ask(each, server)), None)
        if found is not None:
            self._back.remove(found)
        elif (planned := next(self._fresh, None)) is not None:
            found = Asked(planned)
        self._under_way += found is not None
        return found

    def give_back(self, asked: Asked) -> None:
        """Others shall take it."""
        self._back.append(asked)
        self.look_again()

    def ended(self) -> None:
        """A request that was taken is answered, given up or given back."""
        self._under_way -= 1
        self.look_again()

    def look_again(self) -> None:
        """Something has changed for those who wait, e.g. a server is given up."""
        self._changed.set()

    def close(self) -> None:
        """Nothing more is asked."""
        self._closed = True
        self._changed.set()
        self._over.set()

    async def more(self, server: Server) -> bool:
        """Wait until `take` may have a request for this server, after it had none; False: there will be none."""
        while not self._closed and not server.stop:
            if any(self._may_ask(each, server) for each in self._back):
                return True
            if not self._under_way and not self._back:
                self.close()
                break
            self._changed.clear()
            await self._changed.wait()
        return False

    async def rest(self, seconds: float) -> None:
        """Sleep, but not beyond the end of all requests."""
        try:
            async with asyncio.timeout(seconds):
                await self._over.wait()
        except TimeoutError:
            return

    def _may_ask(self, asked: Asked, server: Server) -> bool:
        """Not where it has failed already, as long as there is a server where it has not."""
        return server not in asked.failed_at or all(each in asked.failed_at for each in self.others(server))
