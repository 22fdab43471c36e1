"""`bitnet plan`: what a run would do and why, without doing any of it. Loads no torch and calls no teacher."""

import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs
import tomli
from rich.console import Console, RenderableType
from rich.syntax import Syntax
from rich.table import Table
from rich.text import Text

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.manifest.resolve import resolved_toml
from bitnet_cli.pipeline import decision, hub_names
from bitnet_cli.pipeline.decision import Decision, Request, State
from bitnet_cli.pipeline.times import Measured, expected_seconds, measured_speed, shown_time
from bitnet_cli.stages.stage import Stage

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest, Tagged
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.collect.estimate import Estimate
    from bitnet_providers.config import CollectConfig
    from bitnet_providers.contract import Message, TeacherPlugin
    from bitnet_providers.prompts.inputs import Inputs


@attrs.frozen(kw_only=True)
class Plan:
    """What would happen."""

    manifest: "Manifest"
    """With the commits of the Hub's models, as far as they are known without a call."""

    folder: Path | None
    """The run folder; None: known only once the store is opened."""
    decisions: tuple[Decision, ...]
    estimates: tuple[tuple[str, str], ...]
    problems: "tuple[Problem, ...]"
    """What will stop the run, each with its fix."""
    notes: tuple[str, ...]
    """What is worth knowing before."""
    asked: tuple[str, ...] = ()
    """The first prompts and texts as the teacher will see them."""
    seconds: Mapping[str, float] = attrs.field(factory=dict)
    """Stage → seconds, about, of those that will run; empty where the teacher's speed is not known."""

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "run_folder": None if self.folder is None else str(self.folder),
            "problems": [attrs.asdict(each) for each in self.problems],
            "stages": [
                {"stage": each.stage.name, "would": _WORDS[each.action][0], "why": _reason(each)}
                for each in self.decisions
            ],
            "estimates": dict(self.estimates),
            "seconds": {stage: round(seconds, 1) for stage, seconds in self.seconds.items()},
            "asked_first": list(self.asked),
            "notes": list(self.notes),
            "manifest": tomli.loads(resolved_toml(self.manifest)),
        }


def make_plan(manifest: "Manifest", plugins: "Plugins", pipeline: tuple[Stage, ...], request: Request) -> Plan:
    """Decide on every stage as a run would, assuming that each that runs makes something new."""
    folder = known_folder(manifest)
    manifest = hub_names.pinned_manifest(manifest, folder, ask=False)
    pipeline = decision.pipeline_for(pipeline, manifest)
    selected = decision.select(pipeline, manifest, request)
    teacher = None if manifest.teacher is None else plugins.teachers.get(manifest.teacher.kind)
    external = (
        teacher is not None
        and manifest.teacher is not None
        and teacher.capabilities_with(manifest.teacher.options).external
    )
    decisions = decision.decide_all(State(pipeline, selected, manifest, folder, external, request))
    remade = {each.stage.name for each in decisions if each.action == "run"}
    blocked = [Problem(f"{each.stage.name} can't run: {each.reason}") for each in decisions if each.action == "missing"]
    unreadable: list[Problem] = []
    names = {each.stage.name for each in decisions if each.action == "run"}
    inputs = None if hub_names.unfetched_dataset(manifest) else _inputs(manifest, names, unreadable)
    speed = measured_speed(manifest, folder)
    expected = {} if speed is None else expected_seconds(manifest, inputs, speed)
    seconds = {stage: value for stage, value in expected.items() if stage in names}
    estimates = (
        *_estimates(manifest, plugins, teacher, names, folder, inputs, unreadable, external=external),
        *_time(seconds, speed, names, local=teacher is not None and not external),
        *_disk(manifest, names, folder),
    )
    return Plan(
        manifest=manifest,
        folder=folder,
        decisions=tuple(decisions),
        estimates=estimates,
        problems=tuple(
            dict.fromkeys(  # several stages may lack the same folder
                (*_problems(manifest, plugins, decisions), *unreadable, *blocked)
            )
        ),
        notes=(
            *(inputs.notes if inputs else ()),
            *hub_names.notes(manifest),
            *_plain_note(manifest, teacher, inputs),
            *_notes(manifest, None if folder is None or "project" in remade else _mean_length(folder)),
        ),
        asked=tuple(_first_asked(inputs)) if inputs else (),
        seconds=seconds,
    )


