"""Objects in any filesystem of fsspec."""

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import attrs
import fsspec

from bitnet_storage.config import FsspecStoreConfig
from bitnet_storage.contract import ObjectMissingError, StorageError, secret
from bitnet_storage.names_and_paths import checked_key

RANGE = 8 * 2**20
"""Bytes that are asked for at a time."""


@attrs.frozen
class FsspecObjects:
    """`Objects` under the folder `root` of a filesystem."""

    filesystem: Any
    """An ``fsspec.AbstractFileSystem``."""
    root: str
    location: str

    def put(self, key: str, source: Path | bytes) -> None:
        path = self._path(key)
        try:
            self.filesystem.makedirs(self.filesystem._parent(path), exist_ok=True)
            if isinstance(source, bytes):
                self.filesystem.pipe_file(path, source)
                size = len(source)
            else:
                self.filesystem.put_file(str(source), path)
                size = source.stat().st_size
            arrived = self._info(path)["size"]
        except StorageError:
            raise
        except Exception as error:  # each filesystem has errors of its own
            raise self._storage_error(error, key) from error
        if arrived != size:
            raise StorageError(
                f"{key} has {arrived} bytes in {self.location}, not {size}: the transfer was cut off", "push again"
            )

    def chunks(self, key: str, start: int) -> Iterator[bytes]:
        path = self._path(key)
        try:
            size = self._info(path)["size"]
            while start < size:
                block = self.filesystem.cat_file(path, start=start, end=min(start + RANGE, size))
                if not block:
                    raise StorageError(f"{key} in {self.location} ends after {start} of {size} bytes", "pull again")
                yield block
                start += len(block)
        except StorageError:
            raise
        except Exception as error:
            raise self._storage_error(error, key) from error

    def create(self, key: str, content: bytes) -> bool:
        """Exclusive where the filesystem knows how (``mode="create"``); elsewhere it is looked at first."""
        path = self._path(key)
        try:
            self.filesystem.makedirs(self.filesystem._parent(path), exist_ok=True)
            self.filesystem.invalidate_cache()
            if self.filesystem.exists(path):
                return False
            try:
                self.filesystem.pipe_file(path, content, mode="create")
            except FileExistsError:  # maybe by our own request: its answer was lost, and it was sent again
                pass
            except (NotImplementedError, TypeError):  # no such mode here; older ones don't take the argument at all
                self.filesystem.pipe_file(path, content)
            return bytes(self.filesystem.cat_file(path)) == content
        except StorageError:
            raise
        except Exception as error:
            raise self._storage_error(error, key) from error

    def sizes(self, folder: str) -> dict[str, int]:
        top = self._path(folder.rstrip("/"))
        try:
            self.filesystem.invalidate_cache()
            found = self.filesystem.find(top, detail=True)
        except FileNotFoundError:
            return {}
        except StorageError:
            raise
        except Exception as error:
            raise self._storage_error(error, folder) from error
        start = len(self.root) + 1 if self.root else 0
        return {path[start:]: item["size"] for path, item in found.items() if path != top}

    def folders(self, folder: str) -> list[str]:
        try:
            self.filesystem.invalidate_cache()
            items = self.filesystem.ls(self._path(folder.rstrip("/")) if folder else self.root, detail=True)
        except FileNotFoundError:
            return []
        except StorageError:
            raise
        except Exception as error:
            raise self._storage_error(error, folder) from error
        return sorted(item["name"].rstrip("/").rpartition("/")[2] for item in items if item["type"] == "directory")

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                self.filesystem.rm_file(self._path(key))
            except FileNotFoundError:
                continue
            except StorageError:
                raise
            except Exception as error:
                raise self._storage_error(error, key) from error

    def _path(self, key: str) -> str:
        return f"{self.root}/{checked_key(key)}" if self.root else checked_key(key)

    def _info(self, path: str) -> dict[str, Any]:
        self.filesystem.invalidate_cache(self.filesystem._parent(path))
        info: dict[str, Any] = self.filesystem.info(path)
        return info

    def _storage_error(self, error: Exception, key: str) -> StorageError:
        if isinstance(error, FileNotFoundError):
            return ObjectMissingError(f"{key} is missing in {self.location}")
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        if isinstance(error, PermissionError):
            return StorageError(
                f"{self.location}: not permitted ({reason})", "check the credentials and their rights there"
            )
        return StorageError(
            f"{self.location}: {key} can't be transferred ({reason})",
            "check the place and the network, and run again: what has arrived is not sent again",
        )


def open_fsspec(options: FsspecStoreConfig) -> FsspecObjects:
    """The filesystem of ``store.url``. Raises StorageError, with the package to install where that is missing."""
    protocol = options.url.partition("://")[0] if "://" in options.url else ""
    if not protocol:
        raise StorageError(f"store.url: {options.url!a} is no URL", 'write e.g. "gs://bucket/runs"')
    try:
        filesystem, root = fsspec.core.url_to_fs(options.url, **_own_options(options))
    except ImportError as error:
        raise StorageError(f"store.url: {protocol}:// needs a package: {error}", "install it with pip") from error
    except ValueError as error:
        raise StorageError(f"store.url: fsspec can't open {protocol}://: {error}", "write another URL") from error
    except Exception as error:  # each filesystem has errors of its own; some connect at once
        raise StorageError(
            f"store.url: {protocol}:// can't be opened: {type(error).__name__}: {error}",
            "check store.url, and what store.options_env leads to",
        ) from error
    return FsspecObjects(filesystem, root.rstrip("/"), _without_password(options.url.rstrip("/")))


def _without_password(url: str) -> str:
    scheme, separator, rest = url.partition("://")
    place, slash, path = rest.partition("/")
    return f"{scheme}{separator}{place.rpartition('@')[2]}{slash}{path}"


def _own_options(options: FsspecStoreConfig) -> dict[str, Any]:
    if options.options_env is None:
        return {}
    try:
        value = json.loads(secret(options.options_env, "store.options_env"))
    except ValueError:
        value = None
    if not isinstance(value, dict):
        raise StorageError(
            f"store.options_env: {options.options_env} holds no JSON object", 'put one there, e.g. {"key": "value"}'
        )
    return value
