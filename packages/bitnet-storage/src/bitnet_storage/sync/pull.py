"""Durable place → working folder: everything is fetched and checked first, then moved into place."""

import hashlib
import os
import shutil
from collections.abc import Callable, Iterable
from pathlib import Path

from bitnet_storage.backends import local
from bitnet_storage.contract import (
    ObjectDamagedError,
    ObjectMissingError,
    Objects,
    Snapshot,
    StorageError,
    StoredFile,
    Transfer,
)
from bitnet_storage.names_and_paths import inside
from bitnet_storage.sync.push import agree, check_not_overtaken, digests_of, keep, read_error
from bitnet_storage.sync.snapshots import history, hold
from bitnet_storage.sync.sync_state import Memory, files_of

Notify = Callable[[str], None]

VOLATILE = frozenset({"logs/run.log", "logs/error.txt", "environment.json", "manifest.resolved.toml"})
"""Files that a run writes before it has done anything: they are no work of a folder's own."""


def pull(objects: Objects, run: str, memory: Memory, notify: Notify) -> Transfer:
    """Make the working folder equal to the newest snapshot, where it has nothing newer itself. Raises StorageError."""
    past = history(objects, run)
    newest = past.newest
    if damage := past.damage(objects.location):
        notify(damage)
    _check_same_store(objects, memory)
    if newest is None:
        return Transfer(files=0, size=0, generation=0, changed=False)
    if newest.generation == memory.base and not memory.pulling:
        return Transfer(files=0, size=0, generation=memory.base, changed=False)
    if newest.writer == memory.writer and not memory.pulling:
        # Its push ended, only the answer was lost: the folder is as new, or newer.
        agree(memory, objects, newest)
        return Transfer(files=0, size=0, generation=newest.generation, changed=False)
    here = _digests(memory)
    own_work = here and not memory.pulling and not _same(here, memory.base_files)
    if own_work and not _same(here, digests_of(newest.files)):
        check_not_overtaken(objects, memory, newest)
    _begin(memory, objects)
    seen: set[int] = set()
    snapshots = list(past.snapshots)
    while snapshots:
        snapshot = snapshots.pop(0)
        seen.add(snapshot.generation)
        try:
            moved = _take(objects, memory, snapshot, here)
        except ObjectMissingError as missing:
            if isinstance(missing, ObjectDamagedError):  # what else it names may be all that there is of something
                hold(objects, run, snapshot.generation, missing.why)
            # A writer may have swept it meanwhile; and a mounted drive may show a snapshot before its contents.
            snapshots = [each for each in history(objects, run).snapshots if each.generation not in seen]
            if not snapshots:
                raise StorageError(
                    f"run {run}: {missing.why}; no snapshot in {objects.location} is whole", missing.fix
                ) from missing
            newest = max(newest, snapshots[0], key=lambda each: each.generation)
            yet = "" if isinstance(missing, ObjectDamagedError) else " yet"
            notify(
                f"generation {snapshot.generation} is not whole{yet} ({missing.why}): taking {snapshots[0].generation}"
            )
            continue
        # The one that is not whole counts as seen: what is pushed from here comes after it.
        agree(memory, objects, snapshot, newest.generation)
        return Transfer(files=len(moved), size=sum(file.size for file in moved), generation=snapshot.generation)
    raise AssertionError("a snapshot was taken, or an error raised")


def fetch(objects: Objects, file: StoredFile, partial: Path) -> Path:
    """The content of one stored file, checked, in the folder `partial`; goes on where an earlier fetch was cut off."""
    target = partial / file.sha256
    partial.mkdir(parents=True, exist_ok=True)
    for attempt in ("go on", "anew"):
        digest = hashlib.sha256()
        start = 0
        if attempt == "go on" and target.is_file() and target.stat().st_size <= file.size:
            with target.open("rb") as so_far:
                while block := so_far.read(2**20):
                    digest.update(block)
                    start += len(block)
        with target.open("ab" if start else "wb") as out:
            if start < file.size:
                for chunk in objects.chunks(file.key, start):
                    out.write(chunk)
                    digest.update(chunk)
                    start += len(chunk)
            out.flush()
            os.fsync(out.fileno())
        if start == file.size and digest.hexdigest() == file.sha256:
            return target
    target.unlink(missing_ok=True)
    raise ObjectDamagedError(f"{file.key} is damaged: its sha256 is not the one that was pushed")


def _take(objects: Objects, memory: Memory, snapshot: Snapshot, here: dict[str, str]) -> list[StoredFile]:
    """Fetch what differs, then move it into place; returns what was fetched."""
    places = {path: inside(memory.folder, path) for path in snapshot.files}
    wanted = {path: file for path, file in snapshot.files.items() if here.get(path) != file.sha256}
    contents = {file.sha256: file for file in wanted.values()}
    _check_space(memory, contents.values())
    try:
        for file in contents.values():
            fetch(objects, file, memory.partial)
        waiting = [wanted[path].sha256 for path in wanted]
        # What says that a stage is done comes after what the stage made.
        for path in sorted(wanted, key=lambda path: (path.startswith("stages/"), path)):
            digest = wanted[path].sha256
            waiting.remove(digest)
            _move(memory.partial / digest, places[path], keep=digest in waiting)
        for path in here.keys() - snapshot.files.keys() - VOLATILE:
            inside(memory.folder, path).unlink(missing_ok=True)
        shutil.rmtree(memory.partial, ignore_errors=True)
    except OSError as error:
        raise local.write_error(error, memory.folder, "store.work") from error
    return list(contents.values())


def _move(source: Path, target: Path, *, keep: bool) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    if keep:  # another path has the same content
        copy = source.with_suffix(".copy")
        shutil.copyfile(source, copy)
        source = copy
    source.replace(target)


def _digests(memory: Memory) -> dict[str, str]:
    """Path → sha256 of what is in the working folder."""
    try:
        return {path: memory.digest(path, place)[1] for path, place in files_of(memory.folder).items()}
    except OSError as error:
        raise read_error(error, memory.folder) from error


def _same(here: dict[str, str], there: dict[str, str]) -> bool:
    paths = (here.keys() | there.keys()) - VOLATILE
    return all(here.get(path) == there.get(path) for path in paths)


def _check_same_store(objects: Objects, memory: Memory) -> None:
    """A working folder belongs to one durable place."""
    if memory.store in ("", objects.location):
        return
    if files_of(memory.folder).keys() - VOLATILE:
        raise StorageError(
            f"{memory.folder} is the working folder of a run in {memory.store}, not in {objects.location}",
            "give the run another name (run.name) or the store another store.work",
        )
    memory.base, memory.base_files, memory.pulling = 0, {}, False


def _begin(memory: Memory, objects: Objects) -> None:
    """From here on the folder is a mixture, until it is equal to a snapshot."""
    memory.store, memory.pulling = objects.location, True
    keep(memory)


def _check_space(memory: Memory, contents: Iterable[StoredFile]) -> None:
    needed = 0
    for file in contents:
        part = memory.partial / file.sha256
        needed += file.size - (part.stat().st_size if part.is_file() else 0)
    free = local.free_bytes(memory.folder, "store.work")
    if needed > free:
        raise StorageError(
            f"store.work: {needed / 1e9:.2f} GB are to be pulled into {memory.folder}, and {free / 1e9:.2f} GB are "
            "free there",
            "free some, or point store.work at a bigger disk",
        )
