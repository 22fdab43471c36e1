"""A sweep from its manifest to its comparison."""

import os
from collections.abc import Callable, Container, Iterator, Sequence
from pathlib import Path

import attrs

from bitnet_cli.contract import ClusterConfig, Crew, Done, Failed, Launcher, Lost
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import Problem, ProblemsError, UserError
from bitnet_cli.manifest import Manifest
from bitnet_cli.manifest.load import Opened, open_manifest
from bitnet_cli.pipeline import run_or_skip
from bitnet_cli.pipeline.make_plan import make_plan
from bitnet_cli.pipeline.run_or_skip import Request
from bitnet_cli.report.write_report import write_reports
from bitnet_cli.stages import PIPELINE
from bitnet_cli.stages.storage import known_folder
from bitnet_cli.sweeping.schedule import OF_ITS_OWN, Keyed, Schedule, Task, stage_keys
from bitnet_cli.sweeping.variants import Variant, variants
from bitnet_cli.sweeping.worker import Job, OpenSweepWorker


@attrs.frozen(kw_only=True)
class Sweep:
    """Checked, and not begun."""

    opened: Opened
    """The manifest that all have in common."""
    keyed: tuple[Keyed, ...]
    folders: tuple[Path, ...]
    """The run folder of each variant."""
    own: Path
    """The folder of what belongs to all of them."""

    @property
    def comparison(self) -> Path:
        return self.own / "comparison.html"


def open_sweep(manifest: Path, overs: Sequence[str], overrides: Sequence[str], env_file: Path | None) -> Sweep:
    """Read the manifest with every choice of values, and look at each as `bitnet plan` does; starts nothing.

    Raises UserError with everything that is wrong, and with which variant.
    """
    if not overs:
        raise UserError("--over: nothing is swept", "write e.g. --over train.learning_rate=1e-4,2e-4")
    opened = open_manifest(manifest, overrides, env_file)
    base = opened.manifest.run.name
    keyed: list[Keyed] = []
    problems: dict[Problem, list[str]] = {}
    folder = known_folder(opened.manifest)
    if folder is None:
        raise UserError(
            f'store.kind = "{opened.manifest.store.kind}" does not say where its runs are',
            "sweep on a store with a folder on this machine (store.root, or store.work)",
        )
    for each in variants(base, overs):
        try:
            found = open_manifest(manifest, (*overrides, *each.settings), env_file)
        except UserError as error:
            for problem in error.problems:
                problems.setdefault(problem, []).append(each.label)
            continue
        plan = make_plan(found.manifest, found.plugins, PIPELINE, _request(found))
        for problem in plan.problems:
            problems.setdefault(problem, []).append(each.label)
        is_done = all(stage.action == "skip" for stage in plan.decisions)
        keyed.append(Keyed(each, _keys(found.manifest, found), is_done))
    if problems:
        raise ProblemsError([_where(problem, labels) for problem, labels in problems.items()], "nothing was started")
    folders = tuple(folder.with_name(each.variant.name) for each in keyed)
    return Sweep(opened=opened, keyed=tuple(keyed), folders=folders, own=folder.with_name(f"{base}-sweep"))


def _request(opened: Opened) -> Request:
    return Request(skip_external=skip_external(opened.environment))


def _keys(manifest: Manifest, opened: Opened) -> dict[str, str]:
    pipeline = run_or_skip.pipeline_for(PIPELINE, manifest)
    return stage_keys(manifest, pipeline, run_or_skip.select(pipeline, manifest, _request(opened)))


def _where(problem: Problem, labels: Sequence[str]) -> Problem:
    more = f" and {len(labels) - 1} more" if len(labels) > 1 else ""
    return problem.within(f"{labels[0]}{more}")


def planned(sweep: Sweep) -> Iterator[tuple[Variant, tuple[str, ...], dict[str, str]]]:
    """Each variant with the stages that it runs, and those that it takes: stage → variant."""
    owners: dict[tuple[str, str], str] = {}
    for each in sweep.keyed:
        name = each.variant.name
        taken = {stage: owners[stage, key] for stage, key in each.keys.items() if (stage, key) in owners}
        for stage, key in each.keys.items():
            if stage not in OF_ITS_OWN:
                owners.setdefault((stage, key), name)
        yield each.variant, tuple(stage for stage in each.keys if stage not in taken), taken


def launcher_of(opened: Opened) -> Launcher:
    """That of ``[cluster]``; without one variants run here, one after another, with all cores."""
    tagged = opened.manifest.cluster
    if tagged is None:
        cores = float(os.cpu_count() or 1)
        return opened.plugins.require_launcher("local").open(ClusterConfig(workers=1, cpus_per_worker=cores))
    return opened.plugins.require_launcher(tagged.kind).open(tagged.options)


async def run_sweep(sweep: Sweep, job: Job, launcher: Launcher, say: Callable[[str], None]) -> dict[str, str]:
    """Run every variant; returns why some failed, by name. One that fails ends no other. Raises UserError."""
    schedule = Schedule(sweep.keyed)
    told: set[str] = set()
    job.folder.mkdir(parents=True, exist_ok=True)
    for each in sweep.keyed:
        if each.is_done:
            say(f"{each.variant.name}: done before")
    if all(each.is_done for each in sweep.keyed):
        return {}
    async with launcher.launch(Crew(open_worker=OpenSweepWorker(job), logs=job.folder)) as team:
        async for event in team.run(schedule.next_task):
            match event:
                case Done(_, Task() as task, _):
                    schedule.ended(task, None)
                    say(f"{task.variant.name}: {', '.join(task.stages)} done")
                case Failed(_, Task() as task, why, fix):
                    schedule.ended(task, str(Problem(why, fix)))
                case Lost(_, tasks, why):
                    say(why)
                    for task in tasks:
                        schedule.put_back(task)
            for name in schedule.failed.keys() - told:
                told.add(name)
                say(f"{name} failed: {schedule.failed[name]}")
    return dict(schedule.failed)


def compare(sweep: Sweep, failed: Container[str]) -> tuple[str, ...]:
    """Write the page on those that are done; what came of it, in lines. Raises UserError where it can't be written."""
    folders = [folder for folder in sweep.folders if folder.name not in failed]
    if len(folders) < 2:
        return ()
    said, file = write_reports(folders, sweep.comparison)
    return said, f"comparison: {file}"