def problems_before(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> tuple[Problem, ...]:
    """What will stop a run with these decisions, as far as it can be known before its first stage."""
    unreadable: list[Problem] = []
    _inputs(manifest, {each.stage.name for each in decisions if each.action == "run"}, unreadable)
    return tuple(dict.fromkeys((*_problems(manifest, plugins, decisions), *unreadable)))


def _problems(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> Iterator[Problem]:
    yield from _plugin_problems(manifest, plugins, decisions)
    yield from _target_problems(manifest, plugins, decisions)


def known_folder(manifest: "Manifest") -> Path | None:
    """Where the run folder is or will be, where the store's options say so (`work`, `root`); nothing is made."""
    options = manifest.store.options
    root = getattr(options, "work", None) or getattr(options, "root", None)
    return Path(root) / manifest.run.name if root is not None else None


def _plugin_problems(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> Iterator[Problem]:
    """What the plugins' own checks and their missing extras say; only of what would be used."""
    will_run = {each.stage.name for each in decisions if each.action == "run"}
    asks = any(each.stage.asks_teacher for each in decisions if each.action == "run")
    wanted: list[tuple[str, Tagged, Callable[[str], Any], bool]] = [
        ("store", manifest.store, plugins.require_store, True)
    ]
    wanted += [("teacher", manifest.teacher, plugins.require_teacher, asks)] if manifest.teacher else []
    wanted += [("loss", manifest.loss, plugins.require_loss, "train" in will_run)] if manifest.loss else []
    if manifest.export is not None and "export" in will_run:
        for kind in manifest.export.kinds:
            try:
                plugins.require_exporter(kind)
            except UserError as error:
                yield problem_of(error).within("export.kinds")
    for each in decisions:
        if each.action == "run" and each.stage.check is not None:
            yield from each.stage.check(manifest, plugins)
    for section, tagged, require, used in wanted:
        if not used:
            continue
        try:
            plugin = require(tagged.kind)
        except UserError as error:
            yield problem_of(error).within(f"{section}.kind")
            continue
        check = getattr(plugin, "check", None)
        if check is not None:
            yield from (problem_of(each).within(section) for each in check(tagged.options))


def _target_problems(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> Iterator[Problem]:
    """Whether projection and loss can do with ``collect.targets``; only of what would be used."""
    from bitnet_providers.collect.targets import target_record

    will_run = {each.stage.name for each in decisions if each.action == "run"}
    collect, project, loss = manifest.collect, manifest.project, manifest.loss
    if collect is None:
        return
    if project is not None and "project" in will_run and collect.targets != "topk" and project.alignment == "bytes":
        yield Problem(
            f'collect.targets = "{collect.targets}" goes to the student by id only',
            'set project.alignment = "auto" and the teacher\'s own tokenizer',
        )
    plugin = None if loss is None else plugins.losses.get(loss.kind)
    if loss is not None and plugin is not None and "train" in will_run:
        misfit = plugin.misfit(loss.options, target_record(collect))
        if misfit is not None:
            yield Problem(f'loss.kind = "{loss.kind}" does not fit collect.targets = "{collect.targets}": {misfit}')


def _estimates(
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
    from bitnet_providers.prompts.inputs import baseline_prompts

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


def _inputs(manifest: "Manifest", stages: Set[str], problems: list[Problem]) -> "Inputs | None":
    """What the teacher is asked about; None where it isn't asked, or (a problem) its files can't be read."""
    from bitnet_cli.stages.collect import collect_settings
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.prompts.inputs import load_inputs

    if "collect" not in stages or manifest.collect is None:
        return None
    try:
        return load_inputs(collect_settings(manifest))
    except (ProviderError, UserError) as error:
        problems.append(problem_of(error))
        return None


def _first_asked(inputs: "Inputs") -> Iterator[str]:
    """Two of each kind, a turn each, long ones cut."""
    for prompt in inputs.prompts[:2]:
        yield f"prompt {prompt.id}: " + " | ".join(map(_turn, prompt.messages))
    for text in inputs.texts[:2]:
        scored = [f"scored: {_cut(text.text)}"]
        yield f"text {text.id}: " + " | ".join([*map(_turn, text.messages), *scored])


def _plain_note(manifest: "Manifest", teacher: "TeacherPlugin | None", inputs: "Inputs | None") -> Iterator[str]:
    if teacher is None or manifest.teacher is None or inputs is None or not inputs.prompts:
        return
    if not teacher.capabilities_with(manifest.teacher.options).chat:
        yield "the teacher has no chat template: prompts are asked as plain text, and it goes on with them"


def _turn(message: "Message") -> str:
    return f"{message['role']}: {_cut(message['content'])}"


def _cut(text: str, most: int = 200) -> str:
    """On one line."""
    line = " ".join(text.split())
    return line if len(line) <= most else f"{line[:most]}..."


def _collection(
    manifest: "Manifest", inputs: "Inputs", problems: list[Problem], *, external: bool
) -> Iterator[tuple[str, str]]:
    """What the whole collection takes, on all machines; what the journal has already is known to `bitnet run`."""
    from bitnet_cli.stages.collect import collect_settings
    from bitnet_providers.collect.estimate import estimate, size_text
    from bitnet_providers.collect.plan import requests_of
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


def _time(
    seconds: Mapping[str, float], speed: Measured | None, stages: Set[str], *, local: bool
) -> Iterator[tuple[str, str]]:
    if seconds and speed is not None:
        each = ", ".join(f"{stage} {shown_time(value).removeprefix('about ')}" for stage, value in seconds.items())
        yield "time", f"{shown_time(sum(seconds.values()))} ({each}), by the baseline of run {speed.run}"
    elif local and stages & {"collect", "train"}:
        yield "time", "known once the stage baseline has timed the teacher here"


CHECKPOINT_BYTES = 12
"""Of a parameter: the weight and AdamW's two moments, in fp32."""


def _disk(manifest: "Manifest", stages: Set[str], folder: Path | None) -> Iterator[tuple[str, str]]:
    """What the checkpoints will take, where the start's size is known, and what is free."""
    from bitnet_cli.stages.model_folders import start_parameters

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
    from bitnet_providers.probe.ask import estimate
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


def _mean_length(folder: Path) -> float | None:
    """Tokens of a training document, as the project stage counted them; None: not counted yet."""
    done = run_folder.read_done(folder, "project")
    splits = done.summary.get("splits") if done is not None else None
    counts = splits.get("train") if isinstance(splits, dict) else None
    rows, documents = (counts.get(key) if isinstance(counts, dict) else None for key in ("rows", "documents"))
    return rows / documents if isinstance(rows, int | float) and isinstance(documents, int) and documents else None


def _notes(manifest: "Manifest", mean_length: float | None = None) -> Iterator[str]:
    if getattr(manifest.store.options, "work", None) is not None:
        yield "only the working folder was looked at: what the store holds of this run is pulled when the run starts"
    train = manifest.train
    if train is None or train.flip_fraction >= 1.0 or train.budget_tokens is None:
        return
    length = train.max_seq_len if mean_length is None else min(mean_length, train.max_seq_len)
    most = train.steps * train.accumulation * train.batch_size * length
    flip_at = train.flip_fraction * train.budget_tokens
    at_most = "at most" if mean_length is None else "about"
    if most < flip_at:
        yield (
            f"the run is too short for its flip: activations go to 4 bits after {flip_at:,.0f} tokens "
            f"(train.flip_fraction × train.budget_tokens), and {train.steps:,} steps see {at_most} {most:,.0f}; "
            "raise train.steps, or lower train.budget_tokens or train.flip_fraction"
        )


def show_plan(plan: Plan, console: Console, *, manifest: bool = False) -> None:
    """Print what is wrong, the stages, the estimates, what is worth knowing, and (`manifest`) the resolved manifest."""
    # Outside a terminal nothing is wrapped or cut to an assumed width.
    free = not console.is_terminal
    _show_lines("Problems", plan.problems, "bold red", console)
    where = str(plan.folder) if plan.folder is not None else "known once the store is opened"
    console.print(_heading(f"Stages · run folder: {where}"), soft_wrap=True)
    console.print(_stages(plan, console), soft_wrap=free)
    _show_lines("Estimates", [f"{name}: {value}" for name, value in plan.estimates], "none", console)
    _show_lines("Asked first", plan.asked, "none", console)
    _show_lines("Notes", plan.notes, "yellow", console)
    if manifest:
        console.print(_heading("Manifest, resolved"))
        console.print(_manifest(resolved_toml(plan.manifest), console), soft_wrap=free)


def _show_lines(title: str, lines: Sequence[object], style: str, console: Console) -> None:
    if lines:
        console.print(_heading(title))
        for line in lines:
            console.print(f"  {line}", style=style, markup=False, highlight=False, soft_wrap=True)


def _heading(text: str) -> RenderableType:
    return Text(f"\n{text}", style="bold")


def _manifest(toml: str, console: Console) -> RenderableType:
    return Syntax(toml.strip(), "toml", background_color="default") if console.is_terminal else Text(toml.strip())


_WORDS = {
    "run": ("run", "cyan"),
    "skip": ("skip", "dim"),
    "skip external": ("skip", "yellow"),
    "skip missing": ("skip", "yellow"),
    "missing": ("can't run", "bold red"),
}


def _stages(plan: Plan, console: Console) -> RenderableType:
    if not console.is_terminal:
        lines = [f"  {each.stage.name:<9} {_WORDS[each.action][0]:<10} {_reason(each)}" for each in plan.decisions]
        return Text("\n".join(lines))
    table = Table(box=None, pad_edge=False, padding=(0, 2))
    for column in ("stage", "would", "why"):
        table.add_column(column)
    for each in plan.decisions:
        word, style = _WORDS[each.action]
        table.add_row(each.stage.name, Text(word, style=style), Text(_reason(each)))
    return table


def _reason(each: Decision) -> str:
    return each.reason.removeprefix("skipped: ")
