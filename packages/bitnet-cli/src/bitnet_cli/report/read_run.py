"""What a run folder holds, read tolerantly: a missing or damaged piece is an empty one."""

import json
import math
import re
import tomllib
from collections.abc import Iterator
from functools import cached_property
from pathlib import Path
from typing import Any

import attrs

from bitnet_cli import run_folder
from bitnet_cli.report.blocks import DAMAGED
from bitnet_cli.run_folder import Done


@attrs.frozen(kw_only=True)
class RunRecord:
    """The material of a report."""

    name: str
    manifest_toml: str
    evaluation: dict[str, Any]
    """``reports/mini_evaluation_report.json``; empty: not there yet."""
    baseline: dict[str, Any]
    probe: dict[str, Any]
    """``reports/teacher_probe.json``; empty: the teacher was not probed."""
    calibration: dict[str, Any] = attrs.field(factory=dict)
    """``reports/calibration.json``; empty: the student didn't start calibrated, or there is none yet."""
    dry_run: dict[str, Any] = attrs.field(factory=dict)
    """``reports/dry_run_7b.json``; empty: none was made."""
    teacher_quantised: dict[str, Any] = attrs.field(factory=dict)
    """``reports/teacher_quantised.json``; empty: the benchmark was not run on this run."""
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    """Rows of ``logs/metrics.jsonl``, in order."""
    health: list[dict[str, Any]] = attrs.field(factory=list)
    """``checkpoints/step_N_health.json``, by step."""
    started: dict[str, str] = attrs.field(factory=dict)
    """Stages that have begun and not ended, with the time: at work now, or stopped."""
    stale: bool = False
    """The evaluation that lies there is of another training than the present one; `evaluation` is empty then."""
    done: dict[str, Done]
    """Finished stages by name, in the order in which they finished."""
    student: dict[str, Any] = attrs.field(factory=dict)
    """The ``config.json`` of the checkpoint that was evaluated, or of the training's best."""
    student_parameters: int | None = None
    """Numbers in its weights; None: they aren't there."""
    files: frozenset[str] = frozenset()
    """What a reader may want to open, as paths from the run folder."""

    @cached_property
    def manifest(self) -> dict[str, Any]:
        """The resolved manifest; empty where it can't be read."""
        try:
            return tomllib.loads(self.manifest_toml)
        except ValueError:
            return {}

    def setting(self, section: str, key: str) -> Any:
        """What the manifest says, or None."""
        table = self.manifest.get(section)
        return table.get(key) if isinstance(table, dict) else None


def read_run(folder: Path) -> RunRecord:
    done = [run_folder.read_done(folder, path.parent.name) for path in (folder / "stages").glob("*/done.json")]
    finished = sorted((each for each in done if each is not None and each.stage != "report"), key=_order)
    by_name = {each.stage: each for each in finished}
    stale = _is_stale(folder, by_name)
    evaluation = {} if stale else _numbers_where_expected(_table(folder / run_folder.EVALUATION))
    checkpoint = _checkpoint(folder, evaluation, by_name)
    return RunRecord(
        name=folder.name,
        manifest_toml=_text(folder / "manifest.resolved.toml"),
        evaluation=evaluation,
        stale=stale,
        baseline=_table(folder / "reports" / "teacher_baseline.json"),
        probe=_table(folder / run_folder.PROBE),
        calibration=_calibration(folder, by_name),
        dry_run=_table(folder / run_folder.DRY_RUN),
        teacher_quantised={} if stale else _table(folder / run_folder.TEACHER_QUANTISED),
        environment=_table(folder / "environment.json"),
        metrics=_rows(folder / "logs" / "metrics.jsonl"),
        health=_health(folder / "checkpoints"),
        started=_started(folder),
        done=by_name,
        student={} if checkpoint is None else _table(checkpoint / "config.json"),
        student_parameters=None if checkpoint is None else _parameters(checkpoint / "model.safetensors"),
        files=frozenset(_files(folder)),
    )


