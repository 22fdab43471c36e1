"""Google Drive as a mounted folder, Colab's or Drive for desktop's; and objects as files of any mounted folder."""

import contextlib
import errno
import importlib.util
import os
import secrets
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

import attrs

from bitnet_storage.backends import local
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import ObjectMissingError, StorageError
from bitnet_storage.names_and_paths import inside

BLOCK = 4 * 2**20
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK, errno.EXDEV, errno.EINVAL)


@attrs.frozen
class FolderObjects:
    """`Objects` as files under `root`."""

    root: Path
    setting: str = "store.root"
    """What names the root in the manifest."""
    mount: Path | None = None
    """A folder that is there only while the drive is mounted; without it nothing is written beside the drive."""
    remount: str = ""
    """What to do where `mount` is gone."""

    @property
    def location(self) -> str:
        return str(self.root)

    def put(self, key: str, source: Path | bytes) -> None:
        target = self._target(key)
        temporary = target.with_name(f".{secrets.token_hex(8)}.tmp")
        try:
            with self._open_in_folder(temporary) as out:
                if isinstance(source, bytes):
                    out.write(source)
                else:
                    with source.open("rb") as content:
                        shutil.copyfileobj(content, out, BLOCK)
                out.flush()
                os.fsync(out.fileno())
            temporary.replace(target)
        except OSError as error:
            raise self._storage_error(error) from error
        finally:
            _delete_quietly(temporary)

    def chunks(self, key: str, start: int) -> Iterator[bytes]:
        path = self._target(key)
        try:
            with path.open("rb") as file:
                file.seek(start)
                while block := file.read(BLOCK):
                    yield block
        except FileNotFoundError as error:
            self._check_mount()
            raise ObjectMissingError(f"{path} is missing") from error
        except OSError as error:
            raise self._storage_error(error) from error

    def create(self, key: str, content: bytes) -> bool:
        target = self._target(key)
        temporary = f"{key.rpartition('/')[0]}/.{secrets.token_hex(8)}.tmp"
        self.put(temporary, content)
        try:
            os.link(self.root / temporary, target)
        except FileExistsError:
            return False
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise self._storage_error(error) from error
            return self._create_without_links(target, content)
        finally:
            _delete_quietly(self.root / temporary)
        return True

    def sizes(self, folder: str) -> dict[str, int]:
        self._check_mount()
        found: dict[str, int] = {}
        top = inside(self.root, folder.rstrip("/"))
        try:
            for place, _, names in os.walk(top, onerror=_raise):
                for name in names:
                    if not name.endswith(".tmp"):
                        path = Path(place) / name
                        found[path.relative_to(self.root).as_posix()] = path.stat().st_size
        except FileNotFoundError:
            if top.exists():  # a file went while it was listed
                return self.sizes(folder)
            return {}
        except OSError as error:
            raise self._storage_error(error) from error
        return found

    def folders(self, folder: str) -> list[str]:
        self._check_mount()
        top = inside(self.root, folder.rstrip("/")) if folder else self.root
        try:
            return sorted(path.name for path in top.iterdir() if path.is_dir() and not path.is_symlink())
        except FileNotFoundError:
            return []
        except OSError as error:
            raise self._storage_error(error) from error

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            path = self._target(key)
            try:
                path.unlink(missing_ok=True)
                path.parent.rmdir()
            except OSError as error:
                if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
                    raise self._storage_error(error) from error

    def _create_without_links(self, target: Path, content: bytes) -> bool:
        """Exclusive too, but a reader may see it half written; a snapshot's checksum shows it."""
        try:
            with target.open("xb") as out:
                out.write(content)
                out.flush()
                os.fsync(out.fileno())
        except FileExistsError:
            return False
        except OSError as error:
            raise self._storage_error(error) from error
        return True

    def _open_in_folder(self, path: Path) -> BinaryIO:
        """Open for writing; the folder is made, again where another writer removed it as empty meanwhile."""
        for _ in range(3):
            self._make_folder(path.parent)
            try:
                return path.open("wb")
            except FileNotFoundError:
                continue
        return path.open("wb")

    def _make_folder(self, folder: Path) -> None:
        """Below a mount one part at a time, so that a mount that goes meanwhile is not made anew as a plain folder."""
        if self.mount is None:
            folder.mkdir(parents=True, exist_ok=True)
            return
        # A shared drive lies beside MyDrive, so both begin at the folder above.
        place = self.mount.parent
        for part in folder.relative_to(place).parts:
            place /= part
            if place != self.mount:
                place.mkdir(exist_ok=True)

    def _target(self, key: str) -> Path:
        self._check_mount()
        return inside(self.root, key)

    def _check_mount(self) -> None:
        if self.mount is not None and not self.mount.is_dir():
            raise StorageError(f"{self.setting}: {self.mount} is gone: the drive is no longer mounted", self.remount)

    def _storage_error(self, error: OSError) -> StorageError:
        self._check_mount()
        place = Path(error.filename) if isinstance(error.filename, str) else self.root
        return local.write_error(error, place if place.is_dir() else place.parent, self.setting)


def _delete_quietly(path: Path) -> None:
    """What can't be deleted (the disk is gone) is left: the error that matters is on its way."""
    with contextlib.suppress(OSError):
        path.unlink(missing_ok=True)


def _raise(error: OSError) -> None:
    raise error


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
