"""Every backend passes the kit that authors of stores get."""

import uuid
from pathlib import Path

import pytest

from bitnet_storage.backends.drive_api import open_drive
from bitnet_storage.backends.fsspec import open_fsspec
from bitnet_storage.backends.mounted_folder import FolderObjects
from bitnet_storage.backends.s3 import open_s3
from bitnet_storage.config import FsspecStoreConfig, GDriveStoreConfig, S3StoreConfig
from bitnet_storage.contract import Objects
from bitnet_storage.testing import StoreConformance


class TestFolder(StoreConformance):
    examples = 40

    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return FolderObjects(tmp_path / "durable place")


class TestFolderWithoutLinks(StoreConformance):
    """As mounted drives are: a file can't get a second name there."""

    @pytest.fixture
    def objects(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Objects:
        def link(*_: object) -> None:
            raise PermissionError(1, "Operation not permitted")

        monkeypatch.setattr("os.link", link)
        return FolderObjects(tmp_path / "drive")


class TestMemory(StoreConformance):
    """fsspec's own example of a filesystem that knows no exclusive creation."""

    exclusive = False

    @pytest.fixture
    def objects(self, tmp_path: Path) -> Objects:
        return open_fsspec(FsspecStoreConfig(url=f"memory://{uuid.uuid4()}/runs", work=tmp_path))


class TestS3(StoreConformance):
    examples = 8

    @pytest.fixture
    def objects(self, s3_options: S3StoreConfig) -> Objects:
        return open_s3(s3_options)


class TestDriveApi(StoreConformance):
    examples = 4
    exclusive = False

    @pytest.fixture
    def objects(self, drive_options: GDriveStoreConfig) -> Objects:
        return open_drive(drive_options)
