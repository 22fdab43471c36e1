"""The manifest's ``[store]`` section, one record for each of bitnet-storage's own stores."""

from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import attrs

from bitnet_storage.settings import setting


def _positive(_: Any, field: Any, value: float | None) -> None:
    if value is not None and value <= 0:
        raise ValueError(f"must be above 0: {value}")


def _env_name(_: Any, field: Any, value: str | None) -> None:
    if value is not None and not value.replace("_", "a").isalnum():
        raise ValueError("must be the name of an environment variable, not its value")


def _no_password(_: Any, field: Any, value: str | None) -> None:
    if value is not None and urlsplit(value).password is not None:
        raise ValueError("must hold no password: the options that end in _env name the variable with it")


@attrs.frozen(kw_only=True)
class WorkingFolderConfig:
    """The settings that every store with working folders of its own shares."""

    work: Path = setting(help="the folder on a fast local disk that holds the working folders of the runs", path=True)
    cache_root: Path | None = setting(
        default=None, help="where Hugging Face and torch keep downloads (none: where they always do)", path=True
    )
    push_every: float = setting(
        default=300.0,
        help="seconds between pushes while a stage is at work; what is finished is always pushed",
        validator=_positive,
    )
    keep_checkpoints: int | None = setting(
        default=None,
        help="how many checkpoints the durable place keeps (none: as many as the run)",
        validator=_positive,
    )
    lease_seconds: float = setting(
        default=90.0, help="how long a run that died still holds its lease against another machine", validator=_positive
    )


@attrs.frozen(kw_only=True)
class LocalStoreConfig(WorkingFolderConfig):
    """``[store] kind = "local"``: runs live in folders of this machine (a mounted drive counts)."""

    root: Path = setting(help="the folder that holds the runs, one folder each", path=True)
    work: Path | None = setting(  # type: ignore[assignment] # optional here, as root may be the working place too
        default=None,
        help="work in this folder of a faster disk, and copy what is finished to root (none: work in root itself)",
        path=True,
    )


@attrs.frozen(kw_only=True)
class S3StoreConfig(WorkingFolderConfig):
    """``[store] kind = "s3"``: a bucket of Amazon S3 or of any service that speaks its language.

    Keys come from the variables that the manifest names, else from a profile, else from where AWS's own tools look
    (AWS_ACCESS_KEY_ID and friends, a web identity, the machine's role).
    """

    bucket: str = setting(help="the bucket; it has to be there")
    prefix: str = setting(default="", help="the folder within the bucket that holds the runs")
    endpoint: str | None = setting(default=None, help="the service's URL (none: Amazon's)", validator=_no_password)
    region: str | None = setting(default=None, help="the bucket's region (none: AWS_REGION, else us-east-1)")
    access_key_env: str | None = setting(
        default=None, help="the variable that holds the access key", validator=_env_name
    )
    secret_key_env: str | None = setting(
        default=None, help="the variable that holds the secret key", validator=_env_name
    )
    session_token_env: str | None = setting(
        default=None, help="the variable that holds a session's token", validator=_env_name
    )
    profile: str | None = setting(default=None, help="a profile of ~/.aws, SSO included; refreshed as needed")
    encryption: Literal["AES256", "aws:kms"] | None = setting(
        default=None, help="encrypt at rest: with the service's key, or with a key of KMS"
    )
    kms_key_id: str | None = setting(default=None, help="the key of KMS (none: the account's own)")
    path_style: bool = setting(default=True, help="the bucket in the path, not in the host name; for own endpoints")
    part_bytes: int = setting(default=16 * 2**20, help="bytes of a part of a multipart upload", validator=_positive)


@attrs.frozen(kw_only=True)
class GDriveStoreConfig(WorkingFolderConfig):
    """``[store] kind = "gdrive"``: Google Drive, mounted (Colab, Drive for desktop) or by its API."""

    access: Literal["mount", "api"] = setting(default="mount", help="through the mounted drive, or Google's API")
    root: Path | None = setting(
        default=None, help="mount: the folder on the mounted drive that holds the runs", path=True
    )
    mount_point: Path = setting(default=Path("/content/drive"), help="mount: where the drive is mounted", path=True)
    auto_mount_env: str = setting(
        default="AUTO_MOUNT_GDRIVE",
        help="mount: the variable that says 1 to mount the drive in Colab where it isn't yet",
        validator=_env_name,
    )
    folder: str = setting(default="bitnet/runs", help="api: the folder in Drive that holds the runs")
    folder_id: str | None = setting(
        default=None, help="api: the id of the folder (or shared drive) in which `folder` lies (none: My Drive)"
    )
    service_account_env: str | None = setting(
        default=None,
        help="api: the variable with a service account's key: the JSON, or the path of its file",
        validator=_env_name,
    )
    token_env: str | None = setting(
        default=None,
        help="api: the variable with a user's OAuth token: the JSON, or the path of its file",
        validator=_env_name,
    )
    endpoint: str | None = setting(default=None, help="api: another address of the API, e.g. a proxy's")
    chunk_bytes: int = setting(
        default=16 * 2**20, help="api: bytes of a request; a multiple of 262144", validator=_positive
    )


@attrs.frozen(kw_only=True)
class FsspecStoreConfig(WorkingFolderConfig):
    """``[store] kind = "fsspec"``: any place that an fsspec filesystem reaches, by its URL."""

    url: str = setting(
        help='e.g. "gs://bucket/runs", "sftp://host/runs", "abfs://container/runs"', validator=_no_password
    )
    options_env: str | None = setting(
        default=None,
        help="the variable with the filesystem's own options, secrets among them, as a JSON object",
        validator=_env_name,
    )
