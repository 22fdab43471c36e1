"""The layout of a run folder, its paths by name, and how files get in: written under a temporary name, then renamed.

``manifest.resolved.toml``, ``environment.json``, ``raw/``, ``data/``, ``checkpoints/``, ``logs/``, ``reports/``,
``exports/``, ``stages/NAME/done.json``, ``report.md``, ``report.html``.
"""

import hashlib
import json
import os
import secrets
import shlex
import shutil
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.wording import plain_json
from bitnet_core.files import has_its_digest, with_digest

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
    write_text(path, plain_json(value, indent=2) + "\n")


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


def before_path(folder: Path, stage: str) -> Path:
    """Where a stage's former results wait while it is redone; laid out like the run folder."""
    return folder / "stages" / stage / "before"


def set_aside_path(folder: Path, fingerprint: str) -> Path:
    """A new place for results of other settings; laid out like the run folder."""
    place = folder / "set_aside" / (fingerprint[:8] or "unnamed")
    while place.exists():
        place = place.with_name(f"{place.name}_")
    return place


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


STORAGE = "reports/storage.json"


DRY_RUN = "reports/dry_run_7b.json"
"""Of whatever size [dry_run] says; the name is the 7B one's, for which it is there."""


BASELINE = "reports/teacher_baseline.json"


TEACHER_QUANTISED = "reports/teacher_quantised.json"
"""The teacher's own files by llama.cpp beside the student's: written by `benchmarks.teacher_quantised`, no stage."""
PROBE = "reports/teacher_probe.json"


COLLECTION = "reports/collection.json"


RAW = "raw/shard_*.parquet"


TRACES = "data/kd_shard_*.parquet"


CALIBRATED = "calibration/start/*"
"""The checkpoint that the student starts from, where its start is calibrated."""


CALIBRATED_FOLDER = "calibration/start"


def next_step(folder: Path) -> str | None:
    """The command that makes use of what the folder holds: a student to talk to, else traces to look at."""
    place = shlex.quote(str(folder))
    if any((folder / "checkpoints").glob("step_*/model.safetensors")):
        return f"bitnet chat {place}"
    if any(folder.glob(TRACES)):
        return f"bitnet traces stats {place}"
    return None


CALIBRATION = "reports/calibration.json"


CHECKPOINTS = "checkpoints/**/*"


METRICS = "logs/metrics.jsonl"


EVALUATION = "reports/mini_evaluation_report.json"


EXPORT = "reports/export.json"
"""What was exported, with sizes and figures; the files themselves are in exports/, which also `bitnet export` fills."""


REPORT = "report.md"


REPORT_HTML = "report.html"


BASELINE_JOURNAL = "raw/baseline"
"""A folder with what a paid teacher answered for its baseline."""


BENCHMARK_JOURNAL = "raw/benchmarks"
"""A folder with what a paid teacher answered for the benchmarks."""


TEACHER_SPEED = ("teacher.batch_size",)
"""Settings of built-in teachers that change how fast they answer, not what."""
