"""Two answers beside each other: their KL, and what they tell of temperature and top-p.

The KL is taken at the positions where both had the same text before them.
"""

from collections.abc import Hashable, Mapping
from typing import Literal

import numpy as np

from bitnet_providers.contract import Completion
from bitnet_providers.probe.inspect_answer import candidate_keys, is_usable, spans, token_keys

Distribution = dict[Hashable, float]
"""Candidate → log-probability in nats."""


def shared(a: Completion, b: Completion) -> list[tuple[Distribution, Distribution]]:
    """The candidates of both at every position that follows the same tokens, where both have some.

    Both answered the same prompt, so this is the first position and those behind tokens that agree.
    """
    tokens_a, tokens_b = token_keys(a) or [], token_keys(b) or []
    same = next((n for n, pair in enumerate(zip(tokens_a, tokens_b, strict=False)) if pair[0] != pair[1]), None)
    contexts = min(len(tokens_a), len(tokens_b)) if same is None else same + 1
    pairs = [(distribution(a, position), distribution(b, position)) for position in range(contexts)]
    return [(p, q) for p, q in pairs if p and q]


def distribution(completion: Completion, position: int) -> Distribution:
    """The usable candidates of a position; those with one key are added up."""
    keys = candidate_keys(completion)
    if keys is None:
        return {}
    span = spans(completion)[position]
    logprobs = completion.candidate_logprobs[span].astype(np.float64)
    found: Distribution = {}
    for key, value, usable in zip(keys[span], logprobs, is_usable(logprobs), strict=True):
        if usable:
            found[key] = float(np.logaddexp(found[key], value)) if key in found else float(value)
    return found


def bucketed_kl(p: Mapping[Hashable, float], q: Mapping[Hashable, float]) -> float:
    """KL(p‖q) in nats over all candidates of either and one bucket for the rest.

    A candidate that one side does not list gets there what it can have at most: no more than its least listed one, nor
    than what is left.
    """
    union = sorted({*p, *q}, key=repr)
    mass_p, mass_q = _filled(p, union), _filled(q, union)
    return max(0.0, float(np.sum(mass_p * np.log(mass_p / mass_q))))


def _filled(side: Mapping[Hashable, float], union: list[Hashable]) -> np.ndarray:
    listed = {key: float(np.exp(value)) for key, value in side.items()}
    absent = len(union) - len(listed)
    left = max(1e-9, 1.0 - sum(listed.values()))
    at_most = min(min(listed.values()), left / (absent + 1))
    mass = np.array([listed.get(key, at_most) for key in union])
    mass = np.append(mass, max(1e-9, 1.0 - mass.sum()))
    return np.asarray(mass / mass.sum())


def repeat_kl(a: Completion, b: Completion) -> float | None:
    """Mean KL between two answers to equal requests, in nats; None where there is nothing to compare."""
    pairs = shared(a, b)
    return float(np.mean([bucketed_kl(p, q) for p, q in pairs])) if pairs else None


Order = Literal["before", "after", "unknown"]
"""Whether log-probabilities are taken before or after a sampling setting is applied."""


CLEARLY = 4.0
"""How much better one explanation has to fit than the other."""
RESOLUTION = 0.02
"""Nats: providers round; differences below this say nothing."""


def temperature_order(at_one: Completion, cooler: Completion, again: Completion | None, temperature: float) -> Order:
    """Are the log-probabilities those before or after temperature? `cooler` was sampled at `temperature` < 1.

    After temperature T the differences between candidates are 1/T times those at 1, whatever the normalisation over the
    rest: log p_i^(1/T) − log p_j^(1/T) = (log p_i − log p_j)/T. So both hypotheses are compared on log-probabilities
    centred over the candidates that both answers list. "before" and "after" are said only where one fits four times
    better than the other, and where the difference stands out of what two equal calls (`at_one`, `again`) differ by.
    """
    ones, cooled = _centred(at_one, cooler)
    if len(ones) < 3:
        return "unknown"
    if_before, if_after = _rms(cooled - ones), _rms(cooled - ones / temperature)
    noise = max(RESOLUTION, _rms(np.subtract(*_centred(at_one, again))) if again is not None else 0.0)
    if _rms(ones) * (1.0 / temperature - 1.0) < CLEARLY * noise:
        return "unknown"
    if if_before * CLEARLY <= if_after:
        return "before"
    return "after" if if_after * CLEARLY <= if_before else "unknown"


def top_p_order(at_one: Completion, narrowed: Completion, again: Completion | None) -> Order:
    """Are the log-probabilities those before or after top-p? `narrowed` was sampled with a small one.

    After top-p candidates are gone and the others share their probability; before it, nothing has changed.
    """
    pairs = shared(at_one, narrowed)
    if not pairs:
        return "unknown"
    equal = [abs(p[key] - q[key]) for p, q in pairs for key in {*p} & {*q}]
    noise = [abs(p[key] - q[key]) for p, q in shared(at_one, again) for key in {*p} & {*q}] if again else []
    tolerance = max(RESOLUTION, CLEARLY * _rms(np.array(noise)))
    kept = len(equal) >= 0.5 * sum(len(p) for p, _ in pairs)
    return "before" if kept and _rms(np.array(equal)) <= tolerance else "after"


def _centred(a: Completion, b: Completion) -> tuple[np.ndarray, np.ndarray]:
    """[n] log-probabilities of the candidates that both list, less their mean at each shared position."""
    ours: list[float] = []
    theirs: list[float] = []
    for p, q in shared(a, b):
        common = [key for key in p if key in q]
        if len(common) > 1:
            p_mean, q_mean = (float(np.mean([side[key] for key in common])) for side in (p, q))
            ours += [p[key] - p_mean for key in common]
            theirs += [q[key] - q_mean for key in common]
    return np.array(ours), np.array(theirs)


def _rms(values: np.ndarray) -> float:
    return float(np.sqrt(np.mean(np.square(values)))) if len(values) else 0.0
