"""What a run will take: completions, tokens, money, disk, and its time as far as it is known. Counted, not asked."""

import json
import math
import shutil
from collections.abc import Iterator, Mapping, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.environment import cpu_name
from bitnet_cli.errors import Problem, problem_of
from bitnet_cli.stages.calibrate import start_of
from bitnet_cli.stages.evaluate import answers_asked
from bitnet_cli.stages.tokenizer_and_start import why_not_calibrated

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.collect.estimate import Estimate
    from bitnet_providers.config import CollectConfig
    from bitnet_providers.contract import TeacherPlugin
    from bitnet_providers.prompts.load_prompts import Inputs


@attrs.frozen
class Measured:
    """A teacher's speed on this machine."""

    tokens_per_second: float
    run: str
    """The run whose baseline timed it."""
    model_folder: str | None = None


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
    from bitnet_providers.prompts.load_prompts import baseline_prompts

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
        for name, answers, tokens in answers_asked(manifest, plugins):
            yield f"benchmark {name}", f"{answers:,} answers of the teacher, at most {tokens:,} tokens"
    if "calibrate" in stages and manifest.calibration is not None:
        yield "calibration", _calibration(manifest, folder)
    if "train" in stages and manifest.train is not None:
        train = manifest.train
        most = train.steps * train.accumulation * train.batch_size * train.max_seq_len
        budget = "" if train.budget_tokens is None else f", budget {train.budget_tokens:,}"
        yield "training", f"{train.steps:,} steps, at most {most:,} tokens{budget}"


def _calibration(manifest: "Manifest", folder: Path | None) -> str:
    """How long it takes, by a run beside this one that has calibrated the same checkpoint on such a machine."""
    assert manifest.calibration is not None
    tokens = manifest.calibration.tokens
    found = () if folder is None else folder.parent.glob(f"*/{run_folder.CALIBRATION}")
    for file in sorted(found, key=lambda file: file.stat().st_mtime, reverse=True):
        measured = run_folder.read_json(file)
        if not isinstance(measured, dict) or (measured.get("machine"), measured.get("start")) != (
            cpu_name(),
            start_of(manifest),
        ):
            continue
        seconds, its_tokens = measured.get("seconds"), measured.get("tokens")
        if isinstance(seconds, int | float) and isinstance(its_tokens, int) and its_tokens > 0:
            minutes = seconds * tokens / its_tokens / 60
            run = file.parent.parent.name
            return f"{tokens:,} tokens, about {minutes:.1f} min ({its_tokens:,} took {seconds:.0f} s in run {run})"
    return f"{tokens:,} tokens; how long that takes is known once it has run here"


def _collection(
    manifest: "Manifest", inputs: "Inputs", problems: list[Problem], *, external: bool
) -> Iterator[tuple[str, str]]:
    """What the whole collection takes, on all machines; what the journal has already is known to `bitnet run`."""
    from bitnet_cli.stages.collect import collect_settings
    from bitnet_providers.collect.estimate import estimate, size_text
    from bitnet_providers.collect.plan_requests import requests_of
    from bitnet_providers.contract import ScoreRequest
    from bitnet_providers.spending.budget import price_of, price_problem

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


# How long stages take, by how fast the teacher was measured to answer here: the baseline stage times its greedy
# answers, one at a time. What everything else costs beside that was measured once: benchmarks/results/quickstart.json
# and cpu_hour.json (two cores, SmolLM2-135M). Such an estimate is good for "minutes or hours", not for more.
SAMPLED, SCORED, CALIBRATED, TRAINED = 4.0, 40.0, 8.0, 4.2
"""Tokens of each kind in the time of one greedy token of the teacher; the last two of a student with all its layers."""


EVALUATED, DOCUMENTS = 5000, 71
"""Greedy tokens in the time of an evaluation of such a student on so many documents, which are about the most."""


FIXED_SECONDS = 20.0
"""Loading, projection, export, report."""


BYTES_A_TOKEN = 4


def measured_speed(manifest: "Manifest", folder: Path | None) -> Measured | None:
    """By this run's baseline, else by the newest of a run beside it with the same teacher and processor."""
    if folder is None or manifest.teacher is None:
        return None
    beside = sorted(folder.parent.glob(f"*/{run_folder.BASELINE}"), key=lambda file: file.stat().st_mtime, reverse=True)
    for file in (folder / run_folder.BASELINE, *beside):
        found, run = run_folder.read_json(file), file.parents[1]
        machine = run_folder.read_json(run / "environment.json")
        if not isinstance(found, dict) or not isinstance(machine, dict) or machine.get("cpu") != cpu_name():
            continue
        speed, teacher = found.get("tokens_per_second"), found.get("teacher") or {}
        if isinstance(speed, int | float) and speed > 0 and _is_teacher(manifest, teacher):
            return Measured(float(speed), run.name, teacher.get("model_folder"))
    return None


def _is_teacher(manifest: "Manifest", described: Mapping[str, Any]) -> bool:
    """Its name in reports is the end of the manifest's, without a revision."""
    assert manifest.teacher is not None
    model = str(getattr(manifest.teacher.options, "model", "")).partition("@")[0].removesuffix(".gguf")
    return bool(model) and Path(model).name == described.get("model")


