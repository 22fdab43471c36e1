"""What a run would do and why, without doing any of it, and what will stop it as far as that can be known before.

Loads no torch and calls no teacher.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from pathlib import Path
from typing import TYPE_CHECKING, Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.pipeline import hub_names, run_or_skip
from bitnet_cli.pipeline.estimates import disk_lines, estimates, expected_seconds, measured_speed, time_lines
from bitnet_cli.pipeline.run_or_skip import Decision, Request, State
from bitnet_cli.stages.stage import Stage
from bitnet_cli.stages.storage import known_folder
from bitnet_core.config.student import without_effect

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest, Tagged
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.contract import Message, TeacherPlugin
    from bitnet_providers.prompts.load_prompts import Inputs


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


def make_plan(manifest: "Manifest", plugins: "Plugins", pipeline: tuple[Stage, ...], request: Request) -> Plan:
    """Decide on every stage as a run would, assuming that each that runs makes something new."""
    folder = known_folder(manifest)
    manifest = hub_names.pinned_manifest(manifest, folder, ask=False)
    pipeline = run_or_skip.pipeline_for(pipeline, manifest)
    selected = run_or_skip.select(pipeline, manifest, request)
    teacher = None if manifest.teacher is None else plugins.teachers.get(manifest.teacher.kind)
    external = (
        teacher is not None
        and manifest.teacher is not None
        and teacher.capabilities_with(manifest.teacher.options).external
    )
    decisions = run_or_skip.decide_all(State(pipeline, selected, manifest, folder, external, request))
    remade = {each.stage.name for each in decisions if each.action == "run"}
    blocked = [Problem(f"{each.stage.name} can't run: {each.reason}") for each in decisions if each.action == "missing"]
    unreadable: list[Problem] = []
    names = {each.stage.name for each in decisions if each.action == "run"}
    inputs = None if hub_names.unfetched_dataset(manifest) else asked_inputs(manifest, names, unreadable)
    speed = measured_speed(manifest, folder)
    expected = {} if speed is None else expected_seconds(manifest, inputs, speed)
    seconds = {stage: value for stage, value in expected.items() if stage in names}
    told = (
        *estimates(manifest, plugins, teacher, names, folder, inputs, unreadable, external=external),
        *time_lines(seconds, speed, names, local=teacher is not None and not external),
        *disk_lines(manifest, names, folder),
    )
    return Plan(
        manifest=manifest,
        folder=folder,
        decisions=tuple(decisions),
        estimates=told,
        problems=tuple(
            dict.fromkeys(  # several stages may lack the same folder
                (*problems(manifest, plugins, decisions), *unreadable, *blocked)
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
    if manifest.student is not None:
        yield from without_effect(manifest.student)
    train = manifest.train
    if train is not None:
        yield from train.without_effect()
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


def problems_before(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> tuple[Problem, ...]:
    """What will stop a run with these decisions, as far as it can be known before its first stage."""
    unreadable: list[Problem] = []
    asked_inputs(manifest, {each.stage.name for each in decisions if each.action == "run"}, unreadable)
    return tuple(dict.fromkeys((*problems(manifest, plugins, decisions), *unreadable)))


def problems(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> Iterator[Problem]:
    yield from _plugin_problems(manifest, plugins, decisions)
    yield from _target_problems(manifest, plugins, decisions)


def _plugin_problems(manifest: "Manifest", plugins: "Plugins", decisions: Sequence[Decision]) -> Iterator[Problem]:
    """What the plugins' own checks and their missing extras say; only of what would be used."""
    will_run = {each.stage.name for each in decisions if each.action == "run"}
    asks = any(each.stage.asks_teacher for each in decisions if each.action == "run")
    wanted: list[tuple[str, Tagged, Callable[[str], Any], bool]] = [
        ("store", manifest.store, plugins.require_store, True)
    ]
    wanted += [("teacher", manifest.teacher, plugins.require_teacher, asks)] if manifest.teacher else []
    wanted += [("loss", manifest.loss, plugins.require_loss, "train" in will_run)] if manifest.loss else []
    if manifest.cluster:
        wanted.append(("cluster", manifest.cluster, plugins.require_launcher, "collect" in will_run))
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
    from bitnet_providers.collect.targets_and_capabilities import target_record

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


def asked_inputs(manifest: "Manifest", stages: Set[str], problems: list[Problem]) -> "Inputs | None":
    """What the teacher is asked about; None where it isn't asked, or (a problem) its files can't be read."""
    from bitnet_cli.stages.collect import collect_settings
    from bitnet_providers.contract import ProviderError
    from bitnet_providers.prompts.load_prompts import load_inputs

    if "collect" not in stages or manifest.collect is None:
        return None
    try:
        return load_inputs(collect_settings(manifest))
    except (ProviderError, UserError) as error:
        problems.append(problem_of(error))
        return None
