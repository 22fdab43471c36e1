"""What a working folder remembers of the durable place: ``.bitnet-store/state.json``, and the digests of its files."""

import hashlib
import json
import os
import secrets
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import attrs

from bitnet_storage.contract import StorageError
from bitnet_storage.names_and_paths import OWN_FOLDER, path_problem

FORMAT = 1


_SETTLED_NS = 2_000_000_000  # a file changed this shortly before it was read may change again without showing it


@attrs.frozen
class Known:
    """A digest and how the file looked when it was computed."""

    size: int
    mtime_ns: int
    inode: int
    sha256: str


@attrs.define
class Memory:
    """The state of one working folder; `save` writes it."""

    folder: Path
    store: str = ""
    """The durable place that the folder belongs to; empty: none yet."""
    writer: str = attrs.Factory(lambda: secrets.token_hex(8))
    base: int = 0
    """The generation that the folder was last equal to; 0: none."""
    base_files: dict[str, str] = attrs.Factory(dict)
    """Path → sha256 of that generation."""
    pulling: bool = False
    """A pull has begun: the folder is a mixture until it is done, and holds nothing of its own."""
    digests: dict[str, Known] = attrs.Factory(dict)

    @property
    def partial(self) -> Path:
        """Where half-pulled files wait, named by their sha256."""
        return self.folder / OWN_FOLDER / "partial"

    def digest(self, path: str, place: Path) -> tuple[int, str]:
        """(bytes, sha256) of the file `place`, read only where it has changed since the last time."""
        before = place.stat()
        if self.knows(path, place):
            return self.digests[path].size, self.digests[path].sha256
        with place.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        after = place.stat()
        if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
            raise StorageError(f"{place} is being written while it is pushed", "push again when its writer is done")
        self.remember(path, after, found)
        return after.st_size, found

    def knows(self, path: str, place: Path) -> bool:
        """Whether the file looks as it did when its digest was computed."""
        known, now = self.digests.get(path), place.stat()
        return known is not None and (known.size, known.mtime_ns, known.inode) == (
            now.st_size,
            now.st_mtime_ns,
            now.st_ino,
        )

    def remember(self, path: str, status: os.stat_result, sha256: str) -> None:
        """Keep a digest, unless the file is so new that a later change could look the same."""
        if status.st_mtime_ns < time.time_ns() - _SETTLED_NS:
            self.digests[path] = Known(status.st_size, status.st_mtime_ns, status.st_ino, sha256)
        else:
            self.digests.pop(path, None)

    def forget(self, paths: Iterable[str]) -> None:
        """Drop the digests of files that are gone."""
        for path in paths:
            self.digests.pop(path, None)

    def save(self) -> None:
        """Write it, whole or not at all. Raises OSError."""
        path = self.folder / OWN_FOLDER / "state.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_suffix(f".{os.getpid()}.tmp")
        body = attrs.asdict(self, filter=lambda field, _: field.name != "folder")
        try:
            with temporary.open("w", encoding="utf-8") as file:
                json.dump({"format": FORMAT, **body, "sha256": _checksum(body)}, file)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def recall(folder: Path) -> Memory:
    """The folder's memory; an empty one where there is none, or none that can be read.

    Where it has been damaged its digests are not believed: the files are read again.
    """
    try:
        value: Any = json.loads((folder / OWN_FOLDER / "state.json").read_text(encoding="utf-8"))
        if value.pop("format") != FORMAT:
            return Memory(folder)
        sound = value.pop("sha256", None) in (None, _checksum(value))
        digests = {path: Known(**known) for path, known in value.pop("digests").items() if sound}
        return Memory(folder=folder, digests=digests, **value)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return Memory(folder)


def _checksum(body: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def files_of(folder: Path) -> dict[str, Path]:
    """Every file to be pushed: its path within `folder`, with ``/`` → where it is. Raises StorageError.

    Left out: names that begin with a dot (locks, half-written folders, the store's own) and ``*.tmp``.
    """
    found: dict[str, Path] = {}
    for place, folders, names in os.walk(folder, followlinks=False):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        for name in (*folders, *sorted(names)):
            path = Path(place) / name
            if name.startswith(".") or name.endswith(".tmp"):
                continue
            if path.is_symlink():
                raise StorageError(f"{path} is a link, and links can't be pushed", "put the file itself there")
            if name not in folders:
                key = path.relative_to(folder).as_posix()
                problem = path_problem(key)
                if problem:
                    raise StorageError(f"{str(path)!a} can't be pushed: {problem}", "rename it")
                found[key] = path
    return found
