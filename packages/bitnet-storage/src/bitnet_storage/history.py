"""The snapshots of a run that the durable place shows."""

import attrs

from bitnet_storage import snapshot_file
from bitnet_storage.contract import ObjectMissingError, Objects, Snapshot

KEPT = 2
"""Snapshots that are kept: a mounted drive may show a new one before the contents that it names."""


@attrs.frozen
class History:
    """What there is of one run."""

    snapshots: tuple[Snapshot, ...]
    """The newest ones that are whole, newest first; at most `KEPT`."""
    highest: int
    """The highest generation that was begun, whole or not; 0: none."""
    keys: tuple[str, ...]
    """Every snapshot's key."""

    @property
    def newest(self) -> Snapshot | None:
        return self.snapshots[0] if self.snapshots else None


def history(objects: Objects, run: str) -> History:
    """Look. Raises StorageError, also for a snapshot of a later version or one that names places out of the run."""
    keys = {
        generation: key
        for key in objects.sizes(snapshot_file.snapshots_folder(run))
        if (generation := snapshot_file.generation_of(key)) is not None
    }
    snapshots: list[Snapshot] = []
    for generation in sorted(keys, reverse=True):
        if len(snapshots) == KEPT:
            break
        try:
            content = b"".join(objects.chunks(keys[generation], 0))
        except ObjectMissingError:  # its writer removed it after the listing
            continue
        snapshot = snapshot_file.decode(content, run)
        if snapshot is not None and snapshot.generation == generation:
            snapshots.append(snapshot)
    return History(tuple(snapshots), max(keys, default=0), tuple(keys.values()))
