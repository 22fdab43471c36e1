"""Working folder → durable place: contents first, the snapshot that names them last, then the clearing up."""

import hashlib
import platform
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

import attrs

from bitnet_storage.backends.local import write_error
from bitnet_storage.contract import Objects, Snapshot, StorageError, StoredFile, Transfer
from bitnet_storage.sync import snapshots
from bitnet_storage.sync.snapshots import KEPT, History, history, newest_checkpoints
from bitnet_storage.sync.sync_state import Memory, files_of

SMALL = 8 * 2**20
"""Files below this many bytes are read once, so that one that grows meanwhile (a log) is stored as it was."""


AT_ONCE = 4
"""Small files that are sent at the same time; big ones go in parts, one file after the other."""


@attrs.define
class Arrived:
    """The objects that this process knows to be there whole: key → bytes. Listed once, then kept up to date."""

    sizes: dict[str, int] = attrs.Factory(dict)


def push(objects: Objects, run: str, memory: Memory, arrived: Arrived, keep_checkpoints: int | None) -> Transfer:
    """Make the working folder's files the newest snapshot of `run`. Raises StorageError."""
    places = newest_checkpoints(files_of(memory.folder), keep_checkpoints)
    past = history(objects, run)
    for unreadable in past.unreadable:  # later pushes don't look so far back
        snapshots.hold(objects, run, snapshots.generation_of(unreadable) or 0, f"{unreadable} can't be read")
    check_not_overtaken(objects, memory, past.newest)
    memory.forget(memory.digests.keys() - places.keys())
    keys = {file.sha256: file.key for snapshot in past.snapshots for file in snapshot.files.values()}
    if not arrived.sizes or past.newest is None:  # nothing is there any more, or nothing was yet
        arrived.sizes = objects.sizes(snapshots.files_folder(run))
    sent: list[int] = []

    def store(path: str, place: Path) -> StoredFile:
        content: Path | bytes = place
        before = _size_and_time(place)
        size = place.stat().st_size
        if size < SMALL and not memory.knows(path, place):
            content = place.read_bytes()
            size, digest = len(content), hashlib.sha256(content).hexdigest()
        else:
            size, digest = memory.digest(path, place)
        key = keys.get(digest) or snapshots.object_key(run, path, digest)
        if arrived.sizes.get(key) != size:
            objects.put(key, content)
            if content is place and _size_and_time(place) != before:
                objects.delete([key])
                raise StorageError(f"{place} was changed while it was pushed", "push again when its writer is done")
            arrived.sizes[key] = size
            sent.append(size)
        return StoredFile(size=size, sha256=digest, key=key)

    try:
        files = _in_parallel(store, places)
    except OSError as error:
        raise read_error(error, memory.folder) from error
    if past.newest is not None and digests_of(files) == digests_of(past.newest.files):
        agree(memory, objects, past.newest)
        return Transfer(files=len(sent), size=sum(sent), generation=past.newest.generation, changed=bool(sent))
    snapshot = Snapshot(
        run=run,
        generation=past.highest + 1,
        written=datetime.now(UTC).isoformat("T", "seconds"),
        writer=memory.writer,
        host=platform.node(),
        files=dict(sorted(files.items())),
    )
    if memory.base == 0:  # whatever happens now, this folder must know its own snapshot again
        keep(memory)
    _write(objects, snapshot)
    agree(memory, objects, snapshot)
    _sweep(objects, past, snapshot, arrived)
    return Transfer(files=len(sent), size=sum(sent), generation=snapshot.generation)


def _write(objects: Objects, snapshot: Snapshot) -> None:
    """The snapshot and its copy. Raises StorageError where another machine has made this generation."""
    run, content = snapshot.run, snapshots.encode(snapshot)
    copy = snapshots.copy_key(run, snapshot.generation, snapshot.writer)
    objects.put(copy, content)
    if not objects.create(snapshots.snapshot_key(run, snapshot.generation), content):
        objects.delete([copy])
        raise StorageError(
            f"run {run}: another machine pushed generation {snapshot.generation} to {objects.location} at this very "
            "moment",
            "stop one of the two, and run again",
        )


def _size_and_time(place: Path) -> tuple[int, int, int]:
    status = place.stat()
    return status.st_size, status.st_mtime_ns, status.st_ino


def check_not_overtaken(objects: Objects, memory: Memory, newest: Snapshot | None) -> None:
    """Raises StorageError where somebody else has pushed since this folder was last equal to the durable place."""
    if newest is not None and newest.generation != memory.base and newest.writer != memory.writer:
        raise StorageError(
            f"run {newest.run} has moved on in {objects.location}: {newest.host} pushed generation "
            f"{newest.generation} at {newest.written}, and {memory.folder} goes back to generation {memory.base} and "
            "has work of its own. Nothing was changed",
            "move that folder away and run again to take over the other's state, or give this one another run.name to "
            "keep both",
        )


def read_error(error: OSError, folder: Path) -> StorageError:
    """For a file of the working folder that can't be read."""
    return StorageError(
        f"{error.filename or folder} can't be read: {error.strerror or error}", "make it readable, and run again"
    )


def digests_of(files: Mapping[str, StoredFile]) -> dict[str, str]:
    """Path → sha256: what makes two snapshots the same."""
    return {path: file.sha256 for path, file in files.items()}


def agree(memory: Memory, objects: Objects, snapshot: Snapshot, generation: int | None = None) -> None:
    """Remember that the folder is equal to `snapshot`, which stands for all up to `generation` (its own)."""
    memory.store, memory.base, memory.pulling = objects.location, generation or snapshot.generation, False
    memory.base_files = digests_of(snapshot.files)
    keep(memory)


def keep(memory: Memory) -> None:
    """Write down what the folder remembers. Raises StorageError."""
    try:
        memory.save()
    except OSError as error:
        raise write_error(error, memory.folder, "store.work") from error


def _in_parallel(store: Callable[[str, Path], StoredFile], places: Mapping[str, Path]) -> dict[str, StoredFile]:
    """Small files some at a time, then the big ones one by one: those go in parallel parts already."""
    big = [path for path, place in places.items() if place.stat().st_size >= SMALL]
    pool = ThreadPoolExecutor(AT_ONCE)
    try:
        waiting = {path: pool.submit(store, path, place) for path, place in places.items() if path not in big}
        files = {path: future.result() for path, future in waiting.items()}
    finally:
        pool.shutdown(cancel_futures=True)
    return files | {path: store(path, places[path]) for path in big}


def _sweep(objects: Objects, past: History, snapshot: Snapshot, arrived: Arrived) -> None:
    """Delete what no kept snapshot names. What can't be deleted now goes another time.

    Nothing while a generation that was begun can't be read, or a file of it: nobody knows what would be lost.
    """
    if past.unreadable or past.held:
        return
    kept = [snapshot, *past.snapshots][:KEPT]
    named = {file.key for each in kept for file in each.files.values()}
    old = [key for key in past.keys if snapshots.generation_of(key) not in {each.generation for each in kept}]
    unused = [key for key in arrived.sizes if key not in named]
    try:
        objects.delete([*old, *unused])  # the snapshots first: none may name what is gone
    except StorageError:
        return
    for key in unused:
        del arrived.sizes[key]
