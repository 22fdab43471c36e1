"""The engine: walk the stages, skip what is done, run the rest, keep what is finished."""

import importlib.metadata
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import attrs

from bitnet_cli import run_folder
from bitnet_cli.environment import skip_external
from bitnet_cli.errors import EXIT_USER, Problem, ProblemsError, UserError
from bitnet_cli.manifest import Manifest, resolved_toml
from bitnet_cli.manifest.load import open_manifest
from bitnet_cli.pipeline import consent, fingerprint, hub_names, run_or_skip
from bitnet_cli.pipeline.former_results import (
    before_path,
    discard_attempt,
    discard_paid,
    give_way,
    left_by,
    may_go_on,
    put_back,
    recover,
    set_aside,
    undo,
)
from bitnet_cli.pipeline.make_plan import problems_before
from bitnet_cli.pipeline.pull_and_push import Durable, durable
from bitnet_cli.pipeline.record_environment import record_device, record_environment
from bitnet_cli.pipeline.run_lock import run_lock
from bitnet_cli.pipeline.run_or_skip import Decision, Request, State
from bitnet_cli.plugins.catalog import Plugins
from bitnet_cli.reporter.failure_message import explain, refused
from bitnet_cli.reporter.progress import Reporter
from bitnet_cli.stages import PIPELINE
from bitnet_cli.stages.open_teacher import TeacherHandle
from bitnet_cli.stages.stage import Context, Stage
from bitnet_cli.stages.storage import known_folder, prepare_storage

if TYPE_CHECKING:
    from bitnet_storage.contract import Store

RECORDED_PACKAGES = (
    "bitnet-core",
    "bitnet-providers",
    "bitnet-storage",
    "bitnet-cli",
    "torch",
    "transformers",
    "pyarrow",
)


@attrs.frozen(kw_only=True)
class RunOptions:
    """The options of `bitnet run` beside the manifest."""

    overrides: Sequence[str] = ()
    """The texts of ``--set``."""
    env_file: Path | None = None
    only: tuple[str, ...] = ()
    start: str | None = None
    fresh: bool = False
    """These three as in `Request`."""
    discard_paid: bool = False
    """The teacher's answers of this run are deleted, and asked for again."""
    yes: bool = False
    """Questions have been answered on the command line."""
    again: str = ""
    """The command line that goes on after a failure, where it is not `bitnet run`'s."""


@attrs.frozen(kw_only=True)
class Run:
    """Everything that one `bitnet run` works with."""

    manifest: Manifest
    resolved_toml: str
    plugins: Plugins
    pipeline: tuple[Stage, ...]
    request: Request
    reporter: Reporter
    command: str
    """What the user can type to go on, e.g. ``bitnet run manifests/quickstart.toml``."""
    teacher: TeacherHandle
    options: RunOptions = RunOptions()
    problems: Callable[[Sequence[Decision]], Sequence[Problem]] = lambda decisions: ()
    """What will stop a run with these decisions, beside the stages' own checks."""


def open_run(manifest: Path, options: RunOptions, reporter: Reporter) -> Run:
    """Read the manifest and find what its run works with; nothing is written, and no teacher is asked.

    Puts the variables of `options.env_file` into this process's environment. Raises UserError with every problem.
    """
    opened = open_manifest(manifest, options.overrides, options.env_file)
    opened = attrs.evolve(
        opened, manifest=hub_names.pinned_manifest(opened.manifest, known_folder(opened.manifest), ask=True)
    )
    request = Request(
        only=options.only,
        start=options.start,
        fresh=options.fresh,
        skip_external=skip_external(opened.environment),
    )
    tagged = opened.manifest.teacher
    plugin = None if tagged is None else opened.plugins.require_teacher(tagged.kind)
    return Run(
        manifest=opened.manifest,
        resolved_toml=resolved_toml(opened.manifest),
        plugins=opened.plugins,
        pipeline=run_or_skip.pipeline_for(PIPELINE, opened.manifest),
        request=request,
        reporter=reporter,
        command=options.again or go_on_command(manifest, options.overrides, options.env_file),
        teacher=TeacherHandle(plugin, None if tagged is None else tagged.options, skip_external=request.skip_external),
        options=options,
        problems=lambda decisions: problems_before(opened.manifest, opened.plugins, decisions),
    )


