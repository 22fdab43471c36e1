"""Which target a collection asks for: its request, its record in the metadata, who can give it (docs/targets.md)."""

from typing import Any

from bitnet_providers.config import TOPK, CollectConfig
from bitnet_providers.contract import Capabilities, ProviderError, SampledTarget, Target, TemperedTarget


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