def expected_seconds(manifest: "Manifest", inputs: "Inputs | None", speed: Measured) -> dict[str, float]:
    """Stage → seconds, about; of a teacher on this machine and what the manifest has a section for."""
    greedy = speed.tokens_per_second
    share = student_share(manifest, speed)
    seconds: dict[str, float] = {}
    if manifest.baseline is not None:
        seconds["baseline"] = manifest.baseline.max_prompts * manifest.baseline.max_new_tokens / greedy
    if inputs is not None and manifest.collect is not None:
        config = manifest.collect
        sampled = len(inputs.prompts) * config.samples_per_prompt * config.max_new_tokens
        scored = sum(min(len(text.text.encode()) / BYTES_A_TOKEN, config.max_text_tokens) for text in inputs.texts)
        seconds["collect"] = (sampled / SAMPLED + scored / SCORED) / greedy
    if manifest.calibration is not None and why_not_calibrated(manifest) is None:
        seconds["calibrate"] = manifest.calibration.tokens / CALIBRATED / greedy * share
    if manifest.train is not None:
        train = manifest.train
        tokens = train.steps * train.accumulation * train.batch_size * mean_tokens(manifest, inputs)
        seconds["train"] = min(tokens, train.budget_tokens or tokens) / TRAINED / greedy * share
    if manifest.evaluate is not None:
        seconds["evaluate"] = EVALUATED * _evaluated_part(manifest, inputs) / greedy * share
    return seconds


def _evaluated_part(manifest: "Manifest", inputs: "Inputs | None") -> float:
    """Held-out documents, of `DOCUMENTS`; a fifth of the time is spent on none of them."""
    if inputs is None or manifest.collect is None or manifest.project is None:
        return 1.0
    documents = len(inputs.prompts) * manifest.collect.samples_per_prompt + len(inputs.texts)
    return min(1.0, max(0.2, documents * manifest.project.holdout_fraction / DOCUMENTS))


def mean_tokens(manifest: "Manifest", inputs: "Inputs | None") -> float:
    """Tokens of a training document, about: a conversation with its answer."""
    longest = manifest.train.max_seq_len if manifest.train is not None else 512
    if inputs is None or manifest.collect is None:
        return longest
    most = manifest.collect.max_new_tokens
    lengths = [sum(len(turn["content"]) for turn in each.messages) / BYTES_A_TOKEN + most for each in inputs.prompts]
    lengths += [
        (sum(len(turn["content"]) for turn in each.messages) + len(each.text)) / BYTES_A_TOKEN for each in inputs.texts
    ]
    return sum(min(each, longest) for each in lengths) / len(lengths) if lengths else longest


def student_share(manifest: "Manifest", speed: Measured) -> float:
    """The student's layers as a share of the teacher's, where it is made of them; else 1."""
    student = manifest.student
    if student is None or not student.layers or speed.model_folder is None:
        return 1.0
    try:
        config = json.loads((Path(speed.model_folder) / "config.json").read_text(encoding="utf-8"))
        return min(1.0, len(student.layers) / int(config["num_hidden_layers"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 1.0


def shown_time(seconds: float) -> str:
    """``about 40 seconds``, ``about 12 minutes``, ``about 3.5 hours``, ``about 12 days``"""
    if seconds < 90:
        return f"about {max(1, round(seconds))} s"
    if seconds < 5400:
        return f"about {seconds / 60:.0f} minutes"
    return f"about {seconds / 3600:.1f} hours" if seconds < 72 * 3600 else f"about {seconds / 86400:,.0f} days"


@attrs.frozen
class Fit:
    """What fits into a time."""

    max_prompts: int | None
    """None: all of them."""
    steps: int
    budget_tokens: int


FEWEST_STEPS = 20


COLLECTION_SHARE = 0.4


def fit_into(minutes: float, manifest: "Manifest", inputs: "Inputs", speed: Measured) -> Fit | None:
    """As many prompts and steps as fit; None: fewer than `FEWEST_STEPS` would.

    The collection gets four tenths of the time at most; training what the other stages leave.
    """
    assert manifest.train is not None
    expected = expected_seconds(manifest, inputs, speed)
    whole = minutes * 60
    collect, limit = expected.get("collect", 0.0), None
    if collect > COLLECTION_SHARE * whole and inputs.prompts:
        limit = max(1, int(len(inputs.prompts) * COLLECTION_SHARE * whole / collect))
        collect *= limit / len(inputs.prompts)
    others = sum(value for stage, value in expected.items() if stage not in ("collect", "train"))
    left = whole - collect - others - FIXED_SECONDS
    tokens = left * TRAINED * speed.tokens_per_second / student_share(manifest, speed)
    steps = int(tokens / (manifest.train.batch_size * mean_tokens(manifest, inputs)))
    return Fit(limit, steps, int(tokens)) if steps >= FEWEST_STEPS else None


def least_minutes(manifest: "Manifest", inputs: "Inputs", speed: Measured) -> int | None:
    """In how many something fits, rounded up by a fifth at most; None: not in a month."""
    tried = (math.ceil(1.2**power) for power in range(59))
    return next((minutes for minutes in tried if fit_into(minutes, manifest, inputs, speed) is not None), None)