def run_pipeline(run: Run) -> int:
    """Run what has to run. Returns the process's exit code; messages went to the reporter."""
    try:
        selected = run_or_skip.select(run.pipeline, run.manifest, run.request)
    except UserError as error:
        run.reporter.run_failed(refused(error, go_on=run.command))
        return EXIT_USER
    folder: Path | None = None
    stage_name: str | None = None
    clock = time.monotonic()
    try:
        store, folder = prepare_storage(run.manifest, run.plugins)
        with run_lock(folder), durable(store, run.manifest.run.name, folder, run.reporter) as place:
            state = _begin(run, folder, selected)
            barred: frozenset[str] = frozenset()
            recorded = False
            for position, stage in enumerate(selected):
                stage_name = stage.name
                verdict = run_or_skip.decide(state, stage, barred=barred)
                match verdict.action:
                    case "skip":
                        run.reporter.stage_skipped(stage.name, verdict.reason)
                    case "skip external" | "skip missing":
                        run.reporter.stage_skipped(stage.name, verdict.reason, warns=True)
                        barred |= {stage.name}
                    case "missing":
                        raise _missing_input(run, state, stage, verdict)
                    case "run":
                        if not recorded:
                            wanted = {section for each in selected[position:] for section in each.facts.needs}
                            hub_names.fetch(run.manifest, wanted, run.reporter.run_line)
                            _check_all(run, state)  # now also of what was fetched
                            record_environment(folder, run.plugins, anchor=Path.cwd())
                            recorded = True
                        _run_stage(run, store, place, state, verdict)
                if not any(later.asks_teacher for later in selected[position + 1 :]):
                    run.teacher.close()
            if recorded:
                record_device(folder)
            run.reporter.results_in(folder)
            place.push_end()
            run.reporter.run_finished(folder, time.monotonic() - clock)
        return 0
    except (Exception, KeyboardInterrupt) as error:
        only = f" --stages {','.join(run.request.only)}" if run.request.only and not run.options.again else ""
        failure = explain(error, stage=stage_name, go_on=run.command + only, folder=folder)
        run.reporter.run_failed(failure, stage_name)
        return failure.exit_code
    finally:
        _close_quietly(run.teacher)


def _begin(run: Run, folder: Path, selected: tuple[Stage, ...]) -> State:
    """Make the run folder fit to work in: its log, its manifest, and nothing half moved."""
    run_folder.make_folders(folder)
    run.reporter.keep_in(folder / "logs" / "run.log")
    run.reporter.run_started(run.manifest.run.name, folder, [stage.name for stage in selected])
    recover(run.reporter, run.pipeline, folder)
    state = State(run.pipeline, selected, run.manifest, folder, run.teacher.external, run.request)
    _check_all(run, state)
    if run.options.discard_paid:
        discard_paid(run.reporter, run.pipeline, folder)
    _write_if_changed(folder / "manifest.resolved.toml", run.resolved_toml)
    return state


def _check_all(run: Run, state: State) -> None:
    """Raises UserError for what will stop any stage, before the first one starts and anything is paid."""
    lost = {each.name for each in state.selected if run.options.discard_paid and each.keeps_writes}
    decisions = [
        attrs.evolve(each, action="run") if each.stage.name in lost and each.action == "skip" else each
        for each in run_or_skip.decide_all(state, frozenset(lost))
    ]
    for each in decisions:
        if each.action == "missing":
            raise _missing_input(run, state, each.stage, each)
    running = [each.stage for each in decisions if each.action == "run"]
    checks = [stage.check for stage in running if stage.check is not None]
    own = (problem for check in checks for problem in check(run.manifest, run.plugins))
    problems = list(dict.fromkeys((*own, *run.problems(decisions))))
    if problems:
        asks = any(stage.asks_teacher for stage in running)
        headline = "nothing was asked of the teacher: a later stage could not run" if asks else "a stage could not run"
        raise ProblemsError(problems, headline=headline)


def _run_stage(run: Run, store: "Store", place: Durable, state: State, verdict: Decision) -> None:
    """Run one stage, then record it. What it leaves unfinished is resumed only with the same settings and inputs."""
    assert state.folder is not None
    stage, folder = verdict.stage, state.folder
    _check_inputs(run, state, stage)
    identity = verdict.identity or run_or_skip.identify(state, stage)
    started = run_folder.started_path(folder, stage.name)
    aside = before_path(folder, stage.name)
    if not verdict.forced and not stage.keeps_writes and left_by(aside, stage) == identity.fingerprint:
        # What another run set aside is what is wanted now.
        discard_attempt(folder, stage)
        put_back(folder, stage.name)
        done = run_folder.read_done(folder, stage.name)
        if done is not None and run_folder.lost_output(folder, done, stage.unwatched) is None:
            run.reporter.stage_skipped(stage.name, "skipped: what was done before with the same settings is put back")
            return
    resume = not verdict.forced and stage.goes_on_from is not None and may_go_on(folder, stage, identity)
    goes_on = resume and stage.goes_on_from is not None and run_folder.find_files(folder, stage.goes_on_from)
    again = verdict.reason == run_or_skip.STOPPED
    word = "resuming" if goes_on and (again or stage.may_grow) else "again" if again else "running"
    run.reporter.stage_started(stage.name, word, verdict.reason)

    # The order matters: from here on the stage counts as unfinished, until it has succeeded or is undone.
    if not resume:
        if aside.exists():  # that is a finished result, what lies here is an attempt at another
            give_way(run.reporter, folder, stage, folder, identity.fingerprint)
            discard_attempt(folder, stage)
        set_aside(folder, stage.name, () if stage.keeps_writes else stage.writes)
    run_folder.write_record(
        started, {"fingerprint": identity.fingerprint, "since": _now(), "identity": attrs.asdict(identity)}
    )
    run_folder.done_path(folder, stage.name).unlink(missing_ok=True)
    try:
        _do_stage(run, store, place, folder, stage, identity, resume=resume)
    except BaseException:
        undo(run.reporter, folder, stage)
        raise
    started.unlink(missing_ok=True)
    give_way(run.reporter, folder, stage, aside, identity.fingerprint)
    shutil.rmtree(aside, ignore_errors=True)
    place.push_stage(stage.name)


