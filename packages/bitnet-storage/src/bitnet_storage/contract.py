"""What a store is: the one place that knows paths, and where a run's files become durable.

A store gives each run a working folder on a fast local disk. Where that folder is also the durable place
(`LocalStore`), nothing is ever copied. A `DurableStore` copies: stages write in the working folder, `push` makes what
is there durable, `pull` brings it to another machine. `bitnet_storage.sync.synced_store.SyncedStore` is that store over
any `Objects`, so a new backend is six small methods: docs/write-a-store.md.
"""

import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import attrs

_DRIVES_A_TERMINAL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u202a-\u202e\u2066-\u2069]")
"""Control characters, and those that turn a line around: a message may quote a server, or a file that was brought."""


class StorageError(Exception):
    """A store could not do what was asked.

    `why` says what is wrong and where, `fix` what to do about it; empty where nothing is known to help.
    """

    def __init__(self, why: str, fix: str = "") -> None:
        super().__init__(why, fix)
        self.why = _DRIVES_A_TERMINAL.sub("\ufffd", why)
        self.fix = fix

    def __str__(self) -> str:
        return f"{self.why}  → {self.fix}" if self.fix else self.why


class ObjectMissingError(StorageError):
    """An object that should be in the durable place isn't there."""

    def __init__(self, why: str, fix: str = "push the run again from a working folder that has it") -> None:
        super().__init__(why, fix)


class ObjectDamagedError(ObjectMissingError):
    """An object is there, and is not what was stored."""


class Store(Protocol):
    """An open store."""

    def run_folder(self, run_name: str) -> Path:
        """The working folder of one run, made if needed. Raises StorageError if it can't be written."""
        ...

    def cache_environment(self) -> Mapping[str, str]:
        """Environment variables to set before any library reads them, e.g. ``HF_HOME``; empty leaves all as it is."""
        ...

    def free_bytes(self) -> int:
        """Bytes that can still be written in the working folders."""
        ...


@attrs.frozen(kw_only=True)
class StoredFile:
    """One file of a snapshot."""

    size: int
    """Bytes."""
    sha256: str
    key: str
    """The object that holds its content."""


@attrs.frozen(kw_only=True)
class Snapshot:
    """A run folder as it was at one moment: what the durable place shows, as a whole or not at all."""

    run: str
    generation: int
    """1 for the first push of a run, then one more each time."""
    written: str
    """ISO 8601, UTC."""
    writer: str
    """Names the working folder that pushed it."""
    host: str
    files: Mapping[str, StoredFile]
    """Path within the run folder, with ``/`` → its content."""

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(file.size for file in self.files.values())


@attrs.frozen(kw_only=True)
class Transfer:
    """What a push or pull moved; files that were there already are not counted."""

    files: int
    size: int
    """Bytes."""
    generation: int
    """Of the snapshot that working folder and durable place now share; 0: there is none."""
    changed: bool = True
    """Whether anything was to be done."""


@runtime_checkable
class DurableStore(Store, Protocol):
    """A store whose durable place is not the working folder."""

    @property
    def push_every(self) -> float:
        """Seconds between pushes while a stage is at work."""
        ...

    @property
    def location(self) -> str:
        """The durable place, for people: ``s3://bucket/prefix``."""
        ...

    def runs(self) -> list[Snapshot]:
        """The newest snapshot of every run in the durable place, by name."""
        ...

    def snapshot(self, run_name: str) -> Snapshot | None:
        """The newest snapshot of one run; None where it was never pushed."""
        ...

    def pull(self, run_name: str, notify: Callable[[str], None] = ...) -> Transfer:
        """Bring the working folder up to the newest snapshot, every byte checked.

        Goes on where it was cut off. Raises StorageError where the folder holds work of its own that the durable place
        doesn't have while that has moved on; then nothing is touched.
        """
        ...

    def push(self, run_name: str) -> Transfer:
        """Make the working folder, as it is now, the newest snapshot. Readers see the old one or the new one.

        Goes on where it was cut off: objects that arrived are not sent again. Raises StorageError; what was durable
        stays so.
        """
        ...

    def lease(self, run_name: str, notify: Callable[[str], None] = ...) -> AbstractContextManager[None]:
        """Hold the run against a second writer, as well as the durable place allows.

        Waits for the lease of a machine that has died to lapse. Raises StorageError where another is at work.
        """
        ...


@runtime_checkable
class ReadableStore(DurableStore, Protocol):
    """A durable store of which single files can be looked at without a pull; `SyncedStore` is one."""

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        """The content of one of the snapshot's files, checked by its sha256; meant for small ones.

        Raises KeyError where the snapshot has no such file, StorageError where its content is gone or damaged.
        """
        ...


class Objects(Protocol):
    """A durable place of objects that are written once: what a backend has to bring. Safe to call from threads.

    Keys are relative, with ``/``; they hold any characters that a file's name may hold, spaces and Unicode among them.
    Every method raises StorageError, with the fix, for what goes wrong.
    """

    @property
    def location(self) -> str:
        """The place, for people; names no secret."""
        ...

    def put(self, key: str, source: Path | bytes) -> None:
        """Store a file's or the given bytes. When it returns they are durable.

        A put that is cut off leaves nothing, or an object of another size than the source's.
        """
        ...

    def chunks(self, key: str, start: int) -> Iterator[bytes]:
        """The object's bytes from `start` on, in order. Raises ObjectMissingError."""
        ...

    def create(self, key: str, content: bytes) -> bool:
        """Like `put`, but only where nothing has this key; False where something has.

        This is what keeps two writers apart; a place that can't decide it (Google Drive) comes as near as it can.
        """
        ...

    def sizes(self, folder: str) -> dict[str, int]:
        """Every key below `folder`, in it or deeper → bytes; empty where there is no such folder."""
        ...

    def folders(self, folder: str) -> list[str]:
        """The names of the folders directly in `folder` ("": the top)."""
        ...

    def delete(self, keys: Iterable[str]) -> None:
        """Remove objects; those that aren't there are no error."""
        ...


@runtime_checkable
class SharedStore(DurableStore, Protocol):
    """A durable store to which many machines may add files of one run; `SyncedStore` is one."""

    @property
    def objects(self) -> Objects: ...


@attrs.frozen
class StorePlugin:
    """A plugin's record of a store, light enough to list."""

    name: str
    """The manifest's ``store.kind``."""
    options: type
    """A frozen attrs class; the manifest's ``[store]`` table without ``kind`` becomes one."""
    open: Callable[[Any], Store]
    """Options in, open store out; raises StorageError."""
    summary: str = ""
    requires: tuple[str, ...] = ()
    install: str = ""
    api_version: int = 1


def secret(name: str, asked_by: str) -> str:
    """The value of the variable that the manifest names in place of a secret; `asked_by` is the setting.

    Raises StorageError where it isn't set.
    """
    value = os.environ.get(name, "").strip()
    if not value:
        raise StorageError(
            f"{asked_by}: the environment variable {name} is not set", f"export {name}=..., or put it in .env"
        )
    return value
