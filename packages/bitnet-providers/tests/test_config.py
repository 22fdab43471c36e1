"""The tables below [collect]: explained, and strict."""

from pathlib import Path
from typing import Any

import attrs
import pytest

from bitnet_providers.config import BudgetConfig, CollectConfig, ColumnsConfig, DatasetConfig, PriceConfig, PricesConfig
from bitnet_providers.spending.budget import dollars, price_of, shown
from bitnet_providers.spending.token_counts import Tokens


@pytest.mark.parametrize("config", [BudgetConfig, ColumnsConfig, DatasetConfig, PriceConfig, PricesConfig])
def test_every_setting_is_explained(config: type) -> None:
    for field in attrs.fields(config):
        assert field.metadata["help"], field.name
        assert field.metadata["path"] == (field.name == "path"), field.name


@pytest.mark.parametrize(
    ("config", "wrong", "message"),
    [
        (CollectConfig, {"shard": "0/4"}, 'write "1/4" for the first of four machines, up to "4/4": got "0/4"'),
        (CollectConfig, {"shard": "5/4"}, 'got "5/4"'),
        (CollectConfig, {"shard": "half"}, 'got "half"'),
        (CollectConfig, {"prompt_template": "no place"}, "write {prompt} where the prompt goes"),
        (PricesConfig, {"input_per_million": 1.0}, "give both input_per_million and output_per_million, or neither"),
        (PricesConfig, {"output_per_million": 1.0}, "give both input_per_million and output_per_million, or neither"),
        (DatasetConfig, {}, "give either name"),
        (DatasetConfig, {"name": "a/b", "path": Path("c")}, "give either name"),
        (BudgetConfig, {"tokens": 0}, "tokens"),
        (BudgetConfig, {"dollars": float("inf")}, "dollars"),
        (PriceConfig, {"input_per_million": -1.0, "output_per_million": 1.0}, "input_per_million"),
    ],
)
def test_what_can_not_be_meant_is_refused(config: type, wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError) as caught:  # noqa: PT011  the text is looked at
        config(**wrong)
    assert message in str(caught.value)


def test_a_model_has_its_own_price_else_that_of_all_else_none() -> None:
    own = PriceConfig(input_per_million=2.0, output_per_million=8.0)
    only_models = PricesConfig(models={"big": own})
    both = PricesConfig(input_per_million=1.0, output_per_million=4.0, models={"big": own})
    assert price_of(None, "big") is None
    assert price_of(only_models, "big") == price_of(both, "big") == own
    assert price_of(only_models, "small") is None
    assert price_of(both, "small") == price_of(both, None) == PriceConfig(input_per_million=1.0, output_per_million=4.0)
    assert dollars(own, Tokens(500_000, 250_000)) == pytest.approx(3.0)


@pytest.mark.parametrize(
    ("amount", "text"), [(0.0, "$0.00"), (1234.5, "$1,234.50"), (0.0434, "$0.0434"), (0.0000123, "$0.000012")]
)
def test_amounts_say_something(amount: float, text: str) -> None:
    assert shown(amount) == text
