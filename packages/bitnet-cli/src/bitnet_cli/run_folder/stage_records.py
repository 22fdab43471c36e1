"""``done.json``: what a finished stage leaves, with a digest of itself; and whether the outputs are still so."""

import hashlib
import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.run_folder.files import done_path, read_json, write_json
from bitnet_core.files import has_its_digest, with_digest

DONE_FORMAT = 1
"""The version of ``done.json``; a file of another version counts as not done."""


@attrs.frozen(kw_only=True)
class Artifact:
    """The files that one entry of a stage's ``writes`` stands for."""

    digest: str
    """sha256 over the names and contents of the files, computed once, when the stage finished."""
    files: dict[str, int]
    """Path within the run folder → bytes."""
    sha256: dict[str, str] = attrs.Factory(dict)
    """Path → digest of its content; empty in the records of earlier versions."""


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


def write_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write JSON with a digest of itself: `read_record` takes nothing else."""
    plain = json.loads(json.dumps(record, default=str))
    write_json(path, with_digest(plain))


def read_record(path: Path) -> dict[str, Any] | None:
    """What `write_record` wrote; None where it isn't there or is damaged. Earlier versions' have no digest."""
    value = read_json(path)
    if not isinstance(value, dict) or not has_its_digest(value):
        return None
    value.pop("sha256", None)
    return value


def write_done(folder: Path, done: Done) -> None:
    write_record(done_path(folder, done.stage), {"format": DONE_FORMAT, **attrs.asdict(done)})


def read_done(folder: Path, stage: str) -> Done | None:
    """The stage's record; None where there is none, or none that this version can read."""
    value = read_record(done_path(folder, stage))
    if value is None or value.pop("format", None) != DONE_FORMAT:
        return None
    try:
        outputs = {name: Artifact(**artifact) for name, artifact in value.pop("outputs").items()}
        done = Done(outputs=outputs, **value)
    except (KeyError, TypeError, AttributeError):
        return None
    return done if _is_sound(done) else None


def _is_sound(done: Done) -> bool:
    """Whether every field has the type that it was written with."""
    texts = (done.stage, done.fingerprint, done.finished, *(each.digest for each in done.outputs.values()))
    tables = (done.settings, done.summary, *(each.files for each in done.outputs.values()))
    return (
        all(isinstance(text, str) for text in texts)
        and all(isinstance(table, dict) for table in tables)
        and isinstance(done.seconds, int | float)
        and all(_is_table_of(str, table) for table in (done.files, done.inputs, done.packages))
        and all(_is_table_of(str, each.sha256) for each in done.outputs.values())
        and all(_is_table_of(int, table) for table in (done.formats, *(each.files for each in done.outputs.values())))
        and isinstance(done.summary.get("warnings") or [], list)
    )


def _is_table_of(kind: type, value: Any) -> bool:
    return isinstance(value, dict) and all(isinstance(item, kind) for item in value.values())


def lost_output(folder: Path, done: Done, unwatched: Collection[str] = ()) -> str | None:
    """Which output of a finished stage is no longer as it was left (looked at by name and size); None: all there."""
    for pattern, artifact in done.outputs.items():
        if pattern in unwatched:
            continue
        for name, size in artifact.files.items():
            try:
                found = (folder / name).stat().st_size
            except OSError:
                return f"{name} is missing"
            if found != size:
                return f"{name} was changed ({size} → {found} bytes)"
    return None


def damaged_output(folder: Path, artifact: Artifact) -> str | None:
    """Which file of an artifact is no longer what was written, by its content; None: all are. Reads them."""
    for name in artifact.files:
        try:
            with (folder / name).open("rb") as file:
                found = hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            return f"{name} can't be read ({error.strerror or error})"
        if found != artifact.sha256.get(name, found):
            return f"{name} is not what was written there (its sha256 is another)"
    return None
