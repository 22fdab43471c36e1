"""What the hosted teachers with their own protocols can do, and where they are."""

from bitnet_providers.contract import Capabilities

ANTHROPIC_URL = "https://api.anthropic.com"
GEMINI_URL = "https://generativelanguage.googleapis.com"

ANTHROPIC_CAPABILITIES = Capabilities(
    max_top_logprobs=0,
    token_ids=False,
    token_bytes=False,
    scoring=False,
    external=True,
    logprobs_before_temperature=None,
)
GEMINI_CAPABILITIES = Capabilities(
    max_top_logprobs=20,  # where the model gives any
    token_ids=False,  # it tells ids, of a vocabulary that nobody can download
    token_bytes=True,
    scoring=False,
    external=True,
    logprobs_before_temperature=None,
)