def _checkpoint(folder: Path, evaluation: dict[str, Any], done: dict[str, Done]) -> Path | None:
    trained = done["train"].summary if "train" in done else {}
    name = str(evaluation.get("checkpoint") or trained.get("best_checkpoint") or "")
    return folder / "checkpoints" / name if re.fullmatch(r"step_\d+", name) else None


def _parameters(file: Path) -> int | None:
    """Counted in the header of a safetensors file: 8 bytes of its length, then JSON with a shape for each tensor."""
    try:
        with file.open("rb") as weights:
            size = int.from_bytes(weights.read(8), "little")
            header = json.loads(weights.read(size)) if size <= _LONGEST_HEADER else {}
        shapes = [entry["shape"] for name, entry in header.items() if name != "__metadata__"]
        return sum(math.prod(shape) for shape in shapes) or None
    except (OSError, *DAMAGED):
        return None


def _files(folder: Path) -> Iterator[str]:
    for pattern in ("manifest.resolved.toml", "environment.json", "logs/*.jsonl", "reports/*.json", "exports/*"):
        yield from (path.relative_to(folder).as_posix() for path in folder.glob(pattern))


def _calibration(folder: Path, done: dict[str, Done]) -> dict[str, Any]:
    """The calibration that the training started from; one of other settings may lie there still."""
    if "train" in done and run_folder.CALIBRATED not in done["train"].inputs:
        return {}
    return _table(folder / run_folder.CALIBRATION)


def _health(checkpoints: Path) -> list[dict[str, Any]]:
    found = (_table(path) for path in checkpoints.glob("step_*_health.json"))
    return sorted((each for each in found if isinstance(each.get("step"), int)), key=lambda each: each["step"])


def _started(folder: Path) -> dict[str, str]:
    paths = (folder / "stages").glob("*/started.json")
    since = {path.parent.name: str(_table(path).get("since", "")) for path in paths if path.parent.name != "report"}
    return dict(sorted(since.items(), key=lambda item: item[1]))


def _is_stale(folder: Path, done: dict[str, Done]) -> bool:
    evaluated = done["evaluate"].inputs.get(run_folder.CHECKPOINTS) if "evaluate" in done else None
    if evaluated is None:
        return False
    trained = done["train"].outputs.get(run_folder.CHECKPOINTS) if "train" in done else None
    if trained is None:  # another training has begun; without a record nothing can be compared
        return run_folder.started_path(folder, "train").exists()
    return trained.digest != evaluated


def _numbers_where_expected(report: dict[str, Any]) -> dict[str, Any]:
    """The evaluation without the entries that are no numbers or tables where it has them."""
    expected = dict.fromkeys(_NUMBERS, int | float) | dict.fromkeys(_TABLES, dict) | {"teacher_answers": list}
    return {
        key: value for key, value in report.items() if value is None or isinstance(value, expected.get(key, object))
    }


_LONGEST_HEADER = 100_000_000
"""Bytes; safetensors allows no more."""
_NUMBERS = (
    *(f"{name}_kl" for name in ("heldout", "untrained", "unigram", "bigram")),
    *(f"{owner}{name}" for owner in ("", "teacher_") for name in ("perplexity", "tokens_per_second", "memory_bytes")),
    *("top1_agreement", "qei", "qei_speed", "dense_memory_bytes"),
)
_TABLES = ("heldout", "heldout_at_8_bits", "intervals_95", "differences_95", "documents", "generation", "qei_inputs",
           "qei_missing")  # fmt: skip


def _text(path: Path) -> str:
    """Bytes that are no UTF-8 are shown as such; empty where there is no file that can be read."""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _order(done: Done) -> tuple[str, str]:
    return done.finished, done.stage


def _table(path: Path) -> dict[str, Any]:
    value = run_folder.read_json(path)
    return value if isinstance(value, dict) else {}


def _rows(path: Path) -> list[dict[str, Any]]:
    """Lines that are whole; a run that is killed may leave a torn last one."""
    rows = []
    for line in _text(path).splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        if isinstance(row, dict) and isinstance(row.get("step"), int):
            if "heldout_kl" in row:  # its name before there were test documents
                row["validation_kl"] = row.pop("heldout_kl")
            rows.append(row)
    return rows
