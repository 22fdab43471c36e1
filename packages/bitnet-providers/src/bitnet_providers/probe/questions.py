"""The probe's questions, and the asking: at most eight requests, a few hundred tokens."""

import asyncio
import statistics
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime

import attrs

from bitnet_providers.contract import (
    Capabilities,
    Completion,
    GenerateRequest,
    ProviderError,
    RetryableError,
    Sampling,
    ScoreRequest,
    Teacher,
    servers_of,
)
from bitnet_providers.probe.compare_servers import as_one
from bitnet_providers.probe.judge import NOT_OFFERED, Answers, Cost, Scoring, judge, judge_scoring
from bitnet_providers.probe.verdict import Verdict
from bitnet_providers.spending.budget import BudgetReachedError
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens, at_most
from bitnet_providers.teachers.common.retry import Retries, RetryPolicy, answered, ask_with_retries
from bitnet_providers.teachers.common.token_bytes import END_OF_TURN

OPEN = ({"role": "user", "content": "Write one sentence about the sea."},)
"""A question with many good answers: its first token has a distribution that temperature visibly changes."""
ODD = ({"role": "user", "content": "Repeat this line exactly: naïve 漢字 🙂 Ω"},)
"""Tokenizers cut these characters inside: only true bytes make the text."""
PLAIN = "The capital of France is Paris, and the capital of Italy is Rome."

NEW_TOKENS = 16
COOLER = 0.5
NARROW = 0.5
SMALLER = (20, 5, 1)
"""Numbers of candidates to try where the declared one is refused."""

RETRIES = RetryPolicy(retries=3, first_wait_s=1.0)

Sleep = Callable[[float], Awaitable[None]]


LONGEST_ANSWER = 16 * NEW_TOKENS
"""Bytes of an answer that is scored, about; tokens are rarely longer than 16."""


@attrs.frozen
class Estimate:
    """What a probe takes at most, where no request has to be repeated."""

    requests: int
    tokens: int
    """Prompt and answer together; a prompt is counted with one token a byte."""
    set_aside: Tokens
    """The worst case that a budget sets aside for all of them."""


def estimate(capabilities: Capabilities, servers: int = 1) -> Estimate:
    """Before anything is asked, of so many `servers_of` a teacher."""
    template = 32  # tokens that a chat template puts around one message
    open_, odd = (len(prompt[0]["content"].encode()) + template for prompt in (OPEN, ODD))
    tokens = open_ + NEW_TOKENS
    if capabilities.max_top_logprobs:
        tokens = 5 * open_ + odd + 5 * NEW_TOKENS + 1
    if capabilities.scoring:
        tokens += open_ + NEW_TOKENS + len(PLAIN)
    bounds = [at_most(request) for request in _questions(capabilities)]
    return Estimate(servers * len(bounds), servers * tokens, sum(servers * bounds, NO_TOKENS))


def _questions(can: Capabilities) -> list[GenerateRequest | ScoreRequest]:
    """What a teacher is asked that keeps what it declares, with the longest answer in the place of the one it gives."""
    top = can.max_top_logprobs
    asked: list[GenerateRequest | ScoreRequest] = [_generate(OPEN, top)]
    if top:
        asked += [_generate(OPEN, top)] * 3 + [_generate(OPEN, top, max_new_tokens=1), _generate(ODD, top)]
    if can.scoring:
        asked += [ScoreRequest("x" * LONGEST_ANSWER, top, OPEN), ScoreRequest(PLAIN, top)]
    return asked


async def probe_teacher(
    teacher: Teacher,
    kind: str,
    *,
    on_progress: Callable[[int, int, str], None] = lambda done, total, note: None,
    sleep: Sleep = asyncio.sleep,
) -> Verdict:
    """Ask an open teacher, and judge. `kind` is its plugin's name.

    One request at a time, so that latencies mean something. A question that the teacher refuses is noted, not fatal; a
    teacher that can't be asked at all (a wrong key, no network) raises ProviderError. Of several servers (`servers_of`)
    each is asked: those that can't be reached are left out from then on, and ProviderError says where two differ.
    """
    servers = servers_of(teacher)
    if len(servers) == 1:
        return (await _probe(_Asker(teacher, sleep, on_progress), kind))[0]
    found: dict[str, tuple[Verdict, Answers]] = {}
    unreached: dict[str, ProviderError] = {}
    for server in servers:
        name = str(server.description["base_url"])
        try:
            found[name] = await _probe(_Asker(server, sleep, on_progress), kind)
        except ProviderError as error:
            if not isinstance(error.__cause__, RetryableError):
                raise
            unreached[name] = error
    if not found:
        raise next(iter(unreached.values()))
    teacher.leave_out(unreached)  # type: ignore[attr-defined]  # who has several servers can do without some
    return as_one(found, {name: error.why for name, error in unreached.items()})


