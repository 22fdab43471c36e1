"""What a run will take: completions, tokens, money, disk, and its time as far as it is known. Counted, not asked."""

import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bitnet_cli.errors import Problem, problem_of
from bitnet_cli.pipeline.time_estimates import Measured, shown_time

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.collect.estimate import Estimate
    from bitnet_providers.config import CollectConfig
    from bitnet_providers.contract import TeacherPlugin
    from bitnet_providers.prompts.collection_inputs import Inputs


def estimates(
    manifest: "Manifest",
    plugins: "Plugins",
    teacher: "TeacherPlugin | None",
    stages: Set[str],
    folder: Path | None,
    inputs: "Inputs | None",
    problems: list[Problem],
    *,
    external: bool,
) -> Iterator[tuple[str, str]]:
    """What can be counted cheaply of the stages in question; a file that can't be read goes to `problems`."""
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.prompts.collection_inputs import baseline_prompts

    if "baseline" in stages and manifest.baseline is not None:
        prompts = 0
        try:
            prompts = len(baseline_prompts(manifest.baseline).items)
        except ProviderError as error:
            problems.append(problem_of(error))
        yield "baseline prompts", f"{prompts}, at most {prompts * manifest.baseline.max_new_tokens:,} tokens"
    if inputs is not None:
        yield from _collection(manifest, inputs, problems, external=external)
        yield from _probe(manifest, teacher)
    if "evaluate" in stages and manifest.evaluate is not None:
        from bitnet_cli.stages.benchmark_consent import answers_asked

        for name, answers, tokens in answers_asked(manifest, plugins):
            yield f"benchmark {name}", f"{answers:,} answers of the teacher, at most {tokens:,} tokens"
    if "calibrate" in stages and manifest.calibration is not None:
        from bitnet_cli.stages.calibrate import estimate as calibration_estimate

        yield "calibration", calibration_estimate(manifest, folder)
    if "train" in stages and manifest.train is not None:
        train = manifest.train
        most = train.steps * train.accumulation * train.batch_size * train.max_seq_len
        budget = "" if train.budget_tokens is None else f", budget {train.budget_tokens:,}"
        yield "training", f"{train.steps:,} steps, at most {most:,} tokens{budget}"


def _collection(
    manifest: "Manifest", inputs: "Inputs", problems: list[Problem], *, external: bool
) -> Iterator[tuple[str, str]]:
    """What the whole collection takes, on all machines; what the journal has already is known to `bitnet run`."""
    from bitnet_cli.stages.collect import collect_settings
    from bitnet_providers.collect.estimate import estimate, size_text
    from bitnet_providers.collect.plan_requests import requests_of
    from bitnet_providers.contract import ScoreRequest
    from bitnet_providers.spending.budget import price_problem
    from bitnet_providers.spending.costs import price_of

    config = collect_settings(manifest)
    asked = [(request, samples) for *_, request, samples in requests_of(config, inputs, config.top_k)]
    price = price_of(config.prices, None if manifest.teacher is None else _model(manifest.teacher.options))
    problem = price_problem(config.budget, price)
    if problem is not None:
        problems.append(problem_of(problem))
    scored = sum(isinstance(request, ScoreRequest) for request, _ in asked)
    sampled = sum(samples for _, samples in asked) - scored
    part = "" if config.shard is None else f"; of these part {config.shard}"
    yield "completions to sample", f"{sampled:,}, at most {sampled * config.max_new_tokens:,} tokens{part}"
    yield "texts to score", f"{scored:,}, at most {scored * config.max_text_tokens:,} tokens{part}"
    found = estimate(asked, price)
    for name, value in found.lines():
        if external or price is not None or name != "price":  # a model on this machine has none
            yield f"collection: {name}", value
    candidates = config.draws if config.targets == "sampled" else config.top_k
    size = found.positions * (KD_BYTES + KD_BYTES_A_CANDIDATE * candidates)
    yield "collection: KD shards", f"about {size_text(size)}"
    if external or config.requests_per_minute is not None or config.tokens_per_minute is not None:
        yield "collection: time", _asking_time(found, config, _servers(manifest))


