"""The S3 store on a real server (SeaweedFS): signatures, parts, refusals, and a network that fails."""

import http.client
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import attrs
import boto3
import pytest

from bitnet_storage.backends.s3 import MULTIPART_ABOVE, open_s3
from bitnet_storage.config import S3StoreConfig
from bitnet_storage.contract import DurableStore, StorageError
from bitnet_storage.plugin import _open_s3
from bitnet_storage.testing.conformance import read
from bitnet_storage.testing.seaweedfs import Server

RUN = "s3"


def opened(options: S3StoreConfig) -> DurableStore:
    store = _open_s3(options)
    assert isinstance(store, DurableStore)
    return store


@attrs.define
class Proxy:
    """Stands between client and server, and fails when it is told to."""

    endpoint: str = ""
    requests: list[str] = attrs.Factory(list)
    refuse_after: int | None = None
    """Of PUTs; from then on every request is answered with ExpiredToken."""
    cut: int = 0
    """How many PUTs break half way."""
    puts: int = 0


@contextmanager
def proxy_of(target: str) -> Iterator[Proxy]:
    proxy = Proxy()
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        wbufsize = 2**16

        def log_message(self, *_: Any) -> None:
            return

        def do_GET(self) -> None:
            with lock:
                proxy.requests.append(f"{self.command} {self.path}")
                proxy.puts += self.command == "PUT"
                cut = self.command == "PUT" and proxy.cut > 0
                proxy.cut -= cut
                refused = proxy.refuse_after is not None and proxy.puts > proxy.refuse_after
            length = int(self.headers.get("Content-Length") or 0)
            if cut:
                self.rfile.read(length // 2)
                self.close_connection = True
                self.connection.close()
                return
            body = self.rfile.read(length)
            if refused:
                self.answer(403, b"<Error><Code>ExpiredToken</Code><Message>expired</Message></Error>", {})
                return
            connection = http.client.HTTPConnection(urlsplit(target).netloc, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() != "connection":
                    connection.putheader(name, value)
            connection.endheaders(body or None)
            response = connection.getresponse()
            headers = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length")
            }
            content = response.read()
            if self.command == "HEAD":
                headers["Content-Length"] = response.getheader("Content-Length", "0")
            self.answer(response.status, content, headers)
            connection.close()

        do_PUT = do_POST = do_HEAD = do_DELETE = do_GET

        def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            if self.command != "HEAD":
                self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    proxy.endpoint = f"http://127.0.0.1:{server.server_address[1]}"
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()


@pytest.mark.slow
def test_a_wrong_secret_is_refused(s3_options: S3StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_SECRET_KEY", "fake-wrong-secret")
    with pytest.raises(StorageError, match=r"the service says SignatureDoesNotMatch.*check store\.secret_key_env"):
        opened(s3_options).runs()


def test_an_unknown_key_is_refused(s3_options: S3StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TEST_ACCESS_KEY", "fake-unknown-key")
    with pytest.raises(StorageError, match=r"check store\.access_key_env or the profile"):
        opened(s3_options).push(RUN)


def test_keys_come_by_reference(s3_options: S3StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TEST_SECRET_KEY")
    with pytest.raises(StorageError) as caught:
        opened(s3_options)
    assert str(caught.value) == (
        "store.secret_key_env: the environment variable TEST_SECRET_KEY is not set  → export TEST_SECRET_KEY=..., or "
        "put it in .env"
    )
    with pytest.raises(StorageError, match="go together  → name both, or neither"):
        opened(attrs.evolve(s3_options, secret_key_env=None))


def test_without_names_the_usual_variables_count(
    s3_options: S3StoreConfig, s3_server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    assert opened(attrs.evolve(s3_options, access_key_env=None, secret_key_env=None)).runs() == []


def test_a_profile_holds_the_keys(
    s3_options: S3StoreConfig, s3_server: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "credentials"
    file.write_text(
        f"[research]\naws_access_key_id = {s3_server.access_key}\naws_secret_access_key = {s3_server.secret_key}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    by_profile = attrs.evolve(s3_options, access_key_env=None, secret_key_env=None, profile="research")
    assert opened(by_profile).runs() == []
    with pytest.raises(StorageError, match=r"store\.profile: .*nobody"):
        opened(attrs.evolve(by_profile, profile="nobody"))


def test_a_missing_bucket_is_named(s3_options: S3StoreConfig) -> None:
    with pytest.raises(StorageError, match=r"there is no such bucket .*  → make it, or correct store\.bucket"):
        opened(attrs.evolve(s3_options, bucket="not-there")).push(RUN)


def test_a_server_that_is_not_there_is_said(s3_options: S3StoreConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("bitnet_storage.backends.s3.RETRIES", 1)
    with pytest.raises(StorageError, match=r"check store\.endpoint and the network"):
        opened(attrs.evolve(s3_options, endpoint="http://127.0.0.1:9")).runs()


@pytest.mark.slow
def test_big_files_go_in_parts(s3_options: S3StoreConfig, s3_server: Server, tmp_path: Path) -> None:
    size = MULTIPART_ABOVE + 1_000_003
    block = secrets.token_bytes(1_000_003)
    with proxy_of(s3_server.endpoint) as proxy:
        store = opened(attrs.evolve(s3_options, endpoint=proxy.endpoint))
        file = store.run_folder(RUN) / "model.safetensors"
        with file.open("wb") as out:
            for _ in range(size // len(block) + 1):
                out.write(block)
        store.push(RUN)
        parts = [line for line in proxy.requests if "partNumber=" in line]
    assert len(parts) == -(-file.stat().st_size // s3_options.part_bytes)
    client = boto3.client(
        "s3", endpoint_url=s3_server.endpoint, aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key, region_name="us-east-1",
    )  # fmt: skip
    listed = client.list_objects_v2(Bucket=s3_server.bucket, Prefix=f"{s3_options.prefix}/{RUN}/files/")["Contents"]
    assert [item["Size"] for item in listed] == [file.stat().st_size]
    other = opened(attrs.evolve(s3_options, work=tmp_path / "second"))
    other.pull(RUN)
    assert (other.run_folder(RUN) / "model.safetensors").read_bytes() == file.read_bytes()


def test_a_connection_that_breaks_is_made_again(s3_options: S3StoreConfig, s3_server: Server, tmp_path: Path) -> None:
    with proxy_of(s3_server.endpoint) as proxy:
        store = opened(attrs.evolve(s3_options, endpoint=proxy.endpoint))
        (store.run_folder(RUN) / "a.bin").write_bytes(secrets.token_bytes(300_000))
        proxy.cut = 2
        store.push(RUN)
        assert proxy.cut == 0
    other = opened(attrs.evolve(s3_options, work=tmp_path / "second"))
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == read(store.run_folder(RUN))


def test_credentials_that_expire_in_the_middle_lose_nothing(s3_options: S3StoreConfig, s3_server: Server) -> None:
    with proxy_of(s3_server.endpoint) as proxy:
        store = opened(attrs.evolve(s3_options, endpoint=proxy.endpoint))
        folder = store.run_folder(RUN)
        for number in range(8):
            (folder / f"{number}.bin").write_bytes(secrets.token_bytes(1000))
        proxy.refuse_after = 3
        with pytest.raises(StorageError, match=r"the session's token has expired .*  → renew it and run again"):
            store.push(RUN)
        assert opened(s3_options).snapshot(RUN) is None
        proxy.refuse_after = None
        again = opened(attrs.evolve(s3_options, endpoint=proxy.endpoint))
        assert again.push(RUN).files == 5


def test_encryption_is_asked_for(s3_options: S3StoreConfig, s3_server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(StorageError, match='only with encryption = "aws:kms"'):
        open_s3(attrs.evolve(s3_options, kms_key_id="a-key"))
    store = opened(attrs.evolve(s3_options, encryption="AES256"))
    (store.run_folder(RUN) / "a").write_bytes(b"content")
    store.push(RUN)
    client = boto3.client(
        "s3", endpoint_url=s3_server.endpoint, aws_access_key_id=s3_server.access_key,
        aws_secret_access_key=s3_server.secret_key, region_name="us-east-1",
    )  # fmt: skip
    (item,) = client.list_objects_v2(Bucket=s3_server.bucket, Prefix=f"{s3_options.prefix}/{RUN}/files/")["Contents"]
    assert client.head_object(Bucket=s3_server.bucket, Key=item["Key"])["ServerSideEncryption"] == "AES256"
