"""What one answer holds: counts over its positions, and what of it breaks the contract.

T positions, C candidates over all positions (see `bitnet_providers.contract.Completion`).
"""

from collections.abc import Hashable, Iterable

import attrs
import numpy as np
from numpy.typing import NDArray

from bitnet_providers.contract import Completion

MISSING_BELOW = -9000.0
"""Log-probabilities under this are sentinels (−9999 is a documented one), not values."""
ABOVE_ZERO = 1e-3
"""A log-probability may lie this much above 0 by rounding, and a mass this much above 1."""
SAME_LOGPROB = 0.02
"""Nats by which one token's log-probability may differ between the two places where a position gives it."""
GREEDY_TIE = 0.1
"""Nats by which a greedily chosen token may be less likely than the likeliest: rounding, ties."""


@attrs.frozen(kw_only=True)
class AnswerFacts:
    """Counts of one answer; sums of several with `total`."""

    positions: int = 0
    with_candidates: int = 0
    """Positions with at least one usable candidate."""
    candidates: int = 0
    missing: int = 0
    """Candidates without a value: NaN, infinite, or a sentinel."""
    above_zero: int = 0
    """Candidates likelier than certain."""
    most: int = 0
    """Usable candidates of the position that has most."""
    over_asked: int = 0
    """Positions with more candidates than were asked for."""
    unsorted: int = 0
    """Positions whose candidates do not descend."""
    over_one: int = 0
    """Positions whose candidates' probabilities sum to more than 1."""
    max_mass: float = 0.0
    """The greatest of these sums; 0 where there are no candidates."""
    certain: int = 0
    """Positions where one candidate has all probability and no other has any."""
    duplicates: int = 0
    """Candidates that stand twice at one position."""
    comparable: int = 0
    """Positions with candidates whose token can be looked up among them (both by ids or both by bytes)."""
    sampled_among: int = 0
    """Of these: the token is among the candidates."""
    sampled_first: int = 0
    """Of those: no candidate is likelier than the token, by more than a tie."""
    inconsistent: int = 0
    """Of these: the token's own log-probability is not the one that its candidates tell."""
    bytes_checked: int = 0
    """Answers that carry token bytes."""
    bytes_wrong: int = 0
    """Of these: the bytes do not make the text."""
    bytes_unlike_content: int = 0
    """Of these: the bytes that the server gave do not spell the message's content, and so they were not used."""
    sentinels_repaired: int = 0
    """Sentinels that the plugin has taken out, as it says in `Completion.repairs`."""


def inspect_answer(completion: Completion, asked: int) -> AnswerFacts:
    """Count one answer that was asked for `asked` candidates a position."""
    keys, tokens = candidate_keys(completion), token_keys(completion)
    counts: dict[str, int] = dict.fromkeys(
        (field.name for field in attrs.fields(AnswerFacts) if field.name not in ("max_mass",)), 0
    )
    counts["positions"] = len(completion.token_logprobs)
    if completion.token_bytes is not None:
        counts["bytes_checked"] = 1
        spelt = b"".join(completion.token_bytes)
        counts["bytes_wrong"] = int(completion.text not in (spelt, spelt.removeprefix(b" ")))
        counts["bytes_unlike_content"] = int(completion.repairs.get("bytes_wrong", 0))
    counts["sentinels_repaired"] = int(completion.repairs.get("sentinels", 0))
    max_mass = 0.0
    for position, span in enumerate(spans(completion)):
        logprobs = completion.candidate_logprobs[span].astype(np.float64)
        usable = is_usable(logprobs)
        counts["candidates"] += len(logprobs)
        counts["missing"] += int(np.sum(~usable & ~(logprobs > ABOVE_ZERO)))
        counts["above_zero"] += int(np.sum(logprobs > ABOVE_ZERO))
        counts["over_asked"] += len(logprobs) > asked
        if not usable.any():
            continue
        values = logprobs[usable]
        mass = float(np.exp(values).sum())
        max_mass = max(max_mass, mass)
        counts["with_candidates"] += 1
        counts["most"] = max(counts["most"], len(values))
        counts["unsorted"] += bool(np.any(np.diff(values) > 1e-6))
        counts["over_one"] += mass > 1.0 + ABOVE_ZERO
        counts["certain"] += len(values) == 1 and values[0] > -1e-6
        here = keys[span] if keys is not None else []
        counts["duplicates"] += len(here) - len(set(here))
        if keys is None or tokens is None:
            continue
        counts["comparable"] += 1
        own = float(completion.token_logprobs[position])
        at = [float(value) for key, value, fine in zip(here, logprobs, usable, strict=True)
              if fine and key == tokens[position]]  # fmt: skip
        counts["sampled_among"] += bool(at)
        counts["sampled_first"] += bool(at) and max(at) >= values.max() - GREEDY_TIE
        if not np.isnan(own):
            # Two tokens may share their bytes: one of them is the sampled one. One that is not listed can't be
            # likelier than those that are.
            fits = min(abs(own - each) for each in at) <= SAME_LOGPROB if at else own <= values.min() + SAME_LOGPROB
            counts["inconsistent"] += not fits
    return AnswerFacts(**{name: int(count) for name, count in counts.items()}, max_mass=max_mass)


