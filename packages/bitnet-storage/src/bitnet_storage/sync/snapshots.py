"""The snapshots of a run: ``RUN/snapshots/00000012.json``, written last and never again, with its own checksum.

A copy is written just before, ``00000012-WRITER.json``: where the snapshot itself was cut off or has been damaged, it
counts. One that can be read in neither place is told, and as long as it is there nothing is deleted: only it may name
what is newest.

Its files' contents are objects of their own, ``RUN/files/PATH``, with a piece of the content's sha256 in the name:
``reports/storage.3f2a9c1b0d2e7a64.json``. So nothing is ever overwritten, a reader sees the old snapshot or the new
one, and a person who browses the place finds files that open.
"""

import contextlib
import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any

import attrs

from bitnet_storage.contract import ObjectMissingError, Objects, Snapshot, StorageError, StoredFile
from bitnet_storage.names_and_paths import path_problem

FORMAT = 1


_NAME = re.compile(r"(\d{8,})(-[0-9a-f]+)?\.json")


_SHA256 = re.compile(r"[0-9a-f]{64}")


def snapshots_folder(run: str) -> str:
    return f"{run}/snapshots/"


def files_folder(run: str) -> str:
    return f"{run}/files/"


def snapshot_key(run: str, generation: int) -> str:
    return f"{snapshots_folder(run)}{generation:08d}.json"


def copy_key(run: str, generation: int, writer: str) -> str:
    return f"{snapshots_folder(run)}{generation:08d}-{writer}.json"


def hold(objects: Objects, run: str, generation: int, why: str) -> None:
    """Leave a mark that something which this generation names is damaged: see `History.held`."""
    with contextlib.suppress(StorageError):  # a place that takes nothing now
        objects.put(f"{snapshots_folder(run)}{generation:08d}.damaged", f"{why}\n".encode())


def generation_of(key: str) -> int | None:
    """The generation that the key of a snapshot or of its copy names; None for any other key."""
    found = _NAME.fullmatch(key.rpartition("/")[2])
    return int(found[1]) if found else None


def is_copy(key: str) -> bool:
    return "-" in key.rpartition("/")[2]


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
    """Every key of a snapshot or a copy."""
    unreadable: tuple[str, ...] = ()
    """The keys of snapshots that can't be read, nor can their copies."""
    from_copy: tuple[str, ...] = ()
    """The keys of snapshots that can't be read, but for their copies."""
    held: tuple[str, ...] = ()
    """The marks of generations of which a file is damaged: nothing is deleted as long as one lies there."""

    @property
    def newest(self) -> Snapshot | None:
        return self.snapshots[0] if self.snapshots else None

    def damage(self, location: str) -> str | None:
        """What to tell the user; None: all is well."""
        if self.unreadable:
            taken = f"generation {self.newest.generation} is the newest that can" if self.newest else "none can"
            return (
                f"{', '.join(self.unreadable)} in {location} can't be read: {taken}. Nothing is deleted there as long "
                "as it lies there; put it back from a copy, or delete it"
            )
        if self.held:
            return f"nothing is deleted in {location} as long as {', '.join(self.held)} lies there, which says why"
        if self.from_copy:
            return f"{', '.join(self.from_copy)} in {location} can't be read: its copy counts"
        return None


def history(objects: Objects, run: str) -> History:
    """What is there now.

    Raises StorageError where there are snapshots and none can be read, also for a snapshot of a later version or one
    that names places out of the run.
    """
    there = objects.sizes(snapshots_folder(run))
    keys = {key: generation for key in there if (generation := generation_of(key))}
    begun = {generation: key for key, generation in keys.items() if not is_copy(key)}
    snapshots: list[Snapshot] = []
    unreadable: list[str] = []
    from_copy: list[str] = []
    for generation in sorted(begun, reverse=True):
        if len(snapshots) == KEPT:
            break
        snapshot, is_gone = _read(objects, run, begun[generation], generation)
        if snapshot is None and not is_gone:
            copies = [key for key, of in keys.items() if of == generation and is_copy(key)]
            found = [each for key in copies if (each := _read(objects, run, key, generation)[0]) is not None]
            snapshot = found[0] if len(found) == 1 else None  # of two writers' nobody knows whose it was
            (from_copy if snapshot else unreadable).append(begun[generation])
        if snapshot is not None:
            snapshots.append(snapshot)
    if unreadable and not snapshots:
        raise StorageError(
            f"run {run}: no snapshot in {objects.location} can be read ({', '.join(unreadable)})",
            "put one back from a copy; to begin anew, delete it, or give the run another run.name",
        )
    return History(
        snapshots=tuple(snapshots),
        highest=max(begun, default=0),
        keys=tuple(keys),
        unreadable=tuple(unreadable),
        from_copy=tuple(from_copy),
        held=tuple(key for key in there if key.endswith(".damaged")),
    )


def _read(objects: Objects, run: str, key: str, generation: int) -> tuple[Snapshot | None, bool]:
    """(the snapshot, None where it can't be read; whether it is gone)."""
    try:
        content = b"".join(objects.chunks(key, 0))
    except ObjectMissingError:  # its writer removed it after the listing
        return None, True
    snapshot = decode(content, run)
    return (snapshot if snapshot is not None and snapshot.generation == generation else None), False


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
