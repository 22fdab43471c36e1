"""A stage's former results: gone on from, kept while it is redone, set aside for other settings, put back."""

import shutil
from collections.abc import Sequence
from pathlib import Path

import attrs

from bitnet_cli import run_folder
from bitnet_cli.pipeline import fingerprint
from bitnet_cli.reporter.progress import Reporter
from bitnet_cli.stages.stage import Stage


def left_by(place: Path, stage: Stage) -> str | None:
    """The fingerprint in the records of `place`, of a finished stage or else of a stopped one."""
    done = run_folder.read_done(place, stage.name)
    if done is not None:
        return done.fingerprint
    value = run_folder.read_record(run_folder.started_path(place, stage.name))
    return None if value is None else str(value.get("fingerprint"))


def may_go_on(folder: Path, stage: Stage, wanted: fingerprint.Identity) -> bool:
    """Whether what lies there may belong to this very work, or to less of it. Where no record tells, the stage sees."""
    done = run_folder.read_done(folder, stage.name)
    if done is not None:
        same = bool(stage.may_grow) and done.fingerprint == wanted.fingerprint  # some of it is lost
        return same or fingerprint.is_more(attrs.asdict(done), wanted, stage.may_grow)
    found = left_by(folder, stage)
    if found is None or found == wanted.fingerprint:
        return True
    before = (run_folder.read_record(run_folder.started_path(folder, stage.name)) or {}).get("identity")
    return isinstance(before, dict) and fingerprint.is_more(before, wanted, stage.may_grow)


def give_way(reporter: Reporter, folder: Path, stage: Stage, place: Path, wanted: str) -> None:
    """Keep what other settings than `wanted` have made and lies in `place`, laid out like the run folder; name it."""
    found = left_by(place, stage) or ""
    files = [path for name in stage.writes for path in run_folder.find_files(place, name)]
    if not stage.keeps_former or not files or found == wanted:
        return
    target = set_aside_path(folder, found)
    records = [run_folder.done_path(place, stage.name), run_folder.started_path(place, stage.name)]
    for path in (*files, *filter(Path.exists, records)):
        moved = target / path.relative_to(place)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.replace(moved)
    reporter.stage_line(stage.name, f"what other settings had made is set aside in {target}", "yellow")


def discard_attempt(folder: Path, stage: Stage) -> None:
    for name in () if stage.keeps_writes else stage.writes:
        run_folder.delete_files(folder, name)
    for path in (run_folder.done_path(folder, stage.name), run_folder.started_path(folder, stage.name)):
        path.unlink(missing_ok=True)


def undo(reporter: Reporter, folder: Path, stage: Stage) -> None:
    """After a failure: put back what was there before, unless the stage has got somewhere and can go on from that."""
    aside = before_path(folder, stage.name)
    if not aside.exists():
        return
    if stage.keeps_writes:
        done = run_folder.read_done(aside, stage.name)
        if done is not None and _is_untouched(folder, stage, done):
            run_folder.done_path(aside, stage.name).replace(run_folder.done_path(folder, stage.name))
        shutil.rmtree(aside, ignore_errors=True)
    elif stage.goes_on_from is not None and run_folder.find_files(folder, stage.goes_on_from):
        reporter.stage_line(
            stage.name, f"what it had made before is kept in {aside}, and used again with its settings", "yellow"
        )
    else:
        discard_attempt(folder, stage)
        put_back(folder, stage.name)


def _is_untouched(folder: Path, stage: Stage, done: run_folder.Done) -> bool:
    try:
        return all(
            fingerprint.digest_outputs(folder, stage, name).digest == artifact.digest
            for name, artifact in done.outputs.items()
        )
    except (OSError, RuntimeError):
        return False


def recover(reporter: Reporter, pipeline: Sequence[Stage], folder: Path) -> None:
    """Finish what a killed process began: it was moving results when nothing says that the stage had started."""
    for stage in pipeline:
        aside = before_path(folder, stage.name)
        if not aside.exists():
            continue
        if run_folder.done_path(folder, stage.name).exists():
            done = run_folder.read_done(folder, stage.name)
            give_way(reporter, folder, stage, aside, done.fingerprint if done else "")
            shutil.rmtree(aside, ignore_errors=True)
        elif not run_folder.started_path(folder, stage.name).exists():
            put_back(folder, stage.name)


def discard_paid(reporter: Reporter, pipeline: Sequence[Stage], folder: Path) -> None:
    """Delete the teacher's answers; the stages that read it are redone."""
    for stage in pipeline:
        if stage.keeps_writes:
            run_folder.done_path(folder, stage.name).unlink(missing_ok=True)
            run_folder.started_path(folder, stage.name).unlink(missing_ok=True)
            for name in stage.writes:
                run_folder.delete_files(folder, name)
    shutil.rmtree(folder / "raw", ignore_errors=True)
    run_folder.make_folders(folder)
    reporter.run_line("--discard-paid: deleted the teacher's answers of this run", "yellow")


def before_path(folder: Path, stage: str) -> Path:
    """Where a stage's former results wait while it is redone; laid out like the run folder."""
    return folder / "stages" / stage / "before"


def set_aside_path(folder: Path, fingerprint: str) -> Path:
    """A new place for results of other settings; laid out like the run folder."""
    place = folder / "set_aside" / (fingerprint[:8] or "unnamed")
    while place.exists():
        place = place.with_name(f"{place.name}_")
    return place


def set_aside(folder: Path, stage: str, patterns: Sequence[str]) -> None:
    """Move a stage's records and what `patterns` name to ``stages/NAME/before``, until the stage has succeeded.

    The records go first and come back last, so that files without a record never count as finished.
    """
    before = before_path(folder, stage)
    records = [
        path for path in (run_folder.done_path(folder, stage), run_folder.started_path(folder, stage)) if path.exists()
    ]
    for path in (*records, *(path for pattern in patterns for path in run_folder.find_files(folder, pattern))):
        target = before / path.relative_to(folder)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    for pattern in patterns:  # the folders that are empty now
        _delete_empty_folders(folder, pattern)


def put_back(folder: Path, stage: str) -> None:
    """Undo `set_aside`."""
    before = before_path(folder, stage)
    files = [path for path in before.rglob("*") if path.is_file()]
    for path in sorted(files, key=lambda path: path.is_relative_to(before / "stages")):
        target = folder / path.relative_to(before)
        target.parent.mkdir(parents=True, exist_ok=True)
        path.replace(target)
    shutil.rmtree(before, ignore_errors=True)


def _delete_empty_folders(folder: Path, pattern: str) -> None:
    for path in sorted((path for path in folder.glob(pattern) if path.is_dir()), reverse=True):
        if not any(path.iterdir()):
            path.rmdir()
