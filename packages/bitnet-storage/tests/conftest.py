import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_storage.config import GDriveStoreConfig, S3StoreConfig
from bitnet_storage.testing.drive_server import Drive, drive_server
from bitnet_storage.testing.seaweedfs import Server, seaweedfs


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with seaweedfs(tmp_path_factory.mktemp("seaweedfs")) as server:
        yield server


@pytest.fixture
def s3_options(s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> S3StoreConfig:
    """A place of its own in the bucket, with working keys."""
    monkeypatch.setenv("TEST_ACCESS_KEY", s3_server.access_key)
    monkeypatch.setenv("TEST_SECRET_KEY", s3_server.secret_key)
    return S3StoreConfig(
        bucket=s3_server.bucket,
        prefix=f"tests/{tmp_path.name}",
        endpoint=s3_server.endpoint,
        access_key_env="TEST_ACCESS_KEY",
        secret_key_env="TEST_SECRET_KEY",
        work=tmp_path / "work",
    )


@pytest.fixture
def drive() -> Iterator[Drive]:
    with drive_server() as server:
        yield server


@pytest.fixture
def drive_options(drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> GDriveStoreConfig:
    """A user's OAuth token for the loopback Drive."""
    token = {
        "client_id": "fake-client",
        "client_secret": "fake-client-secret",
        "refresh_token": "fake-refresh-token",
        "token_uri": f"{drive.address}token",
    }
    monkeypatch.setenv("TEST_DRIVE_TOKEN", json.dumps(token))
    return GDriveStoreConfig(
        access="api", token_env="TEST_DRIVE_TOKEN", endpoint=drive.address, chunk_bytes=2**20, work=tmp_path / "work"
    )
