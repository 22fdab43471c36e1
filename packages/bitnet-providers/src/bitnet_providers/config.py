"""The manifest's sections that configure the collection: ``[baseline]``, ``[collect]`` and its tables."""

import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import and_, ge, gt, in_, le, lt, optional

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

    name: str | None = setting(None, help='on the Hugging Face Hub: "owner/name", or "owner/name@revision:split"')
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
    """``[collect.columns]``: which columns (or keys) of any file hold what; the usual names are found."""

    prompt: str | None = setting(None, help='a prompt in words (none: "prompt", "instruction", "question", ...)')
    messages: str | None = setting(None, help='a conversation (none: "messages" or "conversations")')
    response: str | None = setting(
        None, help='the answer to a prompt, to score (none: "completion", "response", "output" or "answer")'
    )
    text: str | None = setting(None, help='a text to score (none: "text", where there is no question with its answer)')
    id: str | None = setting(None, help='the id of a row (none: "id" where there is such a column, else its number)')
    format: str = setting("format", help='what the answer should be, e.g. "json"; the column may be missing')


TOPK: Mapping[str, Any] = {"kind": "topk"}
"""The `target` of a raw shard that says nothing of it."""
MAX_LOCAL_CANDIDATES = 1024
"""Candidates per position that the local teacher gives at most."""


BASELINE_PROMPTS = "baseline"
"""``collect.prompts``: the prompts of ``[baseline]``."""


_positive_finite = and_(gt(0.0), lt(math.inf))


@attrs.frozen(kw_only=True)
class BaselineConfig:
    """``[baseline]``: the teacher answers prompts greedily, one at a time, and is timed."""

    prompts: Path = setting(path=True, help="prompts to answer, in a file as for collect.prompts")
    columns: ColumnsConfig = setting(ColumnsConfig(), help="which columns of the file hold what, as [collect.columns]")
    skip_unusable: bool = setting(False, help="leave out rows of the file that can't be used")
    max_prompts: int = setting(8, validator=ge(1), help="how many of them, from the first")
    max_new_tokens: int = setting(48, validator=ge(1), help="tokens an answer has at most")
    warmup: int = setting(1, validator=ge(0), help="answers given before the clock starts")
    temperature: float = setting(0.0, validator=ge(0.0), help="0 is greedy; models that take no temperature need 1.0")
    retries: int = setting(6, validator=ge(0), help="times that a request is sent again after a failure that may pass")
    retry_wait_s: float = setting(1.0, validator=gt(0.0), help="seconds before the first retry; doubled for each more")


def _check_template(_: Any, __: Any, template: str | None) -> None:
    if template is not None and "{prompt}" not in template:
        raise ValueError('write {prompt} where the prompt goes, e.g. "Answer briefly: {prompt}"')


def _check_shard(_: Any, __: Any, shard: str | None) -> None:
    match = re.fullmatch(r"([1-9]\d{0,5})/([1-9]\d{0,5})", shard or "1/1")
    if match is None or int(match[1]) > int(match[2]):
        raise ValueError(f'write "1/4" for the first of four machines, up to "4/4": got "{shard}"')


