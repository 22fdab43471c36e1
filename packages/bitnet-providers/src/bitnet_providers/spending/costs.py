"""What tokens cost, by the manifest's own prices, and what a collection has used, all runs together."""

import attrs

from bitnet_providers.config import PriceConfig, PricesConfig
from bitnet_providers.spending.token_counts import NO_TOKENS, Tokens


def price_of(prices: PricesConfig | None, model: str | None) -> PriceConfig | None:
    """The price of `model`: its own, else the one for all; None where the table gives neither."""
    if prices is None:
        return None
    if model is not None and model in prices.models:
        return prices.models[model]
    if prices.input_per_million is None or prices.output_per_million is None:
        return None
    return PriceConfig(input_per_million=prices.input_per_million, output_per_million=prices.output_per_million)


def dollars(price: PriceConfig, tokens: Tokens) -> float:
    return (tokens.input * price.input_per_million + tokens.output * price.output_per_million) / 1e6


def shown(amount: float) -> str:
    """``$12.34``, ``$0.0434``, ``$0.000012``"""
    digits = 2 if amount >= 1 or amount == 0 else 4 if amount >= 0.001 else 6
    return f"${amount:,.{digits}f}"


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
