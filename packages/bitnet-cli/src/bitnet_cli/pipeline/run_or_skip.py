"""Whether a stage has to run, and why: shared by `bitnet run` and `bitnet plan`. Looks only, changes nothing."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import attrs

from bitnet_cli import run_folder
from bitnet_cli.errors import Problem, ProblemsError, UserError
from bitnet_cli.pipeline import fingerprint
from bitnet_cli.stages.stage import Stage
from bitnet_cli.wording.did_you_mean import did_you_mean

STOPPED = "was stopped before it finished"


@attrs.frozen(kw_only=True)
class Request:
    """What of the pipeline the user asked for."""

    only: tuple[str, ...] = ()
    """``--stages``; empty: those of the manifest."""
    start: str | None = None
    """``--from``: this stage and all after it are redone."""
    fresh: bool = False
    skip_external: bool = False


@attrs.frozen(kw_only=True)
class Decision:
    """What would happen to a stage."""

    stage: Stage
    action: Literal["run", "skip", "skip external", "skip missing", "missing"]
    """run; skip: it is done; skip external: SKIP_EXTERNAL; skip missing: its input was skipped by SKIP_EXTERNAL;
    missing: an input isn't there, an error."""
    reason: str
    identity: fingerprint.Identity | None = None
    """None where inputs that the fingerprint needs aren't there yet."""
    redo: tuple[str, ...] = ()
    """For "missing": stages that were left out and have to be done again first."""
    forced: bool = False
    """Redone because the user asked for it, so nothing that was left behind is used again."""


@attrs.frozen
class State:
    """What is known of the pipeline while it is walked through."""

    pipeline: tuple[Stage, ...]
    selected: tuple[Stage, ...]
    manifest: Any
    folder: Path | None
    """None: not known without making it; nothing is done then."""
    external_teacher: bool
    request: Request

    @property
    def makers(self) -> dict[str, Stage]:
        """What can be read → the stage that writes it."""
        return {name: stage for stage in self.pipeline for name in stage.writes}


def pipeline_for(pipeline: Sequence[Stage], manifest: Any) -> tuple[Stage, ...]:
    """The stages as they are with this manifest: one that is idle writes nothing, and nobody reads that of it."""
    idle = {stage.name for stage in pipeline if why_idle(stage, manifest) is not None}
    unwritten = {name for stage in pipeline if stage.name in idle for name in stage.writes}
    return tuple(
        attrs.evolve(
            stage,
            reads=tuple(name for name in stage.reads if name not in unwritten),
            reads_if_there=tuple(name for name in stage.reads_if_there if name not in unwritten),
            writes=() if stage.name in idle else stage.writes,
        )
        for stage in pipeline
    )


def why_idle(stage: Stage, manifest: Any) -> str | None:
    return None if stage.idle is None else stage.idle(manifest)


def select(pipeline: Sequence[Stage], manifest: Any, request: Request) -> tuple[Stage, ...]:
    """The chosen stages, in the pipeline's order. Raises UserError for names that aren't there."""
    wanted = request.only or tuple(manifest.run.stages or ())
    asked_by = "--stages" if request.only else "run.stages"
    by_name = {stage.name: stage for stage in pipeline}
    problems = [
        Problem(f'{asked_by}: there is no stage "{name}"', did_you_mean(name, tuple(by_name)))
        for name in wanted
        if name not in by_name
    ]
    for name in wanted:
        absent = absent_sections(by_name[name], manifest) if name in by_name else ()
        problems += [
            Problem(f"stage {name} needs a [{section}] table in the manifest", "add one") for section in absent
        ]
    if problems:
        raise ProblemsError(problems)
    if wanted:
        selected = tuple(stage for stage in pipeline if stage.name in wanted)
    else:
        selected = tuple(stage for stage in pipeline if not absent_sections(stage, manifest))
    if request.start is not None and request.start not in {stage.name for stage in selected}:
        names = tuple(stage.name for stage in selected)
        raise UserError(f'--from: "{request.start}" is no stage of this run', did_you_mean(request.start, names))
    return selected


def absent_sections(stage: Stage, manifest: Any) -> tuple[str, ...]:
    tops = dict.fromkeys(section.partition(".")[0] for section in stage.all_sections())
    return tuple(top for top in tops if getattr(manifest, top, None) is None)


