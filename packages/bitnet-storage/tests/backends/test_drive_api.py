"""Google Drive by its API: Google's own client against a loopback server that speaks Drive's wire format."""

import json
import secrets
from pathlib import Path

import attrs
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa

from bitnet_storage.backends.drive_api import TRIES, open_drive
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import DurableStore, StorageError
from bitnet_storage.plugin import _open_gdrive
from bitnet_storage.testing.conformance import read
from bitnet_storage.testing.drive_server import Drive

RUN = "drive"
MB = 2**20


def opened(options: GDriveStoreConfig, waited: list[float] | None = None) -> DurableStore:
    store = _open_gdrive(options)
    assert isinstance(store, DurableStore)
    if waited is not None:
        store.objects.filesystem._sleep = waited.append  # type: ignore[attr-defined]
    return store


def big_file(store: DurableStore, size: int = 9 * MB) -> bytes:
    content = secrets.token_bytes(size)
    (store.run_folder(RUN) / "model.safetensors").write_bytes(content)
    return content


def stored(drive: Drive, name: str) -> list[bytes]:
    return [file["content"] for file in drive.files.values() if file["name"].startswith(name)]


def test_a_cut_upload_goes_on_where_drive_has_got_to(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    waited: list[float] = []
    store = opened(drive_options, waited)
    content = big_file(store)
    # breaks in the middle of three of the nine requests
    drive.cut_upload_at = [MB, 600_000, MB, 300_000, MB, 100]
    store.push(RUN)
    assert stored(drive, "model.") == [content]
    assert len(waited) == 3
    small = sum(len(text) for text in stored(drive, "0000")) + 1000
    assert drive.received_bytes <= len(content) + small, "bytes were sent again that Drive had"
    assert [line for line in drive.requests if "uploadType=resumable" in line] != []


@pytest.mark.parametrize("ends", [b"\r", b"\n", b"\r\n", b"\r\r", b" ", b""])
def test_small_files_keep_their_last_bytes(drive: Drive, drive_options: GDriveStoreConfig, ends: bytes) -> None:
    objects = opened(drive_options).objects
    objects.put("files/some", b"abc" + ends)
    assert b"".join(objects.chunks("files/some", 0)) == b"abc" + ends


def test_rate_limits_are_waited_for(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    waited: list[float] = []
    store = opened(drive_options, waited)
    content = big_file(store, 1000)
    drive.failures = [(403, "rateLimitExceeded"), (403, "userRateLimitExceeded"), (429, "x"), (503, "backendError")]
    store.push(RUN)
    assert stored(drive, "model.") == [content]
    assert len(waited) == 4
    assert waited[3] > 4 * 0.5 > waited[0]


def test_a_limit_in_the_middle_of_an_upload(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    waited: list[float] = []
    store = opened(drive_options, waited)
    content = big_file(store)
    drive.fail_in_upload = [(503, "backendError"), (403, "rateLimitExceeded")]
    store.push(RUN)
    assert stored(drive, "model.") == [content]
    assert len(waited) == 2


def test_it_gives_up_in_the_end_and_says_so(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    waited: list[float] = []
    store = opened(drive_options, waited)
    drive.failures = [(503, "backendError")] * 20
    with pytest.raises(
        StorageError, match=rf"{TRIES} times in a row \(backendError\)  → check the network and run again"
    ):
        store.runs()
    assert len(waited) == TRIES - 1


def test_a_token_that_expires_in_the_middle_is_renewed(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    store = opened(drive_options)
    content = big_file(store, 1000)
    store.runs()
    drive.expire_tokens()
    store.push(RUN)
    assert stored(drive, "model.") == [content]
    assert sum(line == "POST /token" for line in drive.requests) >= 2


def test_a_revoked_token_is_said_and_the_next_push_goes_on(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    store = opened(drive_options)
    big_file(store, 1000)
    store.push(RUN)
    content = big_file(store, 1001)
    drive.expire_tokens()
    drive.refuse_tokens = True
    with pytest.raises(StorageError, match=r"Google's token can't be renewed \(invalid_grant.*make a new token or key"):
        store.push(RUN)
    drive.refuse_tokens = False
    assert store.push(RUN).generation == 2
    assert content in stored(drive, "model.")


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        ((403, "storageQuotaExceeded"), r"Google Drive is full .* set store\.folder_id to a folder in a shared drive"),
        ((403, "insufficientFilePermissions"), "share the folder with this account as an editor"),
        ((403, "accessNotConfigured"), r"refuses the request \(accessNotConfigured\)"),
        ((400, "badRequest"), r"refuses the request \(badRequest\)"),
    ],
)
def test_refusals_say_the_fix(
    drive: Drive, drive_options: GDriveStoreConfig, failure: tuple[int, str], message: str
) -> None:
    store = opened(drive_options)
    drive.failures = [failure]
    with pytest.raises(StorageError, match=message):
        store.runs()


def test_a_folder_that_somebody_deleted_is_made_again(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    """404: the ids that were known lead nowhere any more."""
    store = opened(drive_options)
    big_file(store, 1000)
    (store.run_folder(RUN) / "unchanged.txt").write_bytes(b"x")
    store.push(RUN)
    drive.files.clear()
    content = big_file(store, 1001)
    assert store.push(RUN).generation == 1
    assert stored(drive, "model.") == [content]
    assert stored(drive, "unchanged.") == [b"x"]


def test_downloads_that_break_are_asked_for_again(
    drive: Drive, drive_options: GDriveStoreConfig, tmp_path: Path
) -> None:
    store = opened(drive_options)
    big_file(store)
    store.push(RUN)
    waited: list[float] = []
    other = opened(attrs.evolve(drive_options, work=tmp_path / "second"), waited)
    drive.cut_downloads = 2
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == read(store.run_folder(RUN))
    assert len(waited) == 2


def test_listings_come_in_pages(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    drive.page_size = 2
    objects = open_drive(drive_options)
    for number in range(7):
        objects.put(f"a/{number}", b"x")
    assert len(objects.sizes("a/")) == 7


def test_of_two_files_with_one_name_the_oldest_counts(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    objects = open_drive(drive_options)
    objects.put("a/b", b"first")
    parents = next(file["parents"] for file in drive.files.values() if file["name"] == "b")
    drive.new_file({"name": "b", "parents": parents}, b"second")
    assert b"".join(open_drive(drive_options).chunks("a/b", 0)) == b"first"
    assert objects.sizes("a/") == {"a/b": 5}
    assert b"".join(objects.chunks("a/b", 0)) == b"first"


def test_names_that_would_lead_out_are_not_listed(drive: Drive, drive_options: GDriveStoreConfig) -> None:
    """Drive allows a slash in a name."""
    objects = open_drive(drive_options)
    objects.put("a/b", b"x")
    parents = next(file["parents"] for file in drive.files.values() if file["name"] == "b")
    drive.new_file({"name": "../../outside", "parents": parents}, b"x")
    assert objects.sizes("a/") == {"a/b": 1}


def test_a_service_account(drive: Drive, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    info = {
        "type": "service_account",
        "client_email": "fake@example.invalid",
        "token_uri": f"{drive.address}token",
        "private_key": key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ).decode(),
    }
    (tmp_path / "key.json").write_text(json.dumps(info))
    monkeypatch.setenv("TEST_ACCOUNT", str(tmp_path / "key.json"))
    options = GDriveStoreConfig(
        access="api", service_account_env="TEST_ACCOUNT", endpoint=drive.address, work=tmp_path / "work",
        folder_id="shared-folder", folder="runs",
    )  # fmt: skip
    drive.roots.add("shared-folder")
    store = opened(options)
    big_file(store, 10)
    store.push(RUN)
    assert [file["name"] for file in drive.files.values() if file["parents"] == ["shared-folder"]] == ["runs"]


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{not json", "is no JSON  → download the key or token again"),
        ("/not/there.json", "holds neither JSON nor the path of a file that can be read"),
        ("[1]", "holds neither JSON nor the path of a file that can be read"),
        ('{"client_id": "x"}', "it has no refresh_token, client_secret"),
    ],
)
def test_credentials_that_are_none(
    drive_options: GDriveStoreConfig, monkeypatch: pytest.MonkeyPatch, value: str, message: str
) -> None:
    monkeypatch.setenv("TEST_DRIVE_TOKEN", value)
    with pytest.raises(StorageError, match=message):
        opened(drive_options)


def test_credentials_have_to_be_named(tmp_path: Path) -> None:
    with pytest.raises(StorageError, match=r"service_account_env .* or token_env"):
        opened(GDriveStoreConfig(access="api", work=tmp_path))


def test_settings_that_drive_would_refuse(drive_options: GDriveStoreConfig) -> None:
    with pytest.raises(StorageError, match="Drive takes multiples of 262144, not 1000"):
        opened(attrs.evolve(drive_options, chunk_bytes=1000))
    with pytest.raises(StorageError, match=r"store\.folder: .* it leads out of its folder"):
        opened(attrs.evolve(drive_options, folder="runs/../.."))