async def _probe(asker: "_Asker", kind: str) -> tuple[Verdict, Answers]:
    """Of one server."""
    can = asker.teacher.capabilities
    asked, at_one = await _first_answer(asker, can.max_top_logprobs)
    if not asked:
        scoring = await _ask_scoring(asker, at_one, asked) if can.scoring else NOT_OFFERED
        empty = dict.fromkeys(("again", "cooler", "greedy", "narrowed", "odd"))
        answers = Answers(
            asked=0, at_one=at_one, cooler_temperature=COOLER, scoring=scoring, refused=tuple(asker.refused), **empty
        )
        return judge(kind, can, answers, asker.cost(), _now()), answers
    again = await asker.maybe(_generate(OPEN, asked), "the same request again")
    cooler = await asker.maybe(_generate(OPEN, asked, temperature=COOLER), f"temperature {COOLER}")
    greedy = await asker.maybe(_generate(OPEN, asked, temperature=0.0), "temperature 0")
    narrowed = await asker.maybe(_generate(OPEN, asked, top_p=NARROW, max_new_tokens=1), f"top_p {NARROW}")
    odd = await asker.maybe(_generate(ODD, asked, temperature=0.0), "a line with odd characters")
    scoring = await _ask_scoring(asker, at_one, asked) if can.scoring else NOT_OFFERED
    answers = Answers(
        asked=asked,
        at_one=at_one,
        again=again,
        cooler=cooler,
        cooler_temperature=COOLER,
        greedy=greedy,
        narrowed=narrowed,
        odd=odd,
        scoring=scoring,
        refused=tuple(asker.refused),
    )
    return judge(kind, can, answers, asker.cost(), _now()), answers


def _generate(
    messages: tuple[dict[str, str], ...],
    top_logprobs: int,
    *,
    temperature: float = 1.0,
    top_p: float = 1.0,
    max_new_tokens: int = NEW_TOKENS,
) -> GenerateRequest:
    return GenerateRequest(messages, Sampling(temperature, top_p, max_new_tokens, seed=1), top_logprobs)


async def _first_answer(asker: "_Asker", declared: int) -> tuple[int, Completion]:
    """The answer at temperature 1 with as many candidates as the teacher takes, and that number.

    Where the declared number is refused, the same without candidates tells whether it is about them at all.
    """
    try:
        return declared, await asker.ask(_generate(OPEN, declared))
    except ProviderError as error:
        if not declared or _is_out_of_reach(error):
            raise
        refusal = error
    try:
        without = await asker.ask(_generate(OPEN, 0))
    except ProviderError:
        raise refusal from None
    asker.refused.append(f"{declared} candidates were refused: {refusal.why}")
    for fewer in SMALLER:
        if fewer < declared:
            answer = await asker.maybe(_generate(OPEN, fewer), f"{fewer} candidates")
            if answer is not None:
                return fewer, answer
    return 0, without


async def _ask_scoring(asker: "_Asker", said: Completion, asked: int) -> Scoring:
    """Score what was said, as it was said, and a plain text."""
    end = str(asker.teacher.description.get("end_of_turn") or "").encode()
    text = said.text.removesuffix(END_OF_TURN).removesuffix(end)
    try:
        whole = text.decode()
    except UnicodeDecodeError:  # cut inside of a character
        whole = text.decode("utf-8", "ignore")
    if not whole:
        return Scoring("unclear", "there was nothing to score: the answer is empty")
    try:
        answer = await asker.ask(ScoreRequest(whole, asked, OPEN))
        plain = await asker.ask(ScoreRequest(PLAIN, asked))
    except ProviderError as error:
        if _is_out_of_reach(error):
            raise
        return Scoring("differs", f"the teacher declares scoring and refuses it: {error.why}")
    return judge_scoring(said, answer, whole.encode(), plain, PLAIN.encode(), asked)


class _Asker:
    """Puts questions one after the other, with patience, and keeps count."""

    def __init__(self, teacher: Teacher, sleep: Sleep, on_progress: Callable[[int, int, str], None]) -> None:
        self.teacher = teacher
        self.refused: list[str] = []
        self._sleep, self._on_progress = sleep, on_progress
        self._expected = estimate(teacher.capabilities).requests
        self._answers: list[Completion] = []
        self._requests = 0

    async def maybe(self, request: GenerateRequest, what: str) -> Completion | None:
        """The answer, or None where the teacher refuses this question; it goes to `refused`."""
        try:
            return await self.ask(request)
        except ProviderError as error:
            if _is_out_of_reach(error):
                raise
            self.refused.append(f"{what} was refused: {error.why}")
            return None

    async def ask(self, request: GenerateRequest | ScoreRequest) -> Completion:
        """Asked again where the provider says so, a few times. Raises ProviderError."""
        self._on_progress(min(len(self._answers), self._expected), self._expected, "probing the teacher")

        async def call() -> Completion:
            self._requests += 1
            if isinstance(request, GenerateRequest):
                return await answered(self.teacher, request)
            return await self.teacher.score(request)

        answer = await ask_with_retries(call, RETRIES, Retries(), sleep=self._sleep)
        self._answers.append(answer)
        return answer

    def cost(self) -> Cost:
        """What was asked so far; tokens as the provider counts them, where it does."""
        return Cost(
            requests=self._requests,
            prompt_tokens=int(sum(each.usage.get("prompt_tokens", each.prompt_tokens) for each in self._answers)),
            completion_tokens=int(
                sum(each.usage.get("completion_tokens", len(each.token_logprobs)) for each in self._answers)
            ),
            latency_s=statistics.median(each.latency_s for each in self._answers),
        )


def _is_out_of_reach(error: ProviderError) -> bool:
    """The server was asked again and again in vain, or the budget is used up: that says nothing of the question."""
    return isinstance(error.__cause__, RetryableError) or isinstance(error, BudgetReachedError)


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
