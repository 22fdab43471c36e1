"""Several servers of one teacher, each probed: are they one and the same?"""

from collections.abc import Iterator, Mapping

import attrs

from bitnet_providers.contract import ProviderError
from bitnet_providers.probe.compare_answers import Order, repeat_kl
from bitnet_providers.probe.judge import MOST_REPEAT_KL, Answers
from bitnet_providers.probe.verdict import RULES, Verdict

ALIKE = ("model", "max_top_logprobs", "token_bytes", "scoring")
"""Of a verdict: what one model on two servers has in common."""
CAREFUL: tuple[Order, ...] = ("before", "unknown", "after")
"""The verdict of several is that of the last one here."""


def as_one(found: Mapping[str, tuple[Verdict, Answers]], unreached: Mapping[str, str]) -> Verdict:
    """The verdict on a teacher with these servers, by base URL; `unreached`: why others could not be asked.

    Raises ProviderError where two differ: then the one's answers are not the other's.
    """
    (first_name, first), *others = found.items()
    for name, other in others:
        differing = list(differences(first, other))
        if differing:
            raise ProviderError(
                f"teacher.base_urls: {name} is not the same teacher as {first_name}: {'; '.join(differing)}",
                "take one of them out of teacher.base_urls, or serve the same model in the same way on both",
            )
    verdicts = [verdict for verdict, _ in found.values()]
    temperature, top_p = (
        max((getattr(each, name) for each in verdicts), key=CAREFUL.index) for name in ("temperature", "top_p")
    )
    notes = dict.fromkeys(note for each in verdicts for note in each.notes)
    return attrs.evolve(
        first[0],
        temperature=temperature,
        temperature_rule=RULES[temperature],
        top_p=top_p,
        notes=(
            *notes,
            f"{len(verdicts)} servers were asked, and agree",
            *(f"{name} is left out, it could not be asked: {why}" for name, why in unreached.items()),
        ),
        **{
            name: sum(getattr(each, name) for each in verdicts)
            for name in ("requests", "prompt_tokens", "completion_tokens")
        },
    )


def differences(first: tuple[Verdict, Answers], other: tuple[Verdict, Answers]) -> Iterator[str]:
    """What one model on two servers would not differ in."""
    ours, theirs = first[0], other[0]
    for name in ALIKE:
        if getattr(ours, name) != getattr(theirs, name):
            yield f"{name} {getattr(ours, name)!r} there, {getattr(theirs, name)!r} here"
    if ours.trusted_for_kd != theirs.trusted_for_kd:
        yield f"its log-probabilities can't be trusted: {'; '.join(ours.reasons or theirs.reasons)}"
    for name in ("temperature", "top_p"):
        orders = {getattr(ours, name), getattr(theirs, name)}
        if orders == {"before", "after"}:
            yield f"log-probabilities are those before {name} on one, after it on the other"
    for question in ("at_one", "greedy"):
        answers = [getattr(each, question) for _, each in (first, other)]
        if None not in answers:
            kl = repeat_kl(*answers)
            if kl is not None and kl > MOST_REPEAT_KL:
                yield f"the same question has log-probabilities {kl:.2f} nats apart (at most {MOST_REPEAT_KL} is noise)"
                return
