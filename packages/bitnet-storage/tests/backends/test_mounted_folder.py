"""Google Drive as Colab mounts it, with a stand-in for Colab's own module on the path."""

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_storage.backends.mounted_folder import in_colab
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import DurableStore, StorageError
from bitnet_storage.plugin import _open_gdrive
from bitnet_storage.testing.conformance import read

RUN = "colab"

COLAB = """
from pathlib import Path

def mount(mountpoint, force_remount=False, timeout_ms=120000, readonly=False):
    if Path(mountpoint, "refuse").exists():
        raise ValueError("mount failed: the user said no")
    Path(mountpoint, "MyDrive").mkdir(parents=True)
    with open(mountpoint + ".log", "a") as log:
        log.write("mounted\\n")
"""


@pytest.fixture
def colab(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A machine with Colab's package; returns the mount point, which is not there yet."""
    package = tmp_path / "site/google/colab"
    package.mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (package / "drive.py").write_text(COLAB)
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    yield tmp_path / "content/drive"
    for name in [name for name in sys.modules if name.startswith("google.colab")]:
        del sys.modules[name]


def options(mount_point: Path, **more: object) -> GDriveStoreConfig:
    settings = {"root": mount_point / "MyDrive/bitnet poc/runs", "work": mount_point.parent / "work"}
    return GDriveStoreConfig(mount_point=mount_point, **(settings | more))  # type: ignore[arg-type]


def opened(config: GDriveStoreConfig) -> DurableStore:
    store = _open_gdrive(config)
    assert isinstance(store, DurableStore)
    return store


def test_it_mounts_when_asked(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert in_colab()
    monkeypatch.setenv("AUTO_MOUNT_GDRIVE", "1")
    store = opened(options(colab))
    (store.run_folder(RUN) / "report.md").write_text("# Fine")
    store.push(RUN)
    assert list((colab / "MyDrive/bitnet poc/runs" / RUN / "files").glob("report.*.md"))
    opened(options(colab))
    assert Path(f"{colab}.log").read_text() == "mounted\n", "what was mounted is used as it is"


def test_it_does_not_mount_unasked(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AUTO_MOUNT_GDRIVE", raising=False)
    with pytest.raises(StorageError, match=r"set AUTO_MOUNT_GDRIVE=1 in \.env and it will be"):
        opened(options(colab))
    monkeypatch.setenv("MOUNT_IT", "true")
    assert opened(options(colab, auto_mount_env="MOUNT_IT")).runs() == []


def test_a_refused_mount_is_said(colab: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    colab.mkdir(parents=True)
    (colab / "refuse").write_text("")
    monkeypatch.setenv("AUTO_MOUNT_GDRIVE", "1")
    with pytest.raises(StorageError, match=r"could not mount Google Drive at .*the user said no"):
        opened(options(colab))


def test_outside_of_colab_the_fix_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AUTO_MOUNT_GDRIVE", "1")
    assert not in_colab()
    with pytest.raises(StorageError, match=r'outside of Colab .* use access = "api", or kind = "local"'):
        opened(options(tmp_path / "drive"))


def test_an_existing_mount_is_enough_anywhere(tmp_path: Path) -> None:
    """Drive for desktop mounts it, too."""
    (tmp_path / "drive/MyDrive").mkdir(parents=True)
    assert opened(options(tmp_path / "drive")).runs() == []


def test_a_folder_beside_the_drive_is_refused(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"store\.root: .* does not lie on the drive"):
        opened(options(tmp_path / "drive", root=tmp_path / "drive/../elsewhere"))
    with pytest.raises(StorageError, match=r"store\.root: missing"):
        opened(options(tmp_path / "drive", root=None))


def test_a_mount_that_vanishes_leaves_no_files_beside_it(tmp_path: Path) -> None:
    mount = tmp_path / "drive"
    (mount / "MyDrive").mkdir(parents=True)
    store = opened(options(mount))
    (store.run_folder(RUN) / "a").write_bytes(b"1")
    store.push(RUN)
    mount.rename(tmp_path / "unmounted")
    (store.run_folder(RUN) / "a").write_bytes(b"22")
    for call in (lambda: store.push(RUN), lambda: store.pull(RUN), store.runs):
        with pytest.raises(StorageError, match=r"the drive is no longer mounted  → mount it again .* and run again"):
            call()
    assert not mount.exists()
    (tmp_path / "unmounted").rename(mount)
    assert store.push(RUN).generation == 2
    shutil.rmtree(store.run_folder(RUN))
    store.pull(RUN)
    assert read(store.run_folder(RUN)) == {"a": b"22"}


def test_a_mount_that_vanishes_in_the_middle_of_a_push(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mount = tmp_path / "drive"
    (mount / "MyDrive").mkdir(parents=True)
    store = opened(options(mount))
    for number in range(5):
        (store.run_folder(RUN) / str(number)).write_bytes(b"%d" % number)
    replace = Path.replace
    moved: list[Path] = []

    def vanish(self: Path, target: Path) -> Path:
        if mount in self.parents:
            moved.append(self)
            if len(moved) == 3:
                mount.rename(tmp_path / "unmounted")
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", vanish)
    with pytest.raises(StorageError, match="the drive is no longer mounted"):
        store.push(RUN)
    monkeypatch.undo()
    assert not mount.exists()
    (tmp_path / "unmounted").rename(mount)
    assert opened(options(mount)).push(RUN).generation == 1
