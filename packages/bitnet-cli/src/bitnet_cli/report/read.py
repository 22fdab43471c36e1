"""What a run folder holds, read tolerantly: a missing or damaged piece is an empty one."""

import json
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.run_folder import Done


@attrs.frozen(kw_only=True)
class RunRecord:
    """The material of a report."""

    name: str
    manifest_toml: str
    evaluation: dict[str, Any]
    """``reports/mini_evaluation_report.json``; empty: not there yet."""
    baseline: dict[str, Any]
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    """Rows of ``logs/metrics.jsonl``, in order."""
    done: dict[str, Done]
    """Finished stages by name, in the order in which they finished."""


def read_run(folder: Path) -> RunRecord:
    done = [run_folder.read_done(folder, path.parent.name) for path in (folder / "stages").glob("*/done.json")]
    finished = sorted((each for each in done if each is not None and each.stage != "report"), key=_order)
    manifest = folder / "manifest.resolved.toml"
    return RunRecord(
        name=folder.name,
        manifest_toml=manifest.read_text(encoding="utf-8") if manifest.is_file() else "",
        evaluation=_table(folder / "reports" / "mini_evaluation_report.json"),
        baseline=_table(folder / "reports" / "teacher_baseline.json"),
        environment=_table(folder / "environment.json"),
        metrics=_rows(folder / "logs" / "metrics.jsonl"),
        done={each.stage: each for each in finished},
    )


def _order(done: Done) -> tuple[str, str]:
    return done.finished, done.stage


def _table(path: Path) -> dict[str, Any]:
    value = run_folder.read_json(path)
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Lines that are whole; a run that is killed may leave a torn last one."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and "step" in row:
            rows.append(row)
    return rows
