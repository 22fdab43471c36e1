"""What a store is: the one place that knows paths.

A store gives each run a working folder on a fast local disk. For the local store that folder is also the durable place.
"""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

import attrs


class StorageError(Exception):
    """A store could not do what was asked; the message says what to change."""


class Store(Protocol):
    """An open store."""

    def run_folder(self, run_name: str) -> Path:
        """The working folder of one run, made if needed. Raises StorageError if it can't be written."""
        ...

    def cache_environment(self) -> Mapping[str, str]:
        """Environment variables to set before any library reads them, e.g. ``HF_HOME``; empty leaves all as it is."""
        ...

    def free_bytes(self) -> int:
        """Bytes that can still be written."""
        ...


@attrs.frozen
class StorePlugin:
    """What a plugin says of a store, light enough to list."""

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
