"""The snapshots of a run: ``RUN/snapshots/00000012.json``, written last and never again, with its own checksum.

Its files' contents are objects of their own, ``RUN/files/PATH``, with a piece of the content's sha256 in the name:
``reports/storage.3f2a9c1b0d2e7a64.json``. So nothing is ever overwritten, a reader sees the old snapshot or the new
one, and a person who browses the place finds files that open.
"""

import hashlib
import json
import re
from pathlib import PurePosixPath
from typing import Any

import attrs

from bitnet_storage.contract import ObjectMissingError, Objects, Snapshot, StorageError, StoredFile
from bitnet_storage.names import path_problem

FORMAT = 1


_NAME = re.compile(r"(\d{8,})\.json")


_SHA256 = re.compile(r"[0-9a-f]{64}")


def snapshots_folder(run: str) -> str:
    return f"{run}/snapshots/"


def files_folder(run: str) -> str:
    return f"{run}/files/"


def snapshot_key(run: str, generation: int) -> str:
    return f"{snapshots_folder(run)}{generation:08d}.json"


def generation_of(key: str) -> int | None:
    """The generation that a snapshot's key names; None for any other key."""
    found = _NAME.fullmatch(key.rpartition("/")[2])
    return int(found[1]) if found else None


def object_key(run: str, path: str, sha256: str) -> str:
    """Where the content of `path` lies: its name with 16 digits of the sha256 before the last suffix."""
    place = PurePosixPath(path)
    suffix = place.suffix if len(place.suffix.encode()) <= 32 else ""
    stem = place.name.removesuffix(suffix)
    while len(f"{stem}.{sha256[:16]}{suffix}".encode()) > 255:
        stem = stem[:-1]
    return f"{files_folder(run)}{place.with_name(f'{stem}.{sha256[:16]}{suffix}')}"


def encode(snapshot: Snapshot) -> bytes:
    """The object's content, UTF-8 JSON."""
    body = {"format": FORMAT, **attrs.asdict(snapshot)}
    return (json.dumps({**body, "sha256": _checksum(body)}, indent=1, ensure_ascii=False) + "\n").encode()


def decode(content: bytes, run: str) -> Snapshot | None:
    """The snapshot; None where it is half written or damaged.

    Raises StorageError for a later format and for paths or keys that would lead out of their folder.
    """
    try:
        value: Any = json.loads(content)
        checksum = value.pop("sha256")
        if checksum != _checksum(value):
            return None
        if value.pop("format") != FORMAT:
            raise StorageError(f"run {run} was pushed by a later version of bitnet-storage", "upgrade it here")
        files = {path: StoredFile(**file) for path, file in value.pop("files").items()}
        snapshot = Snapshot(files=files, **value)
    except (ValueError, TypeError, KeyError, AttributeError):
        return None
    if snapshot.run != run:
        raise StorageError(
            f"what lies under {run} is a snapshot of {snapshot.run!a}: it was moved there by hand", "move it back"
        )
    for path, file in files.items():
        if not (isinstance(file.size, int) and isinstance(file.sha256, str) and isinstance(file.key, str)):
            return None
        wrong = path_problem(path) or path_problem(file.key)
        if wrong or not file.key.startswith(files_folder(run)) or not _SHA256.fullmatch(file.sha256) or file.size < 0:
            raise StorageError(f"the snapshot of run {run} names {path!a} ({file.key!a}): {wrong or 'not ours'}")
        if path.startswith("."):
            raise StorageError(f"the snapshot of run {run} names {path!a}, a hidden place: not ours")
    return snapshot


def _checksum(body: Any) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


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
    """What is there now.

    Raises StorageError, also for a snapshot of a later version or one that names places out of the run.
    """
    keys = {
        generation: key
        for key in objects.sizes(snapshots_folder(run))
        if (generation := generation_of(key)) is not None
    }
    snapshots: list[Snapshot] = []
    for generation in sorted(keys, reverse=True):
        if len(snapshots) == KEPT:
            break
        try:
            content = b"".join(objects.chunks(keys[generation], 0))
        except ObjectMissingError:  # its writer removed it after the listing
            continue
        snapshot = decode(content, run)
        if snapshot is not None and snapshot.generation == generation:
            snapshots.append(snapshot)
    return History(tuple(snapshots), max(keys, default=0), tuple(keys.values()))
