"""What the local teacher can do."""

from bitnet_providers.config import MAX_LOCAL_CANDIDATES
from bitnet_providers.contract import Capabilities

LOCAL_CAPABILITIES = Capabilities(
    max_top_logprobs=MAX_LOCAL_CANDIDATES,
    token_ids=True,
    token_bytes=False,
    scoring=True,
    external=False,
    paced=False,
    whole_distribution=True,
)
