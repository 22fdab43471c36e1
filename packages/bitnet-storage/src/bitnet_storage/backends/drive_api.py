"""Google Drive by its API: credentials by reference, and an fsspec filesystem on Google's own client library.

Drive has ids where filesystems have paths, and lets one folder hold two files of one name: of those the oldest counts.
Uploads are resumable: one that is cut off goes on at the byte that Drive has. Calls that Drive limits (403
rateLimitExceeded, 429) and that its servers fail (5xx) are repeated, ever more slowly.
API: https://developers.google.com/workspace/drive/api/guides/manage-uploads
"""

import json
import random
import threading
import time
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path
from typing import Any, NoReturn, TypeVar

import httplib2
from fsspec.spec import AbstractFileSystem
from google.auth.exceptions import GoogleAuthError, RefreshError, TransportError
from google.oauth2 import credentials as user_credentials
from google.oauth2 import service_account
from google_auth_httplib2 import AuthorizedHttp
from googleapiclient.discovery import build_from_document
from googleapiclient.discovery_cache import get_static_doc
from googleapiclient.errors import HttpError
from googleapiclient.http import MediaFileUpload, MediaInMemoryUpload, build_http

from bitnet_storage.backends.fsspec import FsspecObjects
from bitnet_storage.config import GDriveStoreConfig
from bitnet_storage.contract import StorageError, secret
from bitnet_storage.names_and_paths import path_problem

FOLDER = "application/vnd.google-apps.folder"
MEDIA = "application/octet-stream"
TRIES = 7
"""How often a call is made before it counts as failed; the pauses between sum up to about a minute."""
RESUMABLE_ABOVE = 5 * 2**20
"""Bytes; smaller files go in one request."""
_CUT = (OSError, HTTPException, httplib2.HttpLib2Error, TransportError)
_LIMITS = ("rateLimitExceeded", "userRateLimitExceeded", "sharingRateLimitExceeded")
_FIELDS = "id, name, size, mimeType, createdTime"

T = TypeVar("T")


