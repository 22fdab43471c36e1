"""Which target a collection asks for (docs/targets.md), and what it wants that its teacher does not give."""

from collections.abc import Iterator
from typing import Any

from bitnet_providers.config import TOPK, CollectConfig
from bitnet_providers.contract import Capabilities, ProviderError, SampledTarget, Target, TemperedTarget
from bitnet_providers.prompts.load_prompts import Inputs


def wanted_target(config: CollectConfig) -> Target | None:
    """What each request asks for; None: the top K alone."""
    if config.targets == "sampled":
        return SampledTarget(config.draws, config.draw_temperature)
    if config.targets == "tempered":
        return TemperedTarget(config.log_z_tau)
    return None


def target_record(config: CollectConfig) -> dict[str, Any]:
    """The metadata's ``target``: ``kind`` and what a loss must know of it."""
    match wanted_target(config):
        case SampledTarget(draws, temperature):
            return {"kind": config.targets, "draws": draws, "draw_temperature": temperature}
        case TemperedTarget(tau):
            return {"kind": config.targets, "tau": tau}
    return dict(TOPK)


def candidates_at_most(config: CollectConfig, can: Capabilities) -> int:
    """Candidates that a position has at most."""
    wanted = wanted_target(config)
    return wanted.draws if isinstance(wanted, SampledTarget) else min(config.top_k, can.max_top_logprobs)


def not_given(config: CollectConfig, teacher_kind: str, can: Capabilities) -> Iterator[ProviderError]:
    """What `config` wants and such a teacher does not give, each with its fix."""
    scores = config.texts is not None or (config.dataset is not None and config.dataset.gives == "texts")
    for key, given in (("texts", scores), ("test_texts", config.test_texts is not None)):
        if given and not can.scoring:
            yield ProviderError(
                f'collect.{key} needs a teacher that scores given text, and "{teacher_kind}" does not',
                f"take collect.{key} out, or use another teacher",
            )
    target = target_problem(config, teacher_kind, can)
    if target is not None:
        yield target
    if config.top_p != 1.0 and not can.top_p:
        yield ProviderError(
            f'collect.top_p is {config.top_p}, and "{teacher_kind}" knows no top-p', "set collect.top_p = 1.0"
        )
    if not isinstance(wanted_target(config), SampledTarget) and 0 < can.max_top_logprobs < config.top_k:
        yield ProviderError(
            f'collect.top_k is {config.top_k}, and "{teacher_kind}" gives at most {can.max_top_logprobs} candidates',
            f"set collect.top_k = {can.max_top_logprobs}",
        )


def conversation_problems(inputs: Inputs, can: Capabilities) -> Iterator[ProviderError]:
    """Texts that answer a conversation, which such a teacher can't be shown as one."""
    answers = [] if can.chat else [text.id for text in inputs.texts if text.messages]
    if answers:
        yield ProviderError(
            f'{len(answers):,} texts answer a conversation (the first: "{answers[0]}"), and the teacher has no chat '
            "template to put one into",
            "set teacher.chat_template to a file with one (Jinja), or use an instruct model",
        )


def target_problem(config: CollectConfig, teacher_kind: str, can: Capabilities) -> ProviderError | None:
    """Why this teacher can't be asked for it, with the fix; None where it can."""
    wanted = wanted_target(config)
    if wanted is None:
        return None
    if not can.whole_distribution:
        return ProviderError(
            f'collect.targets = "{config.targets}" needs a teacher that sees its whole distribution, and '
            f'"{teacher_kind}" does not',
            'set collect.targets = "topk", or use teacher.kind = "local"',
        )
    if isinstance(wanted, TemperedTarget) and config.top_k == 0:
        return ProviderError(
            f'collect.targets = "{config.targets}" says more of candidates, and collect.top_k = 0 keeps none',
            "raise collect.top_k",
        )
    return None