def decide(
    state: State, stage: Stage, *, remade: frozenset[str] = frozenset(), barred: frozenset[str] = frozenset()
) -> Decision:
    """Decide what happens to `stage` now.

    `remade`: stages that will have run before this one (in a plan; in a run they already have). `barred`: stages that
    SKIP_EXTERNAL skipped.
    """
    idle = why_idle(stage, state.manifest)
    if idle is not None:
        return Decision(stage=stage, action="skip", reason=f"skipped: {idle}")
    if stage.asks_teacher and state.external_teacher and state.request.skip_external:
        current = _if_up_to_date(state, stage)
        if current is not None:
            return current
        return Decision(
            stage=stage, action="skip external", reason="skipped: SKIP_EXTERNAL=1, and its teacher is external"
        )
    missing = _missing_inputs(state, stage, remade, barred)
    if missing is not None:
        return missing
    remade_inputs = [
        maker.name
        for name in (*stage.reads, *stage.reads_if_there)
        if (maker := state.makers.get(name)) is not None and maker.name in remade
    ]
    return _run_or_skip(state, stage, remade_inputs)


def decide_all(state: State, remade: frozenset[str] = frozenset()) -> tuple[Decision, ...]:
    """What would happen to every stage, if each that runs makes something new, and those in `remade` do anyhow."""
    barred: frozenset[str] = frozenset()
    decisions = []
    for stage in state.selected:
        verdict = decide(state, stage, remade=remade, barred=barred)
        decisions.append(verdict)
        if verdict.action == "run":
            remade |= {stage.name}
        elif verdict.action in ("skip external", "skip missing"):
            barred |= {stage.name}
    return tuple(decisions)


def _missing_inputs(state: State, stage: Stage, remade: frozenset[str], barred: frozenset[str]) -> Decision | None:
    """The decision for a stage whose inputs aren't there, or are out of date; None: they are fine, or will be."""
    for name in stage.reads:
        maker = state.makers.get(name)
        if maker is not None and maker.name in remade:
            continue
        problem = _missing_input(state, name, maker)
        if problem is None:
            continue
        if maker is not None and maker.name in barred:
            return Decision(
                stage=stage, action="skip missing", reason=f"skipped: {problem}, which SKIP_EXTERNAL=1 skipped"
            )
        return Decision(stage=stage, action="missing", reason=problem)
    stale = _stale_makers(state, stage, remade)
    if not stale:
        return None
    names = [each.name for each in state.pipeline if each.name in stale]
    reads = "was" if len(names) == 1 else "were"
    reason = f"{' and '.join(names)}, which it builds on, {reads} done with other inputs than there are now"
    return Decision(stage=stage, action="missing", reason=reason, redo=tuple(names))


def _run_or_skip(state: State, stage: Stage, remade_inputs: Sequence[str]) -> Decision:
    """Whether a stage whose inputs are there is done with them; `remade_inputs` will have been made again before it."""
    identity = None if remade_inputs or state.folder is None else identify(state, stage)
    done = run_folder.read_done(state.folder, stage.name) if state.folder is not None else None
    asked = _asked_for(state, stage)

    def run(reason: str) -> Decision:
        return Decision(stage=stage, action="run", reason=reason, identity=identity, forced=asked is not None)

    if done is None and state.folder is not None and run_folder.done_path(state.folder, stage.name).exists():
        return run(f"its record stages/{stage.name}/done.json can't be read")
    if done is None:
        stopped = state.folder is not None and run_folder.started_path(state.folder, stage.name).exists()
        return run(STOPPED if stopped else "not done yet")
    if remade_inputs:
        return run(asked or _reads_again(remade_inputs))
    assert identity is not None
    assert state.folder is not None
    if identity.fingerprint != done.fingerprint:
        makers = {name: maker.name for name, maker in state.makers.items()}
        changes = fingerprint.describe_changes(done, identity, makers) or "its record is from another version"
        return run(changes)
    lost = run_folder.lost_output(state.folder, done, stage.unwatched)
    if lost is not None:
        return run(lost)
    if asked is not None:
        if stage.asks_teacher and state.external_teacher and state.request.start != stage.name:
            kept = f"kept: done {_when(done)} and paid for (`--from {stage.name}` asks the teacher again)"
            return Decision(stage=stage, action="skip", reason=kept, identity=identity)
        return run(asked)
    return _skip(stage, done, identity)


