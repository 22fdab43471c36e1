"""Asks one request after the other to its end: paced, within limits and budget, written down, retried."""

from collections.abc import Iterator

import attrs
import pyarrow as pa

from bitnet_providers.collect.booked_send import send_booked
from bitnet_providers.collect.concurrency import Pacer
from bitnet_providers.collect.plan import Planned
from bitnet_providers.collect.rate_limits import RateLimits
from bitnet_providers.collect.shards import journal_row
from bitnet_providers.collect.stop import GIVEN_UP_IN_A_ROW, REFUSED_IN_A_ROW, Stop
from bitnet_providers.collect.time_limit import TimeLimit
from bitnet_providers.contract import (
    Completion,
    ProviderError,
    RequestRefusedError,
    RetryableError,
    Teacher,
    check_answer,
)
from bitnet_providers.raw.endings import ASK_AGAIN, FILTERED
from bitnet_providers.raw.group_commit import GroupCommit
from bitnet_providers.raw.keys import Key
from bitnet_providers.raw.ledger import LedgerWriter
from bitnet_providers.raw.shard import row_batch
from bitnet_providers.retry import LONGEST_OBEYED_S, RetryPolicy, asked_once
from bitnet_providers.spending.budget import Budget
from bitnet_providers.spending.tokens import NO_TOKENS, Tokens, at_most, counted


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


@attrs.frozen(kw_only=True)
class Desk:
    """What every request needs."""

    teacher: Teacher
    pacer: Pacer
    limits: RateLimits
    budget: Budget
    ledger: LedgerWriter
    retry: RetryPolicy
    limit: TimeLimit
    stop: Stop
    tally: Tally
    keeper: GroupCommit


@attrs.frozen(eq=False)
class Answer:
    """What is kept of a completion."""

    row: pa.RecordBatch
    tokens: int
    """Of the response."""


async def ask_in_turn(desk: Desk, waiting: Iterator[Planned]) -> None:
    """Take requests from `waiting`, which others take from as well, until there are none or it stops."""
    for each in waiting:
        if desk.stop:
            return
        try:
            answer = await _ask(desk, each)
            if answer is not None:
                await desk.keeper.put(answer.row, answer.tokens)
        except ProviderError as error:  # nothing else will work either
            desk.stop.now(ProviderError(f"{_name(each)}: {error.why}", error.fix))
            return


async def _ask(desk: Desk, each: Planned) -> Answer | None:
    """One request to its end; None where it has no answer (refused, given up, stopped)."""
    tally, bound = desk.tally, at_most(each.request)
    answered_before = tally.answered
    failures = 0
    while not desk.stop:
        try:
            return await _try(desk, each, bound)
        except RequestRefusedError as error:
            _refused(desk, each, error)
            return None
        except RetryableError as error:
            failures += 1
            tally.rate_limited += error.overloaded
            if error.retry_after_s is not None and error.retry_after_s > LONGEST_OBEYED_S:
                _outage(desk, each, error, f"the server asks to wait {error.retry_after_s:,.0f} s")
            elif failures > desk.retry.retries:
                tally.unanswered[each.key] = error.why
                if error.answered:
                    _empty(desk, each, error)
                    return None
                tally.given_up_in_a_row += 1
                alone = desk.pacer.at_once == 0  # no other answer can come; a slow one might
                if tally.answered == answered_before and (alone or tally.given_up_in_a_row >= GIVEN_UP_IN_A_ROW):
                    _outage(desk, each, error, f"{failures} tries, and no other request was answered meanwhile")
                return None
            else:
                tally.retries += 1
                await desk.stop.sleep(desk.retry.wait_s(failures, error))
    return None


async def _try(desk: Desk, each: Planned, bound: Tokens) -> Answer | None:
    """Send once. None: stopped before it was sent. Raises ProviderError and its kinds."""
    number = await desk.pacer.enter()
    try:
        if desk.stop:
            return None
        if not await desk.budget.reserve(bound):
            if not desk.stop:
                desk.stop.now(desk.budget.why_not(bound), failed=False)
            return None
        admission = await desk.limits.admit(bound)
        await desk.pacer.pause()  # the limits may have taken their time
        if desk.stop:
            desk.budget.give_back(bound)
            return None
        desk.limits.sent(admission)
        took = bound  # as long as nothing else is known
        try:
            row: pa.RecordBatch | None = None

            def check(completion: Completion) -> None:
                nonlocal row
                check_answer(completion)
                row = row_batch(journal_row(each, completion))

            completion = await send_booked(desk.budget, desk.ledger, each.key, bound, lambda: _send(desk, each), check)
            took = counted(completion)
            desk.tally.answered += 1
            desk.tally.tokens += took
            desk.tally.given_up_in_a_row = desk.tally.empty_in_a_row = 0
            if completion.finish_reason == "content_filter":
                _refused_again(desk, each, RequestRefusedError(FILTERED, ASK_AGAIN))
            else:
                desk.tally.refused_in_a_row = 0
            desk.pacer.went_well()
            return Answer(row, len(completion.token_logprobs))
        except RetryableError as error:
            if error.overloaded:
                desk.pacer.overloaded(number, error.retry_after_s)
            raise
        finally:
            desk.limits.ended(admission, took)
    finally:
        desk.pacer.leave()


async def _send(desk: Desk, each: Planned) -> Completion:
    """Raises RetryableError for an answer that takes too long."""
    try:
        async with desk.limit.each():
            return await asked_once(desk.teacher, each.request)
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
