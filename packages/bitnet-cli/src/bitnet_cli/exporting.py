"""What the export stage and `bitnet export` share: the run's facts for the model card, and where a checkpoint lies."""

from pathlib import Path
from typing import Any

import attrs

from bitnet_cli.errors import UserError
from bitnet_cli.run_folder import is_run_folder


@attrs.frozen
class Source:
    """What ``CKPT`` on a command line stands for."""

    checkpoint: Path
    run: Path | None
    """The run folder that it lies in, if it lies in one."""


def require_folder(place: Path) -> None:
    """Raises UserError where `place` is no folder; quick, and needs no torch."""
    if not place.is_dir():
        raise UserError(
            f"{place}: no such folder  → name a run folder, e.g. runs/quickstart, or one of its checkpoints"
        )


def find_source(place: Path) -> Source:
    """A run folder stands for its latest checkpoint. Raises UserError where there is no such folder."""
    require_folder(place)
    if is_run_folder(place) or (place / "checkpoints").is_dir():
        from bitnet_core.model.checkpoint import latest_checkpoint

        return Source(latest_checkpoint(place / "checkpoints"), place)
    run = place.resolve().parent.parent
    inside = place.resolve().parent.name == "checkpoints" and is_run_folder(run)
    return Source(place, run if inside else None)


def export_facts(run: Path) -> dict[str, Any]:
    """The run's name, teacher and evaluation; an evaluation of an older training is left out."""
    from bitnet_cli.report.read import read_run

    record = read_run(run)
    teacher = (record.baseline.get("teacher") or {}).get("model")
    return {"name": record.name, "teacher": teacher, "evaluation": record.evaluation}
