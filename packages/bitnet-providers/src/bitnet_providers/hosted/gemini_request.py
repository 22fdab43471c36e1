"""What both of Google's SDKs are told in the same way."""

from bitnet_providers.contract import Message, ProviderError
from bitnet_providers.hosted.capabilities import GEMINI_CAPABILITIES


def role_of(turn: Message) -> str:
    return "model" if turn["role"] == "assistant" else "user"


def check_candidates(top_logprobs: int, who: str) -> None:
    """Raises ProviderError for more than the API gives."""
    most = GEMINI_CAPABILITIES.max_top_logprobs
    if top_logprobs > most:
        raise ProviderError(f"{who} gives at most {most} candidates, not {top_logprobs}: set collect.top_k = {most}")
