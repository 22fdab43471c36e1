"""What a collection has used, all runs together."""

import attrs

from bitnet_providers.token_counts import NO_TOKENS, Tokens


@attrs.frozen(kw_only=True)
class Spent:
    """What a raw folder has used up to now."""

    requests: int = 0
    """Sent, whatever came of them."""
    tokens: Tokens = NO_TOKENS
    """Counted by the provider, and the worst case of `possibly_paid`."""
    dollars: float | None = None
    """None: some of it has no price."""
    possibly_paid: int = 0
    """Requests whose answer never came though they were sent, and refused ones."""
    possibly_paid_tokens: Tokens = NO_TOKENS
