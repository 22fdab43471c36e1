"""Google Drive as a mounted folder: Colab's, or Drive for desktop's."""

import importlib.util
import os
from pathlib import Path

from bitnet_storage.backends.mounted_folder import FolderObjects
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import StorageError

_YES = ("1", "true", "yes", "on")
_REMOUNT = "mount it again (drive.mount) and run again: the working folder is kept, and pushed then"


def open_mount(options: GDriveStoreConfig) -> FolderObjects:
    """The folder ``store.root`` on the mounted drive; mounts it in Colab where asked to. Raises StorageError."""
    mount_point = Path(os.path.abspath(options.mount_point))
    drive = mount_point / "MyDrive"
    if options.root is None:
        raise StorageError(
            "store.root: missing: the folder on the drive that holds the runs",
            f'write e.g. root = "{drive}/bitnet/runs"',
        )
    root = Path(os.path.abspath(options.root))
    if not root.is_relative_to(mount_point):
        raise StorageError(
            f"store.root: {root} does not lie on the drive, which is mounted at {mount_point}",
            f'write a folder below {drive}, or store.mount_point, or use kind = "local" for a folder of this machine',
        )
    if not drive.is_dir():
        _mount(options, mount_point, drive)
    # A shared drive lies beside MyDrive; both are gone when the mount is.
    return FolderObjects(root, mount=drive, remount=_REMOUNT)


def in_colab() -> bool:
    """Whether Colab's own package is there."""
    try:
        return importlib.util.find_spec("google.colab") is not None
    except ModuleNotFoundError:
        return False


def _mount(options: GDriveStoreConfig, mount_point: Path, drive: Path) -> None:
    if not in_colab():
        raise StorageError(
            f"{drive} is not there, and outside of Colab the drive can't be mounted from here",
            "where Drive for desktop runs, set store.mount_point to its folder; "
            'elsewhere use access = "api", or kind = "local"',
        )
    if os.environ.get(options.auto_mount_env, "").strip().lower() not in _YES:
        raise StorageError(
            f"Google Drive is not mounted at {mount_point}",
            f"set {options.auto_mount_env}=1 in .env and it will be, or run this in a cell first: "
            f"from google.colab import drive; drive.mount('{mount_point}')",
        )
    from google.colab import drive as colab_drive

    try:
        colab_drive.mount(str(mount_point))
    except Exception as error:  # Colab raises ValueError, and others with its versions
        raise StorageError(
            f"Colab could not mount Google Drive at {mount_point}: {error}",
            "permit it in the window that Colab opens; where that never shows (a run from a terminal), mount it in a "
            "cell first",
        ) from error
    if not drive.is_dir():
        raise StorageError(
            f"Colab mounted the drive at {mount_point}, but {drive} is not there", "set store.mount_point"
        )
