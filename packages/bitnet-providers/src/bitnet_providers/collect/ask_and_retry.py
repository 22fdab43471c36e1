"""Asks one request after the other to its end: paced, within limits and budget, written down, retried."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from contextlib import asynccontextmanager
from typing import Protocol

import attrs
import pyarrow as pa

from bitnet_providers.collect.journal_to_shards import journal_row
from bitnet_providers.collect.plan_requests import Planned
from bitnet_providers.collect.servers import Asked, Server, WorkQueue
from bitnet_providers.collect.stop import GIVEN_UP_IN_A_ROW, REFUSED_IN_A_ROW, Stop
from bitnet_providers.contract import (
    UNBELIEVABLE,
    Completion,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    check_answer,
)
from bitnet_providers.raw.completion_ids import Key
from bitnet_providers.raw.journal import GroupCommit
from bitnet_providers.raw.no_answer import ASK_AGAIN, FILTERED
from bitnet_providers.raw.write_shard import row_batch
from bitnet_providers.spending.budget import BudgetReachedError
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens, at_most, counted
from bitnet_providers.teachers.common.retry import LONGEST_OBEYED_S, RetryPolicy, asked_once

TICK_S = 1.0


class TimeLimit:
    """`seconds` for each that enters, while this process runs; None: no limit. One event loop's.

    A process that is stopped (SIGSTOP, a laptop's sleep) longer than a time-out wakes up with every time-out over,
    though the answers, which were paid for, may lie in the sockets. So a clock ticks here; where a tick comes late,
    whoever waits gets that time again. It is a callback of the event loop: those of one moment run by the time that
    they are due, so it comes before the time-outs that are over since.
    """

    def __init__(self, seconds: float | None, tick_s: float = TICK_S) -> None:
        self.seconds = seconds
        self._tick_s = tick_s
        self._waiting: set[asyncio.Timeout] = set()
        self._tick: asyncio.TimerHandle | None = None

    @asynccontextmanager
    async def each(self) -> AsyncIterator[None]:
        """Raises TimeoutError where what is inside takes longer."""
        async with asyncio.timeout(self.seconds) as timeout:
            self._waiting.add(timeout)
            if self._tick is None and self.seconds is not None:
                self._next_tick()
            try:
                yield
            finally:
                self._waiting.discard(timeout)

    def _next_tick(self) -> None:
        loop = asyncio.get_running_loop()
        due = loop.time() + self._tick_s
        self._tick = loop.call_at(due, self._ticked, due)

    def _ticked(self, due: float) -> None:
        late = asyncio.get_running_loop().time() - due
        self._tick = None
        for timeout in self._waiting if late > self._tick_s else ():
            when = timeout.when()
            if when is not None and not timeout.expired():
                timeout.reschedule(when + late)
        if self._waiting:
            self._next_tick()


class BudgetBook(Protocol):
    """`bitnet_providers.spending.budget.Budget`, or the one that several workers share."""

    async def reserve(self, bound: Tokens, key: Key | None = None) -> bool: ...
    def give_back(self, bound: Tokens, key: Key | None = None) -> None: ...
    def settle(self, bound: Tokens, charged: Tokens | None) -> None: ...
    def why_not(self, bound: Tokens) -> BudgetReachedError: ...


class LedgerBook(Protocol):
    """`bitnet_providers.raw.ledger.LedgerWriter`, or the one that several workers share."""

    def sent(self, key: Key, bound: Tokens) -> int: ...
    def answered(self, number: int, tokens: Tokens) -> None: ...
    def unpaid(self, number: int) -> None: ...
    def possibly_paid(self, number: int) -> None: ...
    def refused(self, number: int, reason: str) -> None: ...
    def sync(self) -> None: ...


async def send_booked(
    budget: BudgetBook,
    ledger: LedgerBook,
    key: Key,
    bound: Tokens,
    send: Callable[[], Awaitable[Completion]],
    check: Callable[[Completion], None] = lambda completion: None,
) -> Completion:
    """``await send()``, once; `budget` has set `bound` aside for it. Raises what `send` and `check` raise.

    What `check` refuses for good is written down; it is charged as the answer that it is.
    """
    charged: Tokens | None = None  # as long as nothing else is known
    attempt = ledger.sent(key, bound)
    try:
        completion = await send()
        charged = bound if UNBELIEVABLE in completion.repairs else counted(completion, bound)
        ledger.answered(attempt, charged)
    except RetryableError as error:
        if error.possibly_paid:
            ledger.possibly_paid(attempt)
        else:
            charged = NO_TOKENS
            ledger.unpaid(attempt)
        raise
    except RequestRefusedError as error:
        ledger.refused(attempt, error.why)
        raise
    except ProviderError:
        charged = NO_TOKENS
        ledger.unpaid(attempt)
        raise
    finally:
        budget.settle(bound, charged)
    try:
        check(completion)
    except RequestRefusedError as error:
        ledger.refused(attempt, error.why)
        raise
    return completion


@attrs.define
class Tally:
    """What has come of the requests of this call."""

    answered: int = 0
    tokens: Tokens = NO_TOKENS
    retries: int = 0
    rate_limited: int = 0
    """Answers that said that we ask too much (429)."""
    refused: dict[Key, str] = attrs.field(factory=dict)
    unanswered: dict[Key, str] = attrs.field(factory=dict)
    """Given up after the last retry; a later run asks again."""
    refused_in_a_row: int = 0
    given_up_in_a_row: int = 0
    empty: dict[Key, str] = attrs.field(factory=dict)
    """Of `unanswered` those to which the server did answer, with nothing."""
    empty_in_a_row: int = 0

    def become_sum(self, parts: Iterable["Tally"]) -> None:
        """Of what workers have asked; rows of refusals are each one's own."""
        parts = tuple(parts)
        self.answered = sum(part.answered for part in parts)
        self.tokens = sum((part.tokens for part in parts), NO_TOKENS)
        self.retries = sum(part.retries for part in parts)
        self.rate_limited = sum(part.rate_limited for part in parts)
        for part in parts:
            self.refused |= part.refused
            self.unanswered |= part.unanswered
            self.empty |= part.empty


@attrs.frozen(kw_only=True)
class Desk:
    """What every request needs."""

    queue: WorkQueue
    budget: BudgetBook
    ledger: LedgerBook
    retry: RetryPolicy
    limit: TimeLimit
    stop: Stop
    tally: Tally
    keeper: GroupCommit
    on_notice: Callable[[str], None]
    """Hears once of each server that is given up."""


@attrs.frozen(eq=False)
class Answer:
    """What is kept of a completion."""

    row: pa.RecordBatch
    tokens: int
    """Of the response."""


class _ElsewhereError(Exception):
    """This server has not answered the request; others may. `rest_s`: how long to leave the server alone."""

    def __init__(self, rest_s: float = 0.0) -> None:
        super().__init__()
        self.rest_s = rest_s


async def ask_in_turn(desk: Desk, server: Server) -> None:
    """Take requests from the queue, which others take from as well, until there are none or it stops."""
    queue = desk.queue
    while not server.stop:
        number = await server.pacer.enter()  # before a request is taken: a server that is busy holds none back
        asked = None if server.stop else queue.take(server)
        if asked is None:
            server.pacer.leave()
            if not await queue.more(server):
                return
            continue
        rest_s = 0.0
        try:
            answer = await _ask(desk, server, asked, number)
            if answer is not None:
                await desk.keeper.put(answer.row, answer.tokens)
        except _ElsewhereError as error:
            rest_s = error.rest_s
            queue.give_back(asked)
        except ProviderError as error:  # nothing else will work there either
            if _given_up(desk, server, ProviderError(f"{_name(asked.planned)}: {error.why}", error.fix)):
                queue.give_back(asked)
        finally:
            queue.ended()
        if rest_s:
            await queue.rest(rest_s)


async def _ask(desk: Desk, server: Server, asked: Asked, number: int) -> Answer | None:
    """One request to its end; None where it has no answer (refused, given up, stopped). It has a place of the pacer.

    Raises _ElsewhereError where another server shall answer it.
    """
    tally, each, bound = desk.tally, asked.planned, at_most(asked.planned.request)
    if asked.answered_before is None:
        asked.answered_before = tally.answered
    while True:
        try:
            answer = await _try(desk, server, each, bound, number)
            if answer is not None:
                return answer
        except RequestRefusedError as error:
            _refused(desk, each, error)
            return None
        except RetryableError as error:
            tally.rate_limited += error.overloaded
            if _shall_be_asked_elsewhere(desk, server, asked, number, error):
                tally.retries += 1
                raise _ElsewhereError(desk.retry.wait_s(max(1, server.rounds_in_a_row), error)) from None
            asked.failures += 1
            asked.failed_at.clear()
            if _is_hopeless(desk, server, asked, error):
                return None
            tally.retries += 1
            await server.stop.sleep(desk.retry.wait_s(asked.failures, error))
        if desk.stop:
            return None
        if server.stop:
            raise _ElsewhereError
        number = await server.pacer.enter()


def _shall_be_asked_elsewhere(desk: Desk, server: Server, asked: Asked, number: int, error: RetryableError) -> bool:
    """Whether another server has not failed it yet. Gives this one up where it answers nobody."""
    if not error.answered:  # else it is there
        server.failed(number)
    asked.failed_at.add(server)
    others = desk.queue.others(server)
    if not others:
        return False
    too_long = error.retry_after_s is not None and error.retry_after_s > LONGEST_OBEYED_S
    if too_long or server.seems_down(desk.retry.retries):
        tries = f"it asks to wait {error.retry_after_s:,.0f} s" if too_long else f"{server.rounds_in_a_row} tries"
        _given_up(desk, server, ProviderError(f"{error.why} ({tries})", error.fix))
        return True
    return any(each not in asked.failed_at for each in others)


def _is_hopeless(desk: Desk, server: Server, asked: Asked, error: RetryableError) -> bool:
    """Whether a request that no server has answered is not sent again; stops where none answers anything."""
    tally, each, failures = desk.tally, asked.planned, asked.failures
    if error.retry_after_s is not None and error.retry_after_s > LONGEST_OBEYED_S:
        _outage(desk, each, error, f"the server asks to wait {error.retry_after_s:,.0f} s")
        return True
    if failures <= desk.retry.retries:
        return False
    tally.unanswered[each.key] = error.why
    if error.answered:
        _empty(desk, each, error)
        return True
    tally.given_up_in_a_row += 1
    # No other answer can come; a slow one might.
    alone = server.pacer.at_once == 0 and not any(each.pacer.at_once for each in desk.queue.others(server))
    if tally.answered == asked.answered_before and (alone or tally.given_up_in_a_row >= GIVEN_UP_IN_A_ROW):
        _outage(desk, each, error, f"{failures} tries, and no other request was answered meanwhile")
    return True


def _given_up(desk: Desk, server: Server, error: ProviderError) -> bool:
    """Ask nothing more of a server; False where it was the last one, which ends the collection."""
    others = desk.queue.others(server)
    if not others:
        desk.stop.now(error)
        return False
    if not server.stop:
        server.given_up = error.why
        server.stop.now(error)
        desk.queue.look_again()
        left = f"the other {len(others)} servers" if len(others) > 1 else others[0].name
        desk.on_notice(f"{server.name} is given up, its requests go to {left}: {error.why}")
    return True


async def _try(desk: Desk, server: Server, each: Planned, bound: Tokens, number: int) -> Answer | None:
    """Send once, and give the place back. None: stopped before it was sent. Raises ProviderError and its kinds."""
    try:
        if server.stop:
            return None
        if not await desk.budget.reserve(bound, each.key):
            if not desk.stop:
                desk.stop.now(desk.budget.why_not(bound), failed=False)
            return None
        admission = await server.limits.admit(bound)
        await server.pacer.pause()  # the limits may have taken their time
        if server.stop:
            desk.budget.give_back(bound, each.key)
            server.limits.sent(admission)  # limits may be those of other servers, too: let go of its place
            server.limits.ended(admission, NO_TOKENS)
            return None
        server.limits.sent(admission)
        took = bound  # as long as nothing else is known
        try:
            row: pa.RecordBatch | None = None

            def check(completion: Completion) -> None:
                nonlocal row
                check_answer(completion)
                row = row_batch(journal_row(each, completion))

            completion = await send_booked(
                desk.budget, desk.ledger, each.key, bound, lambda: _send(desk, server, each), check
            )
            took = counted(completion, bound)
            desk.tally.answered += 1
            desk.tally.tokens += took
            desk.tally.given_up_in_a_row = desk.tally.empty_in_a_row = 0
            if completion.finish_reason == "content_filter":
                _refused_again(desk, each, RequestRefusedError(FILTERED, ASK_AGAIN))
            else:
                desk.tally.refused_in_a_row = 0
            server.went_well()
            return Answer(row, len(completion.token_logprobs))
        except RetryableError as error:
            if error.overloaded:
                server.pacer.overloaded(number, error.retry_after_s)
            raise
        finally:
            server.limits.ended(admission, took)
    finally:
        server.pacer.leave()


async def _send(desk: Desk, server: Server, each: Planned) -> Completion:
    """Raises RetryableError for an answer that takes too long."""
    try:
        async with desk.limit.each():
            return await asked_once(server.teacher, each.request)
    except TimeoutError:
        raise RetryableError(
            f"no answer in {desk.limit.seconds:g} s (collect.request_timeout_s)",
            "raise collect.request_timeout_s",
            possibly_paid=True,
        ) from None


def _refused(desk: Desk, each: Planned, error: RequestRefusedError) -> None:
    desk.tally.refused[each.key] = error.why
    _refused_again(desk, each, error)


def _refused_again(desk: Desk, each: Planned, error: RequestRefusedError) -> None:
    """Stops where so many in a row are more likely a fault than refusals."""
    tally = desk.tally
    tally.refused_in_a_row += 1
    if tally.refused_in_a_row >= REFUSED_IN_A_ROW:
        why = f"the teacher refused {tally.refused_in_a_row} requests in a row, the last with: {error.why}"
        again = "run again (--retry-failed where the request itself stays the same)"
        desk.stop.now(ProviderError(f"{_name(each)}: {why}", f"{error.fix or 'mend what is asked'}, and {again}"))


def _empty(desk: Desk, each: Planned, error: RetryableError) -> None:
    tally = desk.tally
    tally.empty[each.key] = error.why
    tally.empty_in_a_row += 1
    if tally.empty_in_a_row >= REFUSED_IN_A_ROW:
        _outage(desk, each, error, f"{tally.empty_in_a_row} requests in a row without an answer that holds anything")


def _outage(desk: Desk, each: Planned, error: RetryableError, why: str) -> None:
    told = f"{_name(each)}: the teacher does not answer: {error.why} ({why}); what it has said is kept"
    reach = "see that the server runs and can be reached, then run again to go on"
    desk.stop.now(ProviderError(told, f"{error.fix}; {reach}" if error.fix else reach))


def _name(each: Planned) -> str:
    return f'[collect] {each.kind} "{each.source_id}"'
