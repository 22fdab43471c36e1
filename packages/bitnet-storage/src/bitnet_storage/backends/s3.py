"""Objects in a bucket of Amazon S3, or of a service that speaks its language, through obstore."""

import os
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path
from typing import Any

import attrs
import obstore
from obstore.exceptions import (
    AlreadyExistsError,
    BaseError,
    NotFoundError,
    PermissionDeniedError,
    PreconditionError,
    UnauthenticatedError,
)
from obstore.store import S3Store

from bitnet_storage.config import S3StoreConfig
from bitnet_storage.contract import ObjectMissingError, StorageError, secret
from bitnet_storage.names_and_paths import checked_key

MULTIPART_ABOVE = 64 * 2**20
"""Bytes; a bigger file is sent in parts, some at the same time."""
MOST_PARTS = 10_000
PARTS_AT_ONCE = 8
RETRIES = 6
"""Of one request, with growing pauses, after a broken connection or an answer of the kind 5xx."""
RANGE = 8 * 2**20
"""Bytes that are asked for at a time, `PARTS_AT_ONCE` of them at once."""


@attrs.frozen
class S3Objects:
    """`Objects` under ``s3://bucket/prefix``."""

    store: S3Store
    location: str
    part_bytes: int

    def put(self, key: str, source: Path | bytes) -> None:
        size = len(source) if isinstance(source, bytes) else source.stat().st_size
        try:
            obstore.put(
                self.store,
                checked_key(key),
                source,
                use_multipart=size > MULTIPART_ABOVE,
                chunk_size=max(self.part_bytes, -(-size // MOST_PARTS)),
                max_concurrency=PARTS_AT_ONCE,
            )
        except (BaseError, OSError) as error:
            raise self._storage_error(error, key) from error

    def chunks(self, key: str, start: int) -> Iterator[bytes]:
        try:
            size = obstore.head(self.store, checked_key(key))["size"]
            ends = iter(range(start, size, RANGE))
            with ThreadPoolExecutor(PARTS_AT_ONCE) as pool:
                coming: deque[Future[Any]] = deque()

                def ask() -> None:
                    begin = next(ends, None)
                    if begin is not None:
                        length = min(RANGE, size - begin)
                        coming.append(pool.submit(obstore.get_range, self.store, key, start=begin, length=length))

                for _ in range(PARTS_AT_ONCE):
                    ask()
                while coming:
                    block = coming.popleft().result()
                    ask()
                    yield block
        except (BaseError, OSError) as error:
            raise self._storage_error(error, key) from error

    def create(self, key: str, content: bytes) -> bool:
        try:
            obstore.put(self.store, checked_key(key), content, mode="create", use_multipart=False)
        except (AlreadyExistsError, PreconditionError):
            return self._is_ours(key, content)
        except (BaseError, OSError) as error:
            raise self._storage_error(error, key) from error
        return self._is_ours(key, content)

    def sizes(self, folder: str) -> dict[str, int]:
        try:
            pages = obstore.list(self.store, prefix=folder.rstrip("/") + "/", chunk_size=1000)
            return {item["path"]: item["size"] for page in pages for item in page}
        except (BaseError, OSError) as error:
            raise self._storage_error(error, folder) from error

    def folders(self, folder: str) -> list[str]:
        try:
            prefixes = obstore.list_with_delimiter(self.store, folder or None)["common_prefixes"]
        except (BaseError, OSError) as error:
            raise self._storage_error(error, folder) from error
        return sorted(prefix.rstrip("/").rpartition("/")[2] for prefix in prefixes)

    def delete(self, keys: Iterable[str]) -> None:
        for key in keys:
            try:
                obstore.delete(self.store, checked_key(key))
            except (NotFoundError, FileNotFoundError):
                continue
            except (BaseError, OSError) as error:
                raise self._storage_error(error, key) from error

    def _is_ours(self, key: str, content: bytes) -> bool:
        """Whether the object is what was to be created.

        An answer may be lost and the request repeated: then the object is there already, and ours. And a service
        that knows no condition overwrites: who comes first finds the other's content.
        """
        return b"".join(bytes(chunk) for chunk in self.chunks(key, 0)) == content

    def _storage_error(self, error: Exception, key: str) -> StorageError:
        text = str(error)
        code = next((code for code in _KNOWN if f"<Code>{code}</Code>" in text), None)
        if code is not None:
            why, fix = _KNOWN[code]
            return StorageError(f"{self.location}: {why} (the service says {code})", fix)
        if isinstance(error, NotFoundError | FileNotFoundError):
            return ObjectMissingError(f"{key} is missing in {self.location}")
        if isinstance(error, UnauthenticatedError | PermissionDeniedError | PermissionError):
            return StorageError(
                f"{self.location}: the service refuses these credentials: {_one_line(text)}",
                "check the keys that [store] names and that they may read, write, list and delete there",
            )
        return StorageError(
            f"{self.location}: {key} can't be transferred: {_one_line(text)}",
            "check store.endpoint and the network, and run again: what has arrived is not sent again",
        )


_KNOWN = {
    "ExpiredToken": ("the session's token has expired", "renew it and run again: what has arrived is not sent again"),
    "RequestTimeTooSkewed": ("this machine's clock is wrong", "set it"),
    "InvalidAccessKeyId": ("the access key is unknown there", "check store.access_key_env or the profile"),
    "SignatureDoesNotMatch": ("the secret key does not belong to the access key", "check store.secret_key_env"),
    "NoSuchBucket": ("there is no such bucket", "make it, or correct store.bucket"),
    "InvalidBucketName": ("store.bucket is no name of a bucket", "correct store.bucket"),
    "QuotaExceeded": ("the quota is used up", "free some space there"),
    "AccessDenied": ("these credentials may not do that", "let them read, write, list and delete there"),
}
"""The service's code → what is wrong, and the fix."""


def open_s3(options: S3StoreConfig) -> S3Objects:
    """The bucket, not yet asked for anything. Raises StorageError for credentials that aren't there."""
    config: dict[str, Any] = {
        "region": options.region or os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1",
        "virtual_hosted_style_request": options.endpoint is None or not options.path_style,
    }
    if options.endpoint is not None:
        config["endpoint"] = options.endpoint.rstrip("/")
    if options.encryption is not None:
        config["server_side_encryption"] = options.encryption
    if options.kms_key_id is not None:
        if options.encryption != "aws:kms":
            raise StorageError('store.kms_key_id: only with encryption = "aws:kms"', "write that, or leave the key out")
        config["sse_kms_key_id"] = options.kms_key_id
    try:
        store = S3Store(
            options.bucket,
            prefix=options.prefix.strip("/") or None,
            client_options={
                "allow_http": (options.endpoint or "").startswith("http://"),
                "connect_timeout": "10s",
                "timeout": "600s",
            },
            retry_config={
                "max_retries": RETRIES,
                "retry_timeout": timedelta(seconds=120),
                "backoff": {
                    "init_backoff": timedelta(milliseconds=100),
                    "max_backoff": timedelta(seconds=10),
                    "base": 2,
                },
            },
            **config,
            **_credentials(options),
        )
    except (BaseError, ValueError) as error:
        raise StorageError(
            f"[store]: the bucket {options.bucket!a} can't be opened: {_one_line(str(error))}",
            "check store.bucket, store.region and store.endpoint",
        ) from error
    place = "/".join(part for part in (options.bucket, options.prefix.strip("/")) if part)
    at = f" at {options.endpoint}" if options.endpoint else ""
    return S3Objects(store, f"s3://{place}{at}", options.part_bytes)


def _credentials(options: S3StoreConfig) -> dict[str, Any]:
    """By reference, then by profile; else obstore looks where AWS's own tools look."""
    if (options.access_key_env is None) != (options.secret_key_env is None):
        raise StorageError("store.access_key_env and store.secret_key_env go together", "name both, or neither")
    if options.access_key_env is not None and options.secret_key_env is not None:
        found = {
            "access_key_id": secret(options.access_key_env, "store.access_key_env"),
            "secret_access_key": secret(options.secret_key_env, "store.secret_key_env"),
        }
        if options.session_token_env is not None:
            found["session_token"] = secret(options.session_token_env, "store.session_token_env")
        return found
    if options.profile is None:
        return {}
    try:
        import boto3
        from botocore.exceptions import BotoCoreError
        from obstore.auth.boto3 import Boto3CredentialProvider
    except ImportError as error:
        raise StorageError("store.profile: needs boto3", "pip install boto3") from error
    try:
        return {"credential_provider": Boto3CredentialProvider(boto3.Session(profile_name=options.profile))}
    except (BotoCoreError, ValueError) as error:
        raise StorageError(
            f"store.profile: {_one_line(str(error))}", "name one that `aws configure list-profiles` lists"
        ) from error


def _one_line(text: str) -> str:
    """What a person can use: without obstore's debug print of its own error."""
    text = " ".join(text.split("\nDebug source:")[0].split())
    return text if len(text) <= 300 else text[:297] + "..."
