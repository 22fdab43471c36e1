"""What a collection may do with a verdict."""

from bitnet_providers.config import CollectConfig
from bitnet_providers.contract import Capabilities, ProviderError
from bitnet_providers.probe.verdict import Verdict

SEQUENCES = (
    "collect.top_k = 0 collects sequence-level traces instead (the sampled tokens, learned by cross-entropy alone)"
)


def wants_probe(config: CollectConfig, capabilities: Capabilities) -> bool:
    """Whether log-probabilities are asked for that could be wrong."""
    return config.top_k > 0 and capabilities.max_top_logprobs > 0


def check_collection(verdict: Verdict, config: CollectConfig) -> None:
    """Raises ProviderError where a collection as configured would gather log-probabilities that can't be trusted."""
    if config.top_k == 0:
        return
    problem = _problem(verdict, config)
    if problem:
        spent = f"nothing but the probe ({verdict.prompt_tokens + verdict.completion_tokens} tokens) was spent"
        raise ProviderError(f"[collect] KD is refused: {problem} ({spent}; bitnet probe shows the details)")


def _problem(verdict: Verdict, config: CollectConfig) -> str | None:
    who = f'teacher "{verdict.kind}" ({verdict.model})'
    if not verdict.trusted_for_kd:
        return f"the log-probabilities of {who} can't be trusted: {'; '.join(verdict.reasons)}. {SEQUENCES}"
    for setting, value, order in (
        ("temperature", config.temperature, verdict.temperature),
        ("top_p", config.top_p, verdict.top_p),
    ):
        if config.prompts is not None and value != 1.0 and order != "before":
            told = f"are those after {setting}" if order == "after" else f"may be those after {setting}"
            return (
                f"the log-probabilities of {who} {told}, and collect.{setting} is {value:g}: set "
                f"collect.{setting} = 1.0, or {SEQUENCES}"
            )
    if config.texts is not None and verdict.scoring != "agrees":
        return (
            f"{who} does not score texts as it generates them: {verdict.scoring_words or 'it offers no scoring'}: "
            f"take collect.texts out, or {SEQUENCES}"
        )
    return None
