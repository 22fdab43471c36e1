"""What tokens cost, by the manifest's table alone. A price that is not written there is not known."""

from bitnet_providers.collect_config import PriceConfig, PricesConfig
from bitnet_providers.token_counts import Tokens


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
