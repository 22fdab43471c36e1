"""What a stage left before: gone on from, set aside for other settings, put back after a failure or a kill."""

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
    target = run_folder.set_aside_path(folder, found)
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
    aside = run_folder.before_path(folder, stage.name)
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
        run_folder.put_back(folder, stage.name)


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
        aside = run_folder.before_path(folder, stage.name)
        if not aside.exists():
            continue
        if run_folder.done_path(folder, stage.name).exists():
            done = run_folder.read_done(folder, stage.name)
            give_way(reporter, folder, stage, aside, done.fingerprint if done else "")
            shutil.rmtree(aside, ignore_errors=True)
        elif not run_folder.started_path(folder, stage.name).exists():
            run_folder.put_back(folder, stage.name)


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
