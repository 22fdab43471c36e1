"""What another run has done with the same settings and inputs becomes this run's, too, without doing it again.

Files are linked where the disk can, else copied: every file of a run folder is replaced as a whole, never written into.
"""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

from bitnet_cli import run_folder
from bitnet_cli.pipeline import run_or_skip
from bitnet_cli.pipeline.former_results import set_aside_path
from bitnet_cli.pipeline.run_or_skip import State
from bitnet_cli.stages.stage import Stage


def share_results(state: State, others: Sequence[Path], stages: Sequence[str]) -> dict[str, Path]:
    """Take over those of `stages` that are not done here and that one of the run folders `others` has done.

    The same by their fingerprints, so what is taken is what would be made. Returns stage → the folder it came from.
    """
    assert state.folder is not None
    taken: dict[str, Path] = {}
    for stage in state.selected:
        if stage.name not in stages:
            continue
        wanted = run_or_skip.identify(state, stage).fingerprint
        if _has(state.folder, stage, wanted):
            continue
        donor = next((other for other in others if other != state.folder and _has(other, stage, wanted)), None)
        if donor is not None:
            _take(stage, donor, state.folder)
            taken[stage.name] = donor
    return taken


def _has(folder: Path, stage: Stage, wanted: str) -> bool:
    done = run_folder.read_done(folder, stage.name)
    return (
        done is not None
        and done.fingerprint == wanted
        and run_folder.lost_output(folder, done, stage.unwatched) is None
    )


def _take(stage: Stage, donor: Path, folder: Path) -> None:
    """The record comes last: a stage that was taken in part is none."""
    done = run_folder.read_done(donor, stage.name)
    assert done is not None
    _set_former_aside(stage, folder)
    for record in (run_folder.done_path(folder, stage.name), run_folder.started_path(folder, stage.name)):
        record.unlink(missing_ok=True)
    for pattern in stage.writes:
        run_folder.delete_files(folder, pattern)
    names = [name for artifact in done.outputs.values() for name in artifact.files if (donor / name).is_file()]
    # What was paid for comes along: this run must not ask again either when more is wanted later.
    paid = run_folder.find_files(donor, stage.goes_on_from) if stage.keeps_writes and stage.goes_on_from else []
    if stage.keeps_former:  # and what a longer training goes on from
        paid = [path for pattern in stage.writes for path in run_folder.find_files(donor, pattern)]
    for name in dict.fromkeys((*names, *(path.relative_to(donor).as_posix() for path in paid))):
        _link(donor / name, folder / name)
    run_folder.write_done(folder, done)


def _set_former_aside(stage: Stage, folder: Path) -> None:
    """What other settings have made took hours: it is kept in ``set_aside/``, as a run does."""
    files = [path for pattern in stage.writes for path in run_folder.find_files(folder, pattern)]
    if not stage.keeps_former or not files:
        return
    record = run_folder.read_record(run_folder.started_path(folder, stage.name)) or {}
    place = set_aside_path(folder, str(record.get("fingerprint") or ""))
    for path in files:
        moved = place / path.relative_to(folder)
        moved.parent.mkdir(parents=True, exist_ok=True)
        path.replace(moved)


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f"{target.name}.tmp")
    partial.unlink(missing_ok=True)
    try:
        os.link(source, partial)
    except OSError:  # another file system, or one without links
        shutil.copy2(source, partial)
    partial.replace(target)
