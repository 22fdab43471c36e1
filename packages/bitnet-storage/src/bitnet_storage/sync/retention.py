"""Which checkpoints the durable place keeps."""

import re
from pathlib import Path

_CHECKPOINT = re.compile(r"checkpoints/step_(\d+)/")


def newest_checkpoints(places: dict[str, Path], keep: int | None) -> dict[str, Path]:
    """`places` without the files of all but the `keep` newest ``checkpoints/step_N/``; None keeps all."""
    if keep is None:
        return places
    steps = {int(found[1]) for path in places if (found := _CHECKPOINT.match(path))}
    kept = set(sorted(steps)[-keep:])
    return {
        path: place for path, place in places.items() if not (found := _CHECKPOINT.match(path)) or int(found[1]) in kept
    }
