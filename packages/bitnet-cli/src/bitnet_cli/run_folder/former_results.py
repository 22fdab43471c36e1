"""A stage's former results: kept while it is redone, put back where that fails."""

import shutil
from collections.abc import Sequence
from pathlib import Path

from bitnet_cli.run_folder.paths import done_path, find_files, started_path


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
    records = [path for path in (done_path(folder, stage), started_path(folder, stage)) if path.exists()]
    for path in (*records, *(path for pattern in patterns for path in find_files(folder, pattern))):
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
