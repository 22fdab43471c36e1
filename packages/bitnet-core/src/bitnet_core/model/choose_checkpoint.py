"""Which checkpoint of a training: all of them, the latest, the best."""

import math
from pathlib import Path

from bitnet_core.errors import CoreError
from bitnet_core.model.read_checkpoint import read_state


def checkpoints(folder: Path) -> list[Path]:
    """The finished checkpoints in `folder`, oldest first."""
    found = [path for path in folder.glob("step_*") if path.is_dir() and path.name[5:].isdigit()]
    return sorted(found, key=lambda path: int(path.name[5:]))


def latest_checkpoint(folder: Path) -> Path:
    found = checkpoints(folder)
    if not found:
        raise CoreError(f"{folder}: there is no checkpoint", "run the train stage first")
    return found[-1]


def best_checkpoint(folder: Path) -> Path:
    """The one with the lowest validation KL when it was written; the newest where none was validated.

    One whose record is damaged is taken as not validated.
    """
    found = checkpoints(folder)

    def key(path: Path) -> tuple[float, int]:
        try:
            last = read_state(path).last
        except CoreError:
            last = {}
        kl = last.get("validation_kl", last.get("heldout_kl"))  # so it was called before there were test documents
        return (math.inf if kl is None or math.isnan(kl) else float(kl), -found.index(path))

    return min(found, key=key)
