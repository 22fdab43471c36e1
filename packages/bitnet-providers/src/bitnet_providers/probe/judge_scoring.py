"""Does a teacher's scoring tell of the same tokens the same as its generation did?"""

from typing import Literal

import attrs
import numpy as np

from bitnet_providers.contract import Completion
from bitnet_providers.probe.inspect_answer import MOST_UNEXPLAINED, faults, inspect_answer, token_keys

State = Literal["agrees", "differs", "unclear", "not offered"]

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
