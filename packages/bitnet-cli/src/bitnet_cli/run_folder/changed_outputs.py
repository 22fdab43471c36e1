"""Whether the outputs of a finished stage are still as it left them."""

import hashlib
from collections.abc import Collection
from pathlib import Path

from bitnet_cli.run_folder.stage_records import Artifact, Done


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
