"""The tables below ``[collect]``: budget, prices, dataset, columns."""

import math
from collections.abc import Mapping
from pathlib import Path

import attrs
from attrs.validators import and_, ge, gt, in_, lt, optional

from bitnet_providers.settings import setting

_amount = and_(ge(0.0), lt(math.inf))


@attrs.frozen(kw_only=True)
class BudgetConfig:
    """``[collect.budget]``: what the run may use, with all that was used before. None: no limit."""

    tokens: int | None = setting(None, validator=optional(ge(1)), help="prompt and completion tokens together")
    requests: int | None = setting(None, validator=optional(ge(1)), help="requests sent, failed ones too")
    dollars: float | None = setting(
        None, validator=optional(and_(gt(0.0), lt(math.inf))), help="money, by the prices of [collect.prices]"
    )


@attrs.frozen(kw_only=True)
class PriceConfig:
    """``[collect.prices.models."NAME"]``: what one model costs."""

    input_per_million: float = setting(validator=_amount, help="dollars for a million prompt tokens")
    output_per_million: float = setting(validator=_amount, help="dollars for a million completion tokens")


def _both_or_none(prices: "PricesConfig", field: "attrs.Attribute[float | None]", value: float | None) -> None:
    if (value is None) != (prices.input_per_million is None):
        raise ValueError("give both input_per_million and output_per_million, or neither")


@attrs.frozen(kw_only=True)
class PricesConfig:
    """``[collect.prices]``: what the teacher costs. A model that `models` names has that price, others this one."""

    input_per_million: float | None = setting(
        None, validator=optional(_amount), help="dollars for a million prompt tokens"
    )
    output_per_million: float | None = setting(
        None,
        validator=and_(optional(_amount), _both_or_none),
        help="dollars for a million completion tokens",
    )
    models: Mapping[str, PriceConfig] = setting(attrs.Factory(dict), help="prices by the model's name")


def _name_or_path(dataset: "DatasetConfig", field: "attrs.Attribute[Path | None]", path: Path | None) -> None:
    if (path is None) == (dataset.name is None):
        raise ValueError("give either name (on the Hugging Face Hub) or path (a local folder)")


@attrs.frozen(kw_only=True)
class DatasetConfig:
    """``[collect.dataset]``: a Hugging Face dataset in place of a file; ``[collect.columns]`` names its columns."""

    name: str | None = setting(None, help='on the Hugging Face Hub: "owner/name", or "owner/name:split"')
    path: Path | None = setting(
        None,
        path=True,
        validator=_name_or_path,
        help="a local folder: one that save_to_disk wrote, or one of Parquet, JSON or CSV files",
    )
    split: str | None = setting(None, help='which split (none: the one in name, else "train")')
    subset: str | None = setting(None, help="the dataset's configuration, where it has several")
    revision: str | None = setting(None, help="a commit or tag on the Hub, so that it stays the same")
    gives: str = setting(
        "prompts", validator=in_(("prompts", "texts")), help='"prompts" to sample, or "texts" to score'
    )


@attrs.frozen(kw_only=True)
class ColumnsConfig:
    """``[collect.columns]``: which columns of Parquet files and datasets hold what."""

    prompt: str | None = setting(None, help='a prompt in words (none: "prompt", where there are no messages)')
    messages: str | None = setting(None, help='a conversation (none: "messages", where there is such a column)')
    text: str = setting("text", help="a text to score")
    id: str | None = setting(None, help='the id of a row (none: "id" where there is such a column, else its number)')
    format: str = setting("format", help='what the answer should be, e.g. "json"; the column may be missing')
