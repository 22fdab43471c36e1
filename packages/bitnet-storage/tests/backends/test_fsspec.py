"""Any other place by its URL: packages that are missing, options by reference, no secret in what is shown."""

import uuid
from pathlib import Path

import pytest

from bitnet_storage.backends.fsspec import open_fsspec
from bitnet_storage.config import FsspecStoreConfig
from bitnet_storage.contract import DurableStore, StorageError
from bitnet_storage.plugin import _open_fsspec
from bitnet_storage.testing.conformance import read

RUN = "any"


def config(tmp_path: Path, url: str, **more: str) -> FsspecStoreConfig:
    return FsspecStoreConfig(url=url, work=tmp_path / "work", **more)  # type: ignore[arg-type]


def test_a_run_goes_through_a_url(tmp_path: Path) -> None:
    url = f"memory://{uuid.uuid4()}/runs"
    first, second = (_open_fsspec(FsspecStoreConfig(url=url, work=tmp_path / name)) for name in ("first", "second"))
    assert isinstance(first, DurableStore)
    assert isinstance(second, DurableStore)
    (first.run_folder(RUN) / "a b.txt").write_bytes(b"content")
    first.push(RUN)
    second.pull(RUN)
    assert read(second.run_folder(RUN)) == {"a b.txt": b"content"}
    assert first.location == url


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("gs://bucket/runs", r"gs:// needs a package: .*gcsfs"),
        ("sftp://host/runs", "sftp:// needs a package: .*paramiko"),
        ("nothing://x", r"fsspec can't open nothing://"),
        ("/a/folder", 'is no URL  → write e.g. "gs://bucket/runs"'),
    ],
)
def test_what_is_missing_is_named(tmp_path: Path, url: str, message: str) -> None:
    with pytest.raises(StorageError, match=message):
        open_fsspec(config(tmp_path, url))


def test_options_come_by_reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPTIONS", '{"auto_mkdir": true}')
    place = open_fsspec(config(tmp_path, f"file://{tmp_path}/place", options_env="OPTIONS"))
    assert place.filesystem.auto_mkdir is True
    monkeypatch.setenv("OPTIONS", "fake-secret-that-is-no-json")
    with pytest.raises(StorageError) as caught:
        open_fsspec(config(tmp_path, "memory://x", options_env="OPTIONS"))
    assert "fake-secret" not in str(caught.value)
    assert "holds no JSON object" in str(caught.value)


def test_a_password_in_the_url_is_refused_and_not_shown(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="must hold no password") as caught:
        config(tmp_path, "memory://me:fake-password@host/runs")
    assert "fake-password" not in str(caught.value)


def test_what_a_filesystem_raises_gets_a_message(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_fsspec(config(tmp_path, f"memory://{uuid.uuid4()}"))

    def fail(*_: object, **__: object) -> None:
        raise PermissionError("no")

    monkeypatch.setattr(place.filesystem, "pipe_file", fail)
    with pytest.raises(StorageError, match=r"not permitted .*check the credentials"):
        place.put("a/b", b"x")
    monkeypatch.setattr(place.filesystem, "pipe_file", lambda path, value, **_: place.filesystem.touch(path))
    with pytest.raises(StorageError, match=r"has 0 bytes in memory://.*, not 1: .* cut off  → push again"):
        place.put("a/b", b"x")


def test_a_snapshot_whose_answer_was_lost_is_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = open_fsspec(config(tmp_path, f"memory://{uuid.uuid4()}"))
    write = place.filesystem.pipe_file

    def sent_twice(path: str, value: bytes, **_: object) -> None:
        """What a filesystem raises that repeats a request whose answer was lost."""
        write(path, value)
        raise FileExistsError(path)

    monkeypatch.setattr(place.filesystem, "pipe_file", sent_twice)
    assert place.create("a/1.json", b"ours")
    monkeypatch.setattr(place.filesystem, "pipe_file", lambda path, value, **_: sent_twice(path, b"another's"))
    assert not place.create("a/2.json", b"ours")
