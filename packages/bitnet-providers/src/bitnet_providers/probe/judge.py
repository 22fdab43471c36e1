"""From the probe's answers to its verdict."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Literal

import attrs
import numpy as np

from bitnet_providers.contract import Capabilities, Completion
from bitnet_providers.probe.compare_answers import Order, repeat_kl, temperature_order, top_p_order
from bitnet_providers.probe.inspect_answer import AnswerFacts, faults, inspect_answer, token_keys, total, without_value
from bitnet_providers.probe.verdict import RULES, State, Verdict

MOST_UNEXPLAINED = 0.2
"""Share of the positions whose token is not what its candidates tell, and of the candidates without a value: more of
either, and the teacher is distrusted."""

TOLERANCE = 0.1
"""Nats, in the mean over the tokens: reading a text at once and one token after the other round differently, the more
so in quantised weights (llama.cpp's Q4_1 on a CPU: 0.02; bf16: 0.01; off by one: 3 and more)."""
FEWEST = 4
"""Tokens that both must have in common for a comparison to say anything."""


@attrs.frozen
class Scoring:
    """What became of the comparison."""

    state: State
    words: str = ""
    """Why, where it does not agree."""
    error: float | None = None
    """Mean absolute difference in nats."""


NOT_OFFERED = Scoring("not offered")


def judge_scoring(
    said: Completion, answer: Completion, text: bytes, plain: Completion, given: bytes, asked: int
) -> Scoring:
    """`answer` is `text` scored behind its prompt: what was `said`, without its end-of-turn token. `plain` is `given`
    scored without a prompt. Both were asked for `asked` candidates a position."""
    return (
        _broken(answer, text, asked)
        or _broken(plain, given, asked)
        or _differs(said, answer)
        or _off(answer, asked)
        or _off(plain, asked)
        or Scoring("agrees", error=_mean_difference(*_in_common(said, answer)))
    )


def _broken(scored: Completion, text: bytes, asked: int) -> Scoring | None:
    """What is wrong with a scored text in itself; None: nothing."""
    if not scored.text.startswith(text):
        return Scoring("differs", "scoring told of another text than it was given (an ignored echo?)")
    if found := faults(inspect_answer(scored, asked)):
        return Scoring("differs", f"scoring: {found[0]}")
    if np.all(np.isnan(scored.token_logprobs)):
        return Scoring("differs", "scoring gave no log-probability")
    return None


def _differs(said: Completion, scored: Completion) -> Scoring | None:
    """Generation against scoring, as far as both cut the text into the same tokens."""
    ours, theirs = _in_common(said, scored)
    error = _mean_difference(ours, theirs)
    if len(ours) < FEWEST or error is None:
        return Scoring("unclear", f"generation and scoring have only {len(ours)} tokens in common")
    if error <= TOLERANCE:
        return None
    for ours_moved, theirs_moved, words in ((ours[:-1], theirs[1:], "late"), (ours[1:], theirs[:-1], "early")):
        moved = _mean_difference(ours_moved, theirs_moved)
        if moved is not None and moved <= TOLERANCE:
            return Scoring("differs", f"scoring gives every log-probability one token too {words}", error)
    return Scoring(
        "differs",
        f"scoring differs from generation by {error:.2f} nats a token (at most {TOLERANCE} is rounding)",
        error,
    )


def _off(scored: Completion, asked: int) -> Scoring | None:
    """Whether the candidates are those of other positions."""
    seen = inspect_answer(scored, asked)
    if seen.inconsistent <= MOST_UNEXPLAINED * seen.comparable:
        return None
    return Scoring(
        "differs",
        f"scoring: at {seen.inconsistent} of {seen.comparable} positions the token's log-probability is not the one "
        "that its candidates tell (one token off?)",
    )


def _in_common(said: Completion, scored: Completion) -> tuple[np.ndarray, np.ndarray]:
    """[n] log-probabilities of the tokens that both begin with."""
    ours, theirs = token_keys(said) or [], token_keys(scored) or []
    pairs = enumerate(zip(ours, theirs, strict=False))
    same = next((n for n, pair in pairs if pair[0] != pair[1]), min(len(ours), len(theirs)))
    return said.token_logprobs[:same], scored.token_logprobs[:same]


def _mean_difference(ours: np.ndarray, theirs: np.ndarray) -> float | None:
    """Over the tokens that both know; None where there are none."""
    difference = np.abs(ours.astype(np.float64) - theirs.astype(np.float64))
    difference = difference[np.isfinite(difference)]
    return float(difference.mean()) if len(difference) else None


MOST_REPEAT_KL = 0.1
"""Nats. Two equal calls that differ by more are not one distribution: batching and mixtures of experts give about 0.001
to 0.01."""
FEWEST_WITH_CANDIDATES = 0.5
"""Share of the positions that must have candidates."""


@attrs.frozen(kw_only=True)
class Answers:
    """What came back; None: the teacher refused the question (`refused` says why)."""

    asked: int
    """Candidates asked for per position."""
    at_one: Completion
    again: Completion | None
    """To the same request as `at_one`."""
    cooler: Completion | None
    """At `cooler_temperature`."""
    cooler_temperature: float
    greedy: Completion | None
    narrowed: Completion | None
    """With a small top-p."""
    odd: Completion | None
    """Of a text whose characters are cut into several tokens."""
    scoring: Scoring
    refused: tuple[str, ...]

    @property
    def generated(self) -> tuple[Completion, ...]:
        every = (self.at_one, self.again, self.cooler, self.greedy, self.narrowed, self.odd)
        return tuple(each for each in every if each is not None)


@attrs.frozen(kw_only=True)
class Cost:
    """What the questions took."""

    requests: int
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    """Median of a request."""


def judge(kind: str, declared: Capabilities, answers: Answers, cost: Cost, probed: str) -> Verdict:
    """Weigh the answers. `kind` is the plugin's name, `probed` the time."""
    seen = total(inspect_answer(each, answers.asked) for each in answers.generated)
    temperature, top_p = _orders(answers)
    repeated = None if answers.again is None else repeat_kl(answers.at_one, answers.again)
    reasons = tuple(_reasons(declared, answers, seen, repeated))
    if not declared.max_top_logprobs:
        reasons = ("it gives no candidates (top log-probabilities), as it declares",)
    return Verdict(
        kind=kind,
        model=answers.at_one.model,
        probed=probed,
        trusted_for_kd=not reasons,
        reasons=reasons,
        notes=tuple(_notes(declared, answers, seen, temperature)),
        max_top_logprobs=seen.most,
        declared_top_logprobs=declared.max_top_logprobs,
        token_bytes=_bytes_verdict(seen),
        temperature=temperature,
        temperature_rule=RULES[temperature],
        top_p=top_p,
        max_mass=seen.max_mass if seen.with_candidates else None,
        with_candidates=_share(seen.with_candidates, seen.positions) if answers.asked else None,
        sampled_among=_share(seen.sampled_among, seen.comparable),
        sentinels=seen.missing + seen.sentinels_repaired,
        duplicates=seen.duplicates,
        repeat_kl=repeated,
        scoring=answers.scoring.state,
        scoring_error=answers.scoring.error,
        scoring_words=answers.scoring.words,
        latency_s=cost.latency_s,
        requests=cost.requests,
        prompt_tokens=cost.prompt_tokens,
        completion_tokens=cost.completion_tokens,
        repairs=_repairs(answers.generated),
    )


def _bytes_verdict(seen: AnswerFacts) -> Literal["valid", "wrong", "none"]:
    if seen.bytes_wrong or seen.bytes_unlike_content:
        return "wrong"
    return "valid" if seen.bytes_checked else "none"


def _orders(answers: Answers) -> tuple[Order, Order]:
    """Of temperature, and of top-p."""
    temperature: Order = "unknown"
    top_p: Order = "unknown"
    if answers.cooler is not None:
        temperature = temperature_order(answers.at_one, answers.cooler, answers.again, answers.cooler_temperature)
    if answers.narrowed is not None:
        top_p = top_p_order(answers.at_one, answers.narrowed, answers.again)
    return temperature, top_p


def _reasons(declared: Capabilities, answers: Answers, seen: AnswerFacts, repeated: float | None) -> Iterator[str]:
    """Why a student must not learn from these candidates."""
    if not seen.with_candidates:
        yield f"it declares up to {declared.max_top_logprobs} candidates and gave none"
        yield from (*faults(seen), *without_value(seen))
        return
    yield from faults(seen)
    if seen.with_candidates < FEWEST_WITH_CANDIDATES * seen.positions:
        yield f"only {seen.with_candidates} of {seen.positions} positions have candidates"
    # Only at temperature 1: after a low temperature it is right that many have no probability left.
    at_one = inspect_answer(answers.at_one, answers.asked)
    if at_one.missing > MOST_UNEXPLAINED * at_one.candidates:
        yield from without_value(at_one)
    if at_one.positions > 3 and at_one.certain == at_one.positions:
        yield "at temperature 1 every token has probability 1, without another candidate: no model says that"
    if seen.inconsistent > MOST_UNEXPLAINED * seen.comparable:
        yield (
            f"at {seen.inconsistent} of {seen.comparable} positions the token's log-probability is not the one that "
            "its candidates tell"
        )
    greedy = AnswerFacts() if answers.greedy is None else inspect_answer(answers.greedy, answers.asked)
    missed = greedy.comparable - greedy.sampled_first
    if missed > MOST_UNEXPLAINED * greedy.comparable:
        yield (
            f"at temperature 0 the token is not the likeliest of its candidates at {missed} of {greedy.comparable} "
            "positions: the log-probabilities are not those of this text"
        )
    if repeated is not None and repeated > MOST_REPEAT_KL:
        yield f"two equal calls differ by {repeated:.2f} nats at the same position (at most {MOST_REPEAT_KL} is noise)"


def _notes(declared: Capabilities, answers: Answers, seen: AnswerFacts, temperature: Order) -> Iterator[str]:
    yield from answers.refused
    if declared.max_top_logprobs and seen.most < declared.max_top_logprobs:
        yield f"it declares up to {declared.max_top_logprobs} candidates per position, and gave at most {seen.most}"
    claimed = declared.logprobs_before_temperature
    if claimed is not None and answers.asked and temperature != "unknown" and claimed != (temperature == "before"):
        yield f"it declares log-probabilities {'before' if claimed else 'after'} temperature; they are {temperature} it"
    if seen.bytes_unlike_content:
        yield (
            f"token bytes are wrong in {seen.bytes_unlike_content} of {seen.bytes_checked} answers: they do not spell "
            "the message's content, or candidates are spelt otherwise than tokens. Tokens are known by their texts "
            "where those spell the content, and where not the text is kept without them"
        )
    candidates = any(each.candidate_bytes is not None for each in answers.generated)
    if declared.token_bytes and seen.candidates and not candidates:
        yield "it declares bytes for its candidates, and gave none"
    ids = any(each.candidate_ids is not None for each in answers.generated)
    if declared.token_ids and seen.candidates and not ids:
        yield "it declares ids for its candidates, and gave none"
    if answers.scoring.state in ("differs", "unclear"):
        yield f"scoring can't be trusted: {answers.scoring.words}"
    yield from without_value(seen)
    if seen.with_candidates < seen.positions and answers.asked and seen.with_candidates:
        yield f"{seen.positions - seen.with_candidates} of {seen.positions} positions have no candidates"


def _share(count: int, of: int) -> float | None:
    return count / of if of else None


def _repairs(completions: Sequence[Completion]) -> dict[str, float]:
    counted: Counter[str] = Counter()
    for each in completions:
        counted.update({name: int(count) for name, count in each.repairs.items()})
    return dict(sorted(counted.items()))