@attrs.frozen(kw_only=True)
class CollectConfig:
    """``[collect]``: what to ask the teacher. Prompts are sampled, texts are scored; at least one of both is needed."""

    prompts: Path | str | None = setting(
        None,
        path=True,
        words=(BASELINE_PROMPTS,),
        help="prompts to sample answers for (.jsonl, .json, .csv, .parquet, .txt, or a folder of `datasets`), or "
        '"baseline" for those of [baseline]',
    )
    texts: Path | None = setting(None, path=True, help="texts to score, in such a file")
    test_prompts: Path | None = setting(
        None,
        path=True,
        help="prompts for test documents: never trained on nor chosen by; what is published is measured on them",
    )
    test_texts: Path | None = setting(None, path=True, help="texts to score that are such test documents")
    dataset: DatasetConfig | None = setting(None, help="a Hugging Face dataset in place of prompts or texts")
    columns: ColumnsConfig = setting(ColumnsConfig(), help="which columns of any file or dataset hold what")
    skip_unusable: bool = setting(False, help="leave out rows of files that can't be used, and tell how many")
    max_prompts: int | None = setting(None, validator=optional(ge(1)), help="how many prompts, from each file's first")
    max_texts: int | None = setting(None, validator=optional(ge(1)), help="how many texts, from each file's first")
    system_prompt: str | None = setting(
        None, help="put before conversations that have no system message (none: the model's own template decides)"
    )
    prompt_template: str | None = setting(
        None, validator=_check_template, help="put around the last user message; {prompt} stands for it"
    )
    top_k: int = setting(
        20, validator=and_(ge(0), le(MAX_LOCAL_CANDIDATES)), help="candidates kept per position; 0: sampled token only"
    )
    targets: str = setting(
        "topk",
        validator=in_(("topk", "tempered", "sampled")),
        help='what is kept of each distribution: "topk"; "tempered" (top K and log Z); "sampled" (draws); the last two '
        "need a local teacher",
    )
    log_z_tau: float = setting(2.0, validator=_positive_finite, help='tau of log Z, where targets = "tempered"')
    draws: int = setting(
        50,
        validator=and_(ge(1), le(MAX_LOCAL_CANDIDATES)),
        help='tokens drawn per position, where targets = "sampled"',
    )
    draw_temperature: float = setting(
        1.0, validator=_positive_finite, help='t: tokens are drawn in proportion to p^t, where targets = "sampled"'
    )
    temperature: float = setting(1.0, validator=ge(0.0), help="0 is greedy")
    top_p: float = setting(1.0, validator=and_(gt(0.0), le(1.0)), help="nucleus sampling; 1 is off")
    max_new_tokens: int = setting(48, validator=ge(1), help="tokens a sampled answer has at most")
    samples_per_prompt: int = setting(1, validator=ge(1), help="answers drawn for each prompt")
    max_text_tokens: int = setting(512, validator=ge(2), help="tokens of a text that are scored at most")
    concurrency: int = setting(64, validator=ge(1), help="requests under way at once, at most, of each worker")
    completions_per_shard: int = setting(512, validator=ge(1), help="rows of a raw shard at most")
    requests_per_minute: int | None = setting(
        None, validator=optional(ge(1)), help="the provider's limit, if it has one"
    )
    tokens_per_minute: int | None = setting(
        None, validator=optional(ge(1)), help="the provider's limit of prompt and completion tokens, if it has one"
    )
    request_timeout_s: float = setting(
        600.0, validator=and_(gt(0.0), lt(math.inf)), help="seconds after which an answer is given up (a server's only)"
    )
    retries: int = setting(10, validator=ge(0), help="how often a request is sent again after a failure")
    retry_wait_s: float = setting(
        0.5, validator=and_(ge(0.0), lt(math.inf)), help="seconds before the first retry; doubles, to 30 at most"
    )
    retry_failed: bool = setting(False, help="ask again what the teacher refused before (as --retry-failed does)")
    shard: str | None = setting(
        None, validator=_check_shard, help='this machine\'s part of the requests, "1/4" to "4/4" (as --shard does)'
    )
    budget: BudgetConfig = setting(BudgetConfig(), help="a hard limit on tokens, requests and dollars")
    prices: PricesConfig | None = setting(None, help="what a million tokens cost; none: no figure in dollars")
    confirm_above_dollars: float = setting(
        5.0, validator=and_(ge(0.0), lt(math.inf)), help="`bitnet run` asks before a collection that may cost more"
    )
    confirm_above_tokens: int = setting(
        2_000_000, validator=ge(0), help="and, where an external teacher has no price here, before one of more tokens"
    )
