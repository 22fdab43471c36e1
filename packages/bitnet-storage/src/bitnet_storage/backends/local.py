"""Folders of this machine: the store ``local``, and what every store asks of its working folders.

They are checked early to be writable, and the error names what to change where they are not.
"""

import errno
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import attrs

from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import StorageError
from bitnet_storage.names_and_paths import run_name_problem

_PROBE = b"bitnet write probe\n"


def run_folder(root: Path, run_name: str, setting: str) -> Path:
    """``root/run_name``, made if needed and proved writable; `setting` names the root in the manifest.

    Raises StorageError for a name that is not one folder's name, a run folder that is a link out of the root, and a
    place that can't be written (read-only, not a folder, disk full).
    """
    check_run_name(run_name)
    root = Path(os.path.abspath(root))
    folder = root / run_name
    make_writable(root, setting)
    make_writable(folder, setting)
    if not folder.resolve().is_relative_to(root.resolve()):
        raise StorageError(
            f"{folder} is a link that leads out of {root}", f"remove it, or point {setting} where it leads"
        )
    return folder


def check_run_name(run_name: str) -> None:
    """Raises StorageError for a name that is not one folder's name."""
    problem = run_name_problem(run_name)
    if problem:
        raise StorageError(f"run.name: {problem}", "choose another name")


def cache_environment(cache_root: Path | None) -> Mapping[str, str]:
    """``HF_HOME``, ``HF_DATASETS_CACHE`` and ``TORCH_HOME`` under `cache_root`, made if needed; empty without one.

    Raises StorageError where the cache can't be written.
    """
    if cache_root is None:
        return {}
    cache = Path(os.path.abspath(cache_root))
    folders = {
        "HF_HOME": cache / "huggingface",
        "HF_DATASETS_CACHE": cache / "huggingface" / "datasets",
        "TORCH_HOME": cache / "torch",
    }
    for folder in folders.values():
        make_writable(folder, "store.cache_root")
    return {name: str(folder) for name, folder in folders.items()}


def free_bytes(root: Path, setting: str) -> int:
    """Bytes that this user can still write on the disk of `root`, which need not exist yet."""
    place = Path(os.path.abspath(root))
    while not place.exists() and place != place.parent:
        place = place.parent
    try:
        return shutil.disk_usage(place).free
    except OSError as error:
        raise StorageError(
            f"{setting}: the free space at {place} can't be read: {error.strerror}",
            f"check that disk, or point {setting} elsewhere",
        ) from error


def make_writable(folder: Path, setting: str) -> None:
    """Make `folder` and write a small file in it, so that a run fails now and not after an hour."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder, prefix=".bitnet-probe-") as probe:
            probe.write(_PROBE)
            probe.flush()
            os.fsync(probe.fileno())
    except OSError as error:
        raise write_error(error, folder, setting) from error
    except ValueError as error:  # a NUL in the path
        raise StorageError(f"{setting}: {str(folder)!a} is not a path: {error}", "write another one") from error


def write_error(error: OSError, folder: Path, setting: str) -> StorageError:
    """What went wrong in `folder` and which setting to change."""
    match error.errno:
        case errno.EROFS:
            why, fix = f"{folder} is on a read-only file system", f"point {setting} at a place that can be written"
        case errno.EACCES | errno.EPERM:
            why, fix = f"no permission to write in {folder}", f"give it to this user, or point {setting} elsewhere"
        case errno.EEXIST | errno.ENOTDIR:
            why = f"{_file_in_the_way(folder)} is a file, not a folder"
            fix = f"move it away, or point {setting} elsewhere"
        case errno.ENOSPC | errno.EDQUOT:
            why, fix = f"no space left on the disk of {folder}", f"free some, or point {setting} at a bigger disk"
        case errno.ENAMETOOLONG:
            why, fix = f"the path {str(folder)[:80]}... is too long", f"point {setting} at a shorter one"
        case _:
            why, fix = f"{folder} can't be written: {error.strerror or error}", f"point {setting} elsewhere"
    return StorageError(f"{setting}: {why}", fix)


def _file_in_the_way(folder: Path) -> Path:
    return next((place for place in (folder, *folder.parents) if place.exists() and not place.is_dir()), folder)


@attrs.frozen
class LocalStore:
    """A `Store` whose working folders are the durable place: nothing is copied."""

    options: LocalStoreConfig

    def run_folder(self, run_name: str) -> Path:
        """``root/run_name``, made if needed and proved writable.

        Raises StorageError for a name that is not one folder's name, a run folder that is a link out of the root, and
        a place that can't be written (read-only, not a folder, disk full).
        """
        return run_folder(self.options.root, run_name, "store.root")

    def cache_environment(self) -> Mapping[str, str]:
        """``HF_HOME``, ``HF_DATASETS_CACHE`` and ``TORCH_HOME`` under `cache_root`, made if needed; empty without one.

        Raises StorageError where the cache can't be written.
        """
        return cache_environment(self.options.cache_root)

    def free_bytes(self) -> int:
        """Bytes that this user can still write on the disk of the root, which need not exist yet."""
        return free_bytes(self.options.root, "store.root")
