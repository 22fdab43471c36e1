"""Opens Google Drive by its API: credentials by reference, then the filesystem."""

import json
from pathlib import Path
from typing import Any

from google.auth.exceptions import GoogleAuthError
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account

from bitnet_storage.backends.drive_filesystem import DriveFileSystem
from bitnet_storage.backends.fsspec import FsspecObjects
from bitnet_storage.backends.secrets_by_name import secret
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import StorageError
from bitnet_storage.names_and_paths import path_problem

SCOPES = ("https://www.googleapis.com/auth/drive",)
AGAIN = "download the key or token again"


def open_drive(options: GDriveStoreConfig) -> FsspecObjects:
    """Drive's folder ``store.folder``, not yet asked for anything. Raises StorageError for missing credentials."""
    folder = options.folder.strip("/")
    problem = path_problem(folder)
    if problem:
        raise StorageError(
            f"store.folder: {options.folder!a} is no folder in Drive: {problem}", 'write e.g. folder = "bitnet/runs"'
        )
    if options.chunk_bytes % 2**18:
        raise StorageError(
            f"store.chunk_bytes: Drive takes multiples of {2**18}, not {options.chunk_bytes}", f"write e.g. {2**23}"
        )
    filesystem = DriveFileSystem(
        _credentials(options),
        root_id=options.folder_id or "root",
        endpoint=options.endpoint,
        chunk_bytes=options.chunk_bytes,
    )
    return FsspecObjects(filesystem, folder, f"gdrive://{options.folder_id or 'My Drive'}/{folder}")


def _credentials(options: GDriveStoreConfig) -> Any:
    if (options.service_account_env is None) == (options.token_env is None):
        raise StorageError(
            'store: access = "api" needs credentials',
            "name the variable that holds them: service_account_env (the key of a service account) or token_env (a "
            "user's OAuth token)",
        )
    try:
        if options.service_account_env is not None:
            setting = "store.service_account_env"
            key = _json(options.service_account_env, setting)
            return service_account.Credentials.from_service_account_info(key, scopes=SCOPES)
        assert options.token_env is not None
        setting = "store.token_env"
        return _user(_json(options.token_env, setting))
    except (ValueError, GoogleAuthError) as error:
        # Google's messages name the fields that are missing, not their values.
        raise StorageError(f"{setting}: can't be used: {error}", AGAIN) from None


def _user(token: dict[str, Any]) -> user_credentials.Credentials:
    """What Google's ``authorized_user`` files hold; Google's own reader would ignore their ``token_uri``."""
    missing = [field for field in ("refresh_token", "client_id", "client_secret") if not token.get(field)]
    if missing:
        raise ValueError(f"it has no {', '.join(missing)}")
    return user_credentials.Credentials(
        token=None,
        refresh_token=token["refresh_token"],
        token_uri=token.get("token_uri", "https://oauth2.googleapis.com/token"),
        client_id=token["client_id"],
        client_secret=token["client_secret"],
        scopes=token.get("scopes"),
    )


def _json(name: str, asked_by: str) -> dict[str, Any]:
    """The JSON in the variable, or in the file that it names."""
    text = secret(name, asked_by)
    try:
        value = json.loads(text if text.startswith("{") else Path(text).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise StorageError(
            f"{asked_by}: {name} holds neither JSON nor the path of a file that can be read ({error.strerror})", AGAIN
        ) from None
    except ValueError:
        raise StorageError(f"{asked_by}: what {name} leads to is no JSON", AGAIN) from None
    if not isinstance(value, dict):
        raise StorageError(f"{asked_by}: what {name} leads to is no JSON object", AGAIN)
    return value