KD_BYTES, KD_BYTES_A_CANDIDATE = 15.4, 2.35
"""Of a position in KD shards, about: measured for K = 12, 16 and 20 (docs/kd-shard.md)."""


def _asking_time(found: "Estimate", config: "CollectConfig", servers: int) -> str:
    """By each server's limits where they are named, else by how long an answer takes."""
    limits = {
        "requests_per_minute": (found.requests, config.requests_per_minute),
        "tokens_per_minute": (found.about.total, config.tokens_per_minute),
    }
    at_each = f" at each of {servers} servers" if servers > 1 else ""
    minutes = {name: needed / limit for name, (needed, limit) in limits.items() if limit is not None}
    if minutes:
        slowest = max(minutes, key=minutes.__getitem__)
        least = shown_time(60 * minutes[slowest] / servers)
        return f"{least} at least, by collect.{slowest} = {limits[slowest][1]:,}{at_each}"
    each = shown_time(found.requests / config.concurrency / servers)
    return f"{each} for each second that an answer takes, with collect.concurrency = {config.concurrency}{at_each}"


def time_lines(
    seconds: Mapping[str, float], speed: Measured | None, stages: Set[str], *, local: bool
) -> Iterator[tuple[str, str]]:
    if seconds and speed is not None:
        each = ", ".join(f"{stage} {shown_time(value).removeprefix('about ')}" for stage, value in seconds.items())
        yield "time", f"{shown_time(sum(seconds.values()))} ({each}), by the baseline of run {speed.run}"
    elif local and stages & {"collect", "train"}:
        yield "time", "known once the stage baseline has timed the teacher here"


CHECKPOINT_BYTES = 12
"""Of a parameter: the weight and AdamW's two moments, in fp32."""


def disk_lines(manifest: "Manifest", stages: Set[str], folder: Path | None) -> Iterator[tuple[str, str]]:
    """What the checkpoints will take, where the start's size is known, and what is free."""
    from bitnet_cli.stages.tokenizer_and_start import start_parameters

    if "train" not in stages or manifest.train is None or folder is None:
        return
    parameters = start_parameters(manifest)
    there = next(place for place in folder.absolute().parents if place.exists())
    free = f"{shutil.disk_usage(there).free / 1e9:.1f} GB free"
    if parameters is None:
        yield "disk", free
        return
    most = min(manifest.train.keep_checkpoints, -(-manifest.train.steps // manifest.train.checkpoint_every)) + 1
    size = parameters * CHECKPOINT_BYTES
    yield "disk", f"{most} checkpoints of {size / 1e9:.1f} GB at most, {free}"


def _probe(manifest: "Manifest", teacher: "TeacherPlugin | None") -> Iterator[tuple[str, str]]:
    """What the probe before the collection sets aside, where there may be one."""
    from bitnet_cli.stages.probe import may_probe
    from bitnet_providers.probe.questions import estimate
    from bitnet_providers.probe.verdict import wants_probe

    if manifest.teacher is None or manifest.collect is None or teacher is None or not may_probe(teacher.name):
        return
    can = teacher.capabilities_with(manifest.teacher.options)
    if wants_probe(manifest.collect, can):
        servers = _servers(manifest)
        cost = estimate(can, servers)
        told = f"{cost.requests} requests, at most {cost.set_aside.total:,} tokens, unless its verdict is known"
        told += f"; {servers} servers, which must agree" if servers > 1 else ""
        yield "probe before it", told


def _servers(manifest: "Manifest") -> int:
    """How many servers the teacher has: each is probed, and asked at its own pace."""
    return len(getattr(manifest.teacher and manifest.teacher.options, "base_urls", ())) or 1


def _model(options: Any) -> str | None:
    """The teacher's model, as most plugins call it; a price may go by it."""
    model = getattr(options, "model", None)
    return model if isinstance(model, str) else None