class DriveFileSystem(AbstractFileSystem):
    """Paths below one folder of Drive: ``runs/ci/files/report.md``. Safe to use from threads."""

    protocol = "bitnet-drive"
    cachable = False
    root_marker = ""

    def __init__(
        self,
        credentials: Any,
        root_id: str = "root",
        endpoint: str | None = None,
        chunk_bytes: int = 16 * 2**20,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        super().__init__()
        self._credentials = credentials
        self._chunk_bytes = chunk_bytes
        self._sleep = sleep
        self._local = threading.local()
        self._making = threading.Lock()
        self._ids: dict[str, str] = {"": root_id}
        self._files = _service(endpoint, self._http()).files()

    # What fsspec asks for

    def ls(self, path: str, detail: bool = True, **_: Any) -> list[Any]:
        path = self._strip_protocol(path).strip("/")
        entries: dict[str, dict[str, Any]] = {}
        for item in self._list(self._id(path), path):
            if item["name"] not in entries:
                entries[item["name"]] = self._entry(path, item)
        found = sorted(entries.values(), key=lambda entry: str(entry["name"]))
        return found if detail else [entry["name"] for entry in found]

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        path = self._strip_protocol(path).strip("/")
        if not path:
            return {"name": "", "size": 0, "type": "directory", "id": self._ids[""]}
        item = self._find(path)
        if item is None:
            raise FileNotFoundError(path)
        return self._entry(self._parent(path), item)

    def makedirs(self, path: str, exist_ok: bool = True) -> None:
        path = self._strip_protocol(path).strip("/")
        with self._making:  # two threads would make two folders of one name
            place = ""
            for part in filter(None, path.split("/")):
                parent, place = place, f"{place}/{part}" if place else part
                if place in self._ids or self._find(place) is not None:
                    continue
                body = {"name": part, "mimeType": FOLDER, "parents": [self._id(parent)]}
                made = self._call(partial(self._files.create, body=body, fields="id", supportsAllDrives=True))
                self._ids[place] = made["id"]

    def mkdir(self, path: str, create_parents: bool = True, **_: Any) -> None:
        self.makedirs(path)

    def put_file(self, lpath: str, rpath: str, **_: Any) -> None:
        """Upload a file; one of that name is replaced once all of it has arrived."""
        self._upload(rpath, lambda: MediaFileUpload(lpath, mimetype=MEDIA, chunksize=self._chunk_bytes, resumable=True))

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Upload bytes. ``mode="create"`` raises FileExistsError where the name is taken, also at this very moment."""
        # In one request Google's client sets parts apart by a bare newline: a last \r would be taken for half of that.
        resumable = len(value) > RESUMABLE_ABOVE or value.endswith(b"\r")
        made = self._upload(
            path,
            lambda: MediaInMemoryUpload(value, mimetype=MEDIA, chunksize=self._chunk_bytes, resumable=resumable),
            new=mode == "create",
        )
        if mode == "create":
            path = self._strip_protocol(path).strip("/")
            first = self._find(path)
            if first is not None and first["id"] != made["id"]:
                self._call(lambda: self._files.delete(fileId=made["id"], supportsAllDrives=True))
                self._ids[path] = first["id"]
                raise FileExistsError(path)

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any) -> bytes:
        path = self._strip_protocol(path).strip("/")

        def request() -> Any:
            asked = self._files.get_media(fileId=self._id(path), supportsAllDrives=True)
            if start is not None or end is not None:
                asked.headers["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
            return asked

        content: bytes = self._call(request, path)
        return content

    def rm_file(self, path: str) -> None:
        path = self._strip_protocol(path).strip("/")
        self._call(lambda: self._files.delete(fileId=self._id(path), supportsAllDrives=True), path)
        self._ids.pop(path, None)

    # How Drive does it

    def _entry(self, parent: str, item: dict[str, Any]) -> dict[str, Any]:
        path = f"{parent}/{item['name']}" if parent else item["name"]
        self._ids[path] = item["id"]
        kind = "directory" if item["mimeType"] == FOLDER else "file"
        return {"name": path, "size": int(item.get("size", 0)), "type": kind, "id": item["id"]}

    def _id(self, path: str) -> str:
        """The id of a path, asked for once. Raises FileNotFoundError."""
        if path not in self._ids and self._find(path) is None:
            raise FileNotFoundError(path)
        return self._ids[path]

    def _find(self, path: str) -> dict[str, Any] | None:
        """The oldest file or folder of that path; None: there is none."""
        parent, _, name = path.rpartition("/")
        try:
            items = self._list(self._id(parent), parent, name)
        except FileNotFoundError:
            return None
        if not items:
            self._ids.pop(path, None)
            return None
        first = min(items, key=lambda item: (item["createdTime"], item["id"]))
        self._ids[path] = first["id"]
        return first

    def _list(self, folder_id: str, path: str, name: str | None = None) -> list[dict[str, Any]]:
        query = f"'{_quoted(folder_id)}' in parents and trashed = false"
        if name is not None:
            query = f"name = '{_quoted(name)}' and {query}"
        found: list[dict[str, Any]] = []
        token: str | None = None
        while True:
            request = partial(
                self._files.list,
                q=query,
                pageSize=1000,
                pageToken=token,
                orderBy="createdTime",
                fields=f"nextPageToken, files({_FIELDS})",
                supportsAllDrives=True,
                includeItemsFromAllDrives=True,
            )
            page = self._call(request, path)
            # A name that holds a slash is none of ours; it would read as a path.
            found += [item for item in page.get("files", []) if "/" not in item["name"]]
            token = page.get("nextPageToken")
            if token is None:
                return found

    def _upload(self, path: str, media: Callable[[], Any], *, new: bool = False) -> dict[str, Any]:
        path = self._strip_protocol(path).strip("/")
        parent, _, name = path.rpartition("/")
        there = self._find(path)
        if there is not None and new:
            raise FileExistsError(path)
        content = media()

        def request() -> Any:
            common = {"media_body": content, "fields": _FIELDS, "supportsAllDrives": True}
            if there is not None:
                return self._files.update(fileId=there["id"], **common)
            return self._files.create(body={"name": name, "parents": [self._id(parent)]}, **common)

        made: dict[str, Any] = self._send(request()) if content.resumable() else self._call(request, path)
        self._ids[path] = made["id"]
        return made

    def _send(self, request: Any) -> dict[str, Any]:
        """A resumable upload to its end; the client asks Drive how much has arrived after anything went wrong."""
        failures, progress = 0, -1
        while True:
            try:
                _, made = request.next_chunk(http=self._http())
            except (*_CUT, HttpError) as error:
                failures = self._after(error, failures)
                continue
            except RefreshError as error:
                _refused(error)
            if made is not None:
                result: dict[str, Any] = made
                return result
            if request.resumable_progress > progress:
                failures, progress = 0, request.resumable_progress

    def _call(self, request: Callable[[], Any], path: str = "") -> Any:
        failures = 0
        while True:
            asked = request()
            try:
                return asked.execute(http=self._http())
            except HttpError as error:
                if error.status_code == 404:
                    self._forget()
                    raise FileNotFoundError(path) from error
                failures = self._after(error, failures)
            except _CUT as error:
                failures = self._after(error, failures)
            except RefreshError as error:
                _refused(error)

    def _forget(self) -> None:
        """Somebody has deleted something: no id but the root's is sure any more."""
        for known in [each for each in list(self._ids) if each]:
            self._ids.pop(known, None)

    def _after(self, error: Exception, failures: int) -> int:
        """Wait before the next try and count it. Raises StorageError where trying again is no use."""
        if isinstance(error, HttpError) and not _passes(error):
            raise _storage_error(error) from error
        if failures + 1 == TRIES:
            reason = _reason(error) if isinstance(error, HttpError) else f"{type(error).__name__}: {error}"
            raise StorageError(
                f"Google Drive did not answer as it should, {TRIES} times in a row ({reason})",
                "check the network and run again: what has arrived is not sent again",
            ) from error
        self._sleep((2**failures) * (0.5 + random.random() / 2))
        return failures + 1

    def _http(self) -> AuthorizedHttp:
        """A connection of this thread's own: httplib2 is not made for two."""
        if not hasattr(self._local, "http"):
            self._local.http = AuthorizedHttp(self._credentials, http=build_http())
        http: AuthorizedHttp = self._local.http
        return http


def _service(endpoint: str | None, http: AuthorizedHttp) -> Any:
    """The client's description of Drive comes with it; uploads and calls both go to its root."""
    document = json.loads(get_static_doc("drive", "v3"))
    if endpoint:
        document["rootUrl"] = endpoint.rstrip("/") + "/"
    return build_from_document(document, http=http)


def _quoted(text: str) -> str:
    return text.replace("\\", "\\\\").replace("'", "\\'")


def _reason(error: HttpError) -> str:
    """Drive's own code for what is wrong."""
    try:
        return str(json.loads(error.content)["error"]["errors"][0]["reason"])
    except (ValueError, KeyError, IndexError, TypeError):
        return f"HTTP {error.status_code}"


def _passes(error: HttpError) -> bool:
    return error.status_code in (408, 429) or error.status_code >= 500 or _reason(error) in _LIMITS


def _storage_error(error: HttpError) -> StorageError:
    reason = _reason(error)
    match reason:
        case "storageQuotaExceeded" | "teamDriveFileLimitExceeded":
            return StorageError(
                f"Google Drive is full ({reason}). A service account has no space of its own",
                "free some space there, or set store.folder_id to a folder in a shared drive",
            )
        case "authError" | "HTTP 401":
            return StorageError(
                f"Google Drive refuses these credentials ({reason})", "make a new token or key, and run again"
            )
        case "insufficientFilePermissions" | "insufficientPermissions" | "appNotAuthorizedToFile" | "forbidden":
            return StorageError(
                f"Google Drive does not permit that ({reason})",
                "share the folder with this account as an editor, and give the token the scope "
                "https://www.googleapis.com/auth/drive",
            )
    return StorageError(f"Google Drive refuses the request ({reason}): {error.reason}", "check [store], and run again")


def _refused(error: RefreshError) -> NoReturn:
    raise StorageError(
        f"Google's token can't be renewed ({' '.join(str(error.args[0]).split())[:200]})",
        "make a new token or key, and run again: what has arrived is not sent again",
    ) from error


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
