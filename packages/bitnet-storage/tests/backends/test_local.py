import errno
import os
from pathlib import Path

import pytest

from bitnet_storage.backends.local import LocalStore
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import StorageError


def store_at(root: Path, cache_root: Path | None = None) -> LocalStore:
    return LocalStore(LocalStoreConfig(root=root, cache_root=cache_root))


def test_a_run_folder_is_made_and_left_empty(tmp_path: Path) -> None:
    folder = store_at(tmp_path / "deep" / "runs").run_folder("first")
    assert folder == tmp_path / "deep" / "runs" / "first"
    assert list(folder.iterdir()) == []
    assert list(folder.parent.iterdir()) == [folder]


def test_a_second_call_keeps_what_is_there(tmp_path: Path) -> None:
    store = store_at(tmp_path)
    (store.run_folder("first") / "paid.parquet").write_bytes(b"tokens")
    assert (store.run_folder("first") / "paid.parquet").read_bytes() == b"tokens"


@pytest.mark.parametrize("name", ["..", "../outside", "a/../../outside", "/etc", "", "a\0b", ".git"])
def test_no_name_leads_out_of_the_root(tmp_path: Path, name: str) -> None:
    with pytest.raises(StorageError, match=r"^run\.name: a run's name is one folder's name"):
        store_at(tmp_path / "runs").run_folder(name)
    assert not (tmp_path / "outside").exists()
    assert not (tmp_path / "runs").exists()


def test_a_link_out_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs" / "first").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(StorageError) as caught:
        store_at(tmp_path / "runs").run_folder("first")
    assert str(caught.value) == (
        f"{tmp_path}/runs/first is a link that leads out of {tmp_path}/runs  → remove it, or point store.root where it "
        "leads"
    )


def test_a_root_that_is_a_link_is_fine(tmp_path: Path) -> None:
    (tmp_path / "big-disk").mkdir()
    (tmp_path / "runs").symlink_to(tmp_path / "big-disk")
    assert store_at(tmp_path / "runs").run_folder("first").is_dir()


@pytest.mark.parametrize("inside", ["runs", "runs/deeper"])
def test_a_file_in_the_way_is_named(tmp_path: Path, inside: str) -> None:
    (tmp_path / "runs").write_text("a file")
    with pytest.raises(StorageError) as caught:
        store_at(tmp_path / inside).run_folder("first")
    assert str(caught.value) == (
        f"store.root: {tmp_path}/runs is a file, not a folder  → move it away, or point store.root elsewhere"
    )


def test_a_file_with_the_runs_name_is_named(tmp_path: Path) -> None:
    (tmp_path / "first").write_text("a file")
    with pytest.raises(StorageError, match=r"first is a file, not a folder"):
        store_at(tmp_path).run_folder("first")


@pytest.mark.parametrize(
    ("number", "message"),
    [
        (errno.EROFS, "is on a read-only file system  → point store.root at a place that can be written"),
        (errno.EACCES, "no permission to write in {folder}  → give it to this user, or point store.root elsewhere"),
        (errno.ENOSPC, "no space left on the disk of {folder}  → free some, or point store.root at a bigger disk"),
        (errno.EDQUOT, "no space left on the disk of {folder}  → free some, or point store.root at a bigger disk"),
        (errno.EIO, "{folder} can't be written: Input/output error  → point store.root elsewhere"),
    ],
)
def test_a_failing_probe_says_what_to_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, message: str
) -> None:
    def fail(_: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(StorageError) as caught:
        store_at(tmp_path).run_folder("first")
    assert message.format(folder=tmp_path) in str(caught.value)
    assert str(caught.value).startswith("store.root: ")


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_found(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(StorageError, match="no permission to write"):
            store_at(tmp_path).run_folder("first")
    finally:
        tmp_path.chmod(0o700)


def test_a_path_that_is_too_long_or_no_path_is_said(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"is too long  → point store\.root at a shorter one"):
        store_at(tmp_path / ("x" * 300)).run_folder("first")
    with pytest.raises(StorageError, match="is not a path"):
        store_at(Path("a\0b")).run_folder("first")


def test_the_probe_leaves_nothing_when_it_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError):
        store_at(tmp_path / "runs").run_folder("first")
    assert list((tmp_path / "runs").iterdir()) == []


def test_caches_go_under_the_cache_root(tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    assert store_at(tmp_path / "runs", cache).cache_environment() == {
        "HF_HOME": str(cache / "huggingface"),
        "HF_DATASETS_CACHE": str(cache / "huggingface" / "datasets"),
        "TORCH_HOME": str(cache / "torch"),
    }
    assert (cache / "torch").is_dir()
    assert not (tmp_path / "runs").exists()


def test_without_a_cache_root_nothing_is_set(tmp_path: Path) -> None:
    assert store_at(tmp_path).cache_environment() == {}


def test_a_cache_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file")
    with pytest.raises(StorageError) as caught:
        store_at(tmp_path, tmp_path / "cache").cache_environment()
    assert str(caught.value) == (
        f"store.cache_root: {tmp_path}/cache is a file, not a folder  "
        "→ move it away, or point store.cache_root elsewhere"
    )


def test_free_bytes_of_a_root_that_is_not_there_yet(tmp_path: Path) -> None:
    store = store_at(tmp_path / "not" / "yet")
    free = store.free_bytes()
    assert free > 0
    statistics = os.statvfs(tmp_path)
    assert free <= statistics.f_blocks * statistics.f_frsize
    assert not (tmp_path / "not").exists()


def test_a_relative_root_starts_at_the_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert store_at(Path("runs")).run_folder("first") == tmp_path / "runs" / "first"
