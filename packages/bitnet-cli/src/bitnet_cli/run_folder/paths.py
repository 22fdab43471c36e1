"""Where everything lies in a run folder.

``manifest.resolved.toml``, ``environment.json``, ``raw/``, ``data/``, ``checkpoints/``, ``logs/``, ``reports/``,
``exports/``, ``stages/NAME/done.json``, ``report.md``, ``report.html``.
"""

import shlex
from pathlib import Path

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
