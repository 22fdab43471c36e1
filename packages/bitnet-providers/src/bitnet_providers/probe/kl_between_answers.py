"""The KL between two answers, at the positions where both had the same text before them."""

from collections.abc import Hashable, Mapping

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
