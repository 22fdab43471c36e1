"""The layout of a run folder, and how files get into it: written under a temporary name, then renamed.

``manifest.resolved.toml``, ``environment.json``, ``raw/``, ``data/``, ``checkpoints/``, ``logs/``, ``reports/``,
``exports/``, ``stages/NAME/done.json``, ``report.md``, ``report.html``.
"""

import json
import os
import secrets
from pathlib import Path
from typing import Any

import attrs

FOLDERS = ("raw", "data", "checkpoints", "logs", "reports", "exports", "stages")
DONE_FORMAT = 1
"""The version of ``done.json``; a file of another version counts as not done."""


@attrs.frozen(kw_only=True)
class Artifact:
    """The files that one entry of a stage's ``writes`` stands for."""

    digest: str
    """sha256 over the names and contents of the files, computed once, when the stage finished."""
    files: dict[str, int]
    """Path within the run folder → bytes."""


@attrs.frozen(kw_only=True)
class Done:
    """What a finished stage leaves in ``stages/NAME/done.json``."""

    stage: str
    fingerprint: str
    finished: str
    """ISO 8601, UTC."""
    seconds: float
    settings: dict[str, Any]
    """The stage's slice of the manifest, flat: ``{"train.steps": 200}``."""
    files: dict[str, str]
    """Files that the manifest names → digest of what is in them: ``{"collect.prompts": "sha256..."}``."""
    formats: dict[str, int]
    inputs: dict[str, str]
    """What the stage read → digest, from the ``done.json`` of the stage that wrote it."""
    outputs: dict[str, Artifact]
    summary: dict[str, Any]
    packages: dict[str, str]
    """Recorded, not fingerprinted."""


def make_folders(folder: Path) -> None:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)


def write_text(path: Path, text: str) -> None:
    """Write `text` (UTF-8) so that a reader sees the old file or the whole new one, also after a power cut."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        with temporary.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def write_json(path: Path, value: Any) -> None:
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, default=str) + "\n")


def read_json(path: Path) -> Any:
    """The file's value; None where it isn't there or is no JSON."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def done_path(folder: Path, stage: str) -> Path:
    return folder / "stages" / stage / "done.json"


def started_path(folder: Path, stage: str) -> Path:
    """There while a stage runs, and after it was stopped: its fingerprint tells whether it may resume."""
    return folder / "stages" / stage / "started.json"


def write_done(folder: Path, done: Done) -> None:
    write_json(done_path(folder, done.stage), {"format": DONE_FORMAT, **attrs.asdict(done)})


def read_done(folder: Path, stage: str) -> Done | None:
    """The stage's record; None where there is none, or none that this version can read."""
    value = read_json(done_path(folder, stage))
    if not isinstance(value, dict) or value.pop("format", None) != DONE_FORMAT:
        return None
    try:
        outputs = {name: Artifact(**artifact) for name, artifact in value.pop("outputs").items()}
        return Done(outputs=outputs, **value)
    except (KeyError, TypeError, AttributeError):
        return None


def is_run_folder(folder: Path) -> bool:
    return (folder / "manifest.resolved.toml").is_file() or (folder / "stages").is_dir()


def find_files(folder: Path, pattern: str) -> list[Path]:
    """Files of the run folder that `pattern` names (a path or a glob), sorted; temporary files are left out."""
    found = (path for path in folder.glob(pattern) if path.is_file())
    return sorted(path for path in found if not path.name.endswith(".tmp"))


def delete_files(folder: Path, pattern: str) -> int:
    """Delete what `pattern` names, and the folders that get empty by it. Returns how many files went."""
    paths = find_files(folder, pattern)
    for path in paths:
        path.unlink(missing_ok=True)
        for parent in path.parents:
            if parent.parent == folder or parent == folder:
                break
            try:
                parent.rmdir()
            except OSError:  # not empty
                break
    return len(paths)


def lost_output(folder: Path, done: Done) -> str | None:
    """Which output of a finished stage is no longer as it was left (looked at by name and size); None: all there."""
    for artifact in done.outputs.values():
        for name, size in artifact.files.items():
            try:
                found = (folder / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if found != size:
                return f"{name} was changed ({size} → {found} bytes)"
    return None
