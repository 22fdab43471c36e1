"""Where everything lies in a run folder, and how it gets there: written under a temporary name, then renamed.

``manifest.resolved.toml``, ``environment.json``, ``raw/``, ``data/``, ``checkpoints/``, ``logs/``, ``reports/``,
``exports/``, ``stages/NAME/done.json``, ``report.md``, ``report.html``.
"""

import json
import os
import secrets
import shlex
from pathlib import Path
from typing import Any

from bitnet_cli.wording.hide_secrets import plain_json

FOLDERS = ("raw", "data", "checkpoints", "logs", "reports", "exports", "stages")
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
TEACHER_SPEED = ("teacher.batch_size", "teacher.devices")
"""Settings of built-in teachers that change how fast they answer, not what."""


def make_folders(folder: Path) -> None:
    for name in FOLDERS:
        (folder / name).mkdir(parents=True, exist_ok=True)


def done_path(folder: Path, stage: str) -> Path:
    return folder / "stages" / stage / "done.json"


def started_path(folder: Path, stage: str) -> Path:
    """There while a stage runs, and after it was stopped: its fingerprint tells whether it may resume."""
    return folder / "stages" / stage / "started.json"


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


def next_step(folder: Path) -> str | None:
    """The command that makes use of what the folder holds: a student to talk to, else traces to look at."""
    place = shlex.quote(str(folder))
    if any((folder / "checkpoints").glob("step_*/model.safetensors")):
        return f"bitnet chat {place}"
    if any(folder.glob(TRACES)):
        return f"bitnet traces stats {place}"
    return None


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