def _stale_makers(state: State, stage: Stage, remade: frozenset[str]) -> set[str]:
    """The stages left out whose results `stage` reads, and whose own inputs are no longer those they read."""
    stale: set[str] = set()
    chosen = {each.name for each in state.selected}
    for name in stage.reads:
        maker = state.makers.get(name)
        if maker is None or maker.name in chosen or state.folder is None:
            continue
        done = run_folder.read_done(state.folder, maker.name)
        if done is None:
            continue
        above = _stale_makers(state, maker, remade)
        changed = any(
            (source := state.makers.get(read)) is not None
            and (source.name in remade or _input_digest(state, read) not in (None, done.inputs.get(read)))
            for read in maker.reads
        )
        if above or changed:
            stale |= above | {maker.name}
    return stale


def _if_up_to_date(state: State, stage: Stage) -> Decision | None:
    done = run_folder.read_done(state.folder, stage.name) if state.folder is not None else None
    if done is None or state.folder is None:
        return None
    if any(_missing_input(state, name, state.makers.get(name)) for name in stage.reads):
        return None
    identity = identify(state, stage)
    if identity.fingerprint != done.fingerprint or run_folder.lost_output(state.folder, done, stage.unwatched):
        return None
    return _skip(stage, done, identity)


def _skip(stage: Stage, done: run_folder.Done, identity: fingerprint.Identity) -> Decision:
    reason = f"skipped: done {_when(done)} with the same settings and inputs"
    return Decision(stage=stage, action="skip", reason=reason, identity=identity)


def _asked_for(state: State, stage: Stage) -> str | None:
    """Why the user wants the stage redone even if it is done; None: not asked."""
    if state.request.fresh:
        return "--fresh"
    if state.request.start is not None:
        names = [each.name for each in state.selected]
        if names.index(stage.name) >= names.index(state.request.start):
            return f"--from {state.request.start}"
    return None


def _missing_input(state: State, name: str, maker: Stage | None) -> str | None:
    """Why what `name` stands for can't be read: None where it can."""
    if maker is None:
        there = state.folder is not None and run_folder.find_files(state.folder, name)
        return None if there else f"{name} is missing, and no stage makes it: put it in the run folder"
    missing = f"it reads {name}, which stage {maker.name} makes"
    if state.folder is None:
        return missing
    done = run_folder.read_done(state.folder, maker.name)
    if done is not None and name in done.outputs:
        only_this = attrs.evolve(done, outputs={name: done.outputs[name]})
        lost = run_folder.lost_output(state.folder, only_this)
        return None if lost is None else f"{missing}, and {lost}"
    if run_folder.started_path(state.folder, maker.name).exists():
        return f"{missing}, and that stage was stopped before it finished"
    # Files that were put there by hand (raw shards of another run) are as good as made.
    return None if run_folder.find_files(state.folder, name) else missing


def identify(state: State, stage: Stage) -> fingerprint.Identity:
    """What the stage's result depends on, as things are now."""
    assert state.folder is not None
    settings, places = fingerprint.manifest_slice(state.manifest, stage.sections_of(state.manifest), stage.ignores)
    if stage.paths_as_written:
        settings, places = settings | {name: str(place) for name, place in places.items()}, {}
    inputs = {name: digest for name in (*stage.reads, *stage.reads_if_there) if (digest := _input_digest(state, name))}
    return fingerprint.Identity(
        settings=settings,
        files={name: fingerprint.digest_place(place) for name, place in places.items()},
        formats=dict(stage.formats),
        inputs=inputs,
    )


def _input_digest(state: State, name: str) -> str | None:
    assert state.folder is not None
    maker = state.makers.get(name)
    done = run_folder.read_done(state.folder, maker.name) if maker is not None else None
    if done is not None and name in done.outputs:
        return done.outputs[name].digest
    if maker is not None and run_folder.started_path(state.folder, maker.name).exists():
        return None
    files = {path.relative_to(state.folder).as_posix(): path for path in run_folder.find_files(state.folder, name)}
    return fingerprint.digest_files(files) if files else None


def _when(done: run_folder.Done) -> str:
    return done.finished[:16].replace("T", " ") + " UTC"


def _reads_again(makers: Sequence[str]) -> str:
    names = list(dict.fromkeys(makers))
    return f"reads what {' and '.join(names)} {'makes' if len(names) == 1 else 'make'} again"