def total(looks: Iterable[AnswerFacts]) -> AnswerFacts:
    """All counts added up; `most` and `max_mass` are the greatest."""
    every = list(looks)
    greatest = {"most", "max_mass"}
    return AnswerFacts(**{
        field.name: (max if field.name in greatest else sum)([getattr(each, field.name) for each in every] or [0])
        for field in attrs.fields(AnswerFacts)
    })  # fmt: skip


def faults(seen: AnswerFacts) -> tuple[str, ...]:
    """What breaks the contract whoever the teacher is, in words; empty: nothing."""
    told = (
        (seen.bytes_wrong, seen.bytes_checked, "answers have token bytes that do not make the answer's text"),
        (seen.over_asked, seen.positions, "positions have more candidates than were asked for"),
        (seen.above_zero, seen.candidates, "candidates have a log-probability above 0"),
        (seen.unsorted, seen.with_candidates, "positions have candidates that do not descend"),
        (seen.over_one, seen.with_candidates, f"positions have a mass above 1 (up to {seen.max_mass:.3f})"),
    )
    return tuple(f"{count} of {of} {words}" for count, of, words in told if count)


def without_value(seen: AnswerFacts) -> tuple[str, ...]:
    """Candidates that a plugin should have left out, in words; empty: none. Readers of raw shards survive them."""
    words = "candidates have no value (NaN, infinite, or a sentinel such as -9999)"
    return (f"{seen.missing} of {seen.candidates} {words}",) if seen.missing else ()


def is_usable(logprobs: NDArray[np.float64]) -> NDArray[np.bool_]:
    """[n] which values are log-probabilities at all."""
    return np.isfinite(logprobs) & (logprobs > MISSING_BELOW) & (logprobs <= ABOVE_ZERO)


def spans(completion: Completion) -> list[slice]:
    """[T] where each position's candidates lie in the flat columns."""
    ends = np.cumsum(completion.candidate_counts)
    return [slice(int(end - count), int(end)) for end, count in zip(ends, completion.candidate_counts, strict=True)]


def token_keys(completion: Completion) -> list[Hashable] | None:
    """[T] what tells the tokens apart, in the same terms as `candidate_keys`; None where there is nothing."""
    if _by_id(completion) and completion.token_ids is not None:
        return [int(each) for each in completion.token_ids]
    return None if completion.token_bytes is None else list(completion.token_bytes)


def candidate_keys(completion: Completion) -> list[Hashable] | None:
    """[C] ids where tokens and candidates have them, else bytes."""
    if _by_id(completion) and completion.candidate_ids is not None:
        return [int(each) for each in completion.candidate_ids]
    return None if completion.candidate_bytes is None else list(completion.candidate_bytes)


def _by_id(completion: Completion) -> bool:
    return completion.token_ids is not None and completion.candidate_ids is not None
