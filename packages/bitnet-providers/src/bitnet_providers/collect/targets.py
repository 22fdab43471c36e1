"""Which target a collection asks for: its request, and its record in the metadata (docs/targets.md)."""

from typing import Any

from bitnet_providers.config import TOPK, CollectConfig
from bitnet_providers.contract import Capabilities, SampledTarget, Target, TemperedTarget


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
