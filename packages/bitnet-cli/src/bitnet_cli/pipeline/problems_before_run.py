"""What will stop a run, as far as it can be known before its first stage. Loads no torch and calls no teacher."""

from collections.abc import Callable, Iterator, Sequence, Set
from typing import TYPE_CHECKING, Any

from bitnet_cli.errors import Problem, UserError, problem_of
from bitnet_cli.pipeline.run_or_skip import Decision

if TYPE_CHECKING:
    from bitnet_cli.manifest import Manifest, Tagged
    from bitnet_cli.plugins.catalog import Plugins
    from bitnet_providers.prompts.load_prompts import Inputs


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