def _check_inputs(run: Run, state: State, stage: Stage) -> None:
    """Raises UserError where what the stage reads is not, byte for byte, what another stage has written."""
    assert state.folder is not None
    for name in (*stage.reads, *stage.reads_if_there):
        maker = state.makers.get(name)
        done = None if maker is None else run_folder.read_done(state.folder, maker.name)
        if maker is None or done is None or name not in done.outputs or name in maker.unwatched:
            continue
        damage = run_folder.damaged_output(state.folder, done.outputs[name])
        if damage is not None:
            raise UserError(
                f"stage {stage.name} can't read what stage {maker.name} made: {damage}",
                f"put the file back as it was, or make it again: {run.command} --from {maker.name}",
            )


def _do_stage(
    run: Run,
    store: "Store",
    place: Durable,
    folder: Path,
    stage: Stage,
    identity: fingerprint.Identity,
    *,
    resume: bool,
) -> None:
    clock = time.monotonic()
    with run.reporter.stage(stage.name) as show_progress:

        def on_progress(done: int, total: int, note: str) -> None:
            show_progress(done, total, note)
            if stage.goes_on_from is not None:  # any other stage starts over: nothing to save yet
                place.push_meanwhile(stage.name)

        summary = stage.run(
            Context(
                manifest=run.manifest,
                folder=folder,
                plugins=run.plugins,
                store=store,
                teacher=run.teacher,
                on_progress=on_progress,
                notify=lambda text: run.reporter.stage_line(stage.name, text),
                confirm=lambda question: consent.ask(
                    question, yes=run.options.yes, otherwise=", or raise that setting"
                ),
                seed=run.manifest.run.seed,
                fingerprint=identity.fingerprint,
                lineage=identity.without(stage.may_grow).fingerprint,
                resume=resume,
            )
        )
    seconds = time.monotonic() - clock
    run_folder.write_done(
        folder,
        run_folder.Done(
            stage=stage.name,
            fingerprint=identity.fingerprint,
            finished=_now(),
            seconds=round(seconds, 3),
            settings=identity.settings,
            files=identity.files,
            formats=identity.formats,
            inputs=identity.inputs,
            outputs={name: fingerprint.digest_outputs(folder, stage, name) for name in stage.writes},
            summary=summary,
            packages=_packages(),
        ),
    )
    run.reporter.stage_done(stage.name, seconds, summary)


def _missing_input(run: Run, state: State, stage: Stage, verdict: Decision) -> UserError:
    """The error for an input that isn't there: name the stages that make it, and the command."""
    why = f"{stage.name} can't run: {verdict.reason}"
    if verdict.redo:
        names = ",".join(each.name for each in run.pipeline if each in state.selected or each.name in verdict.redo)
        return UserError(why, f"do it again with: {run.command} --stages {names}")
    needed: set[str] = set()
    ask = [stage]
    while ask:
        for name in ask.pop().reads:
            maker = state.makers.get(name)
            if maker is not None and maker.name not in needed:
                needed.add(maker.name)
                ask.append(maker)
    names = ",".join(each.name for each in run.pipeline if each.name in needed)
    return UserError(why, f"make it with: {run.command} --stages {names}" if names else "")


def _write_if_changed(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        run_folder.write_text(path, text)


def _packages() -> dict[str, str]:
    versions: dict[str, str] = {}
    for name in RECORDED_PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions


def _now() -> str:
    return datetime.now(UTC).isoformat("T", "seconds")


def _close_quietly(teacher: TeacherHandle) -> None:
    """The run's own outcome is what counts: an error while closing must not hide it."""
    try:
        teacher.close()
    except Exception:
        return


def go_on_command(manifest: Path, overrides: Sequence[str], env_file: Path | None = None) -> str:
    """The command line that continues a run; forcing options are left out, so that it skips what is done."""
    parts = ["bitnet", "run", str(manifest)]
    for override in overrides:
        parts += ["--set", override]
    if env_file is not None:
        parts += ["--env-file", str(env_file)]
    return shlex.join(parts)
