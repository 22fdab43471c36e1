"""Google Drive's API on this machine, as far as a store uses it, in the documented wire format.

Files, folders, searches, ranges, multipart and resumable uploads, OAuth tokens; and its failures on demand.
https://developers.google.com/workspace/drive/api/reference/rest/v3
"""

import email.parser
import itertools
import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit

import attrs

FOLDER = "application/vnd.google-apps.folder"
QUANTUM = 256 * 1024
"""Bytes; every part of a resumable upload but the last is a multiple of this."""


@attrs.define
class Upload:
    """A resumable upload that is under way."""

    file_id: str | None
    metadata: dict[str, Any]
    received: bytearray = attrs.Factory(bytearray)


@attrs.define
class Drive:
    """What the server holds, and how it is to fail."""

    address: str = ""
    files: dict[str, dict[str, Any]] = attrs.Factory(dict)
    """id → metadata and ``content``."""
    uploads: dict[str, Upload] = attrs.Factory(dict)
    tokens: set[str] = attrs.Factory(set)
    """Access tokens that are good."""
    requests: list[str] = attrs.Factory(list)
    """``PUT /upload/...``, in the order in which they came."""
    received_bytes: int = 0
    """Of content, over all uploads, whether they ended or not."""
    failures: list[tuple[int, str]] = attrs.Factory(list)
    """(status, reason) of the answers to the next API calls."""
    fail_in_upload: list[tuple[int, str]] = attrs.Factory(list)
    """The same for the next requests that carry a part of a resumable upload."""
    cut_upload_at: list[int] = attrs.Factory(list)
    """After how many bytes of a resumable upload's content the connection breaks; one entry a break."""
    cut_downloads: int = 0
    """How many downloads break half way."""
    refuse_tokens: bool = False
    """The token endpoint answers invalid_grant."""
    page_size: int = 1000
    roots: set[str] = attrs.Factory(lambda: {"root"})
    """Ids of folders that are there from the beginning: My Drive, and what others have shared."""
    lock: Any = attrs.Factory(threading.RLock)
    numbers: Any = attrs.Factory(lambda: itertools.count(1))

    def expire_tokens(self) -> None:
        """As if an hour had gone by."""
        with self.lock:
            self.tokens.clear()

    def new_file(self, metadata: dict[str, Any], content: bytes) -> dict[str, Any]:
        with self.lock:
            number = next(self.numbers)
            file_id = f"id-{number}"
            self.files[file_id] = {
                "id": file_id,
                "name": metadata.get("name", "Untitled"),
                "parents": metadata.get("parents", ["root"]),
                "mimeType": metadata.get("mimeType", "application/octet-stream"),
                "createdTime": f"2026-01-01T00:00:00.{number:06d}Z",
                "trashed": False,
                "content": content,
            }
            return self.files[file_id]

    def is_there(self, file_id: str) -> bool:
        return file_id in self.roots or file_id in self.files

    def select(self, query: str) -> list[dict[str, Any]]:
        """Files by ``name = '...' and 'id' in parents and trashed = false``, the oldest first."""
        parent = re.search(r"'((?:[^'\\]|\\.)*)' in parents", query)
        name = re.search(r"name = '((?:[^'\\]|\\.)*)'", query)
        if parent is None or "trashed = false" not in query:
            raise ValueError(query)
        if not self.is_there(parent[1]):
            raise KeyError(parent[1])
        with self.lock:
            return [
                file
                for file in self.files.values()
                if parent[1] in file["parents"]
                and (name is None or file["name"] == re.sub(r"\\(.)", r"\1", name[1]))
                and not file["trashed"]
            ]


@contextmanager
def drive_server() -> Iterator[Drive]:
    """Serve an empty Drive on a free port of 127.0.0.1."""
    drive = Drive()

    class Handler(_Handler):
        pass

    Handler.drive = drive
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    drive.address = f"http://127.0.0.1:{server.server_address[1]}/"
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    try:
        yield drive
    finally:
        server.shutdown()
        server.server_close()
        thread.join(timeout=10)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    wbufsize = 2**16
    disable_nagle_algorithm = True
    drive: Drive

    def log_message(self, *_: Any) -> None:
        return

    def do_GET(self) -> None:
        self._answer()

    do_POST = do_PATCH = do_PUT = do_DELETE = do_GET

    def _answer(self) -> None:
        path = urlsplit(self.path).path
        self.drive.requests.append(f"{self.command} {self.path}")
        if path == "/token":
            return self._token()
        if path.startswith("/session/"):
            return self._session(path.removeprefix("/session/"))
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        with self.drive.lock:
            failure = self.drive.failures.pop(0) if self.drive.failures else None
            known = self.headers.get("Authorization", "").removeprefix("Bearer ") in self.drive.tokens
        if failure is not None:
            return self._error(*failure)
        if not known:
            return self._error(401, "authError")
        arguments = {name: values[0] for name, values in parse_qs(urlsplit(self.path).query).items()}
        parts = path.strip("/").split("/")
        if parts[0] == "upload":
            return self._upload(parts[4] if len(parts) > 4 else None, arguments, body)
        match self.command, parts[2:]:
            case "GET", ["files"]:
                return self._list(arguments)
            case "POST", ["files"]:
                metadata = json.loads(body)
                if not all(self.drive.is_there(parent) for parent in metadata.get("parents", [])):
                    return self._error(404, "notFound")
                return self._json(self._shown(self.drive.new_file(metadata, b""), arguments))
            case "GET", ["files", file_id] if file_id in self.drive.files and arguments.get("alt") == "media":
                return self._media(self.drive.files[file_id]["content"])
            case "GET", ["files", file_id] if file_id in self.drive.files:
                return self._json(self._shown(self.drive.files[file_id], arguments))
            case "DELETE", ["files", file_id] if file_id in self.drive.files:
                with self.drive.lock:
                    gone = {file_id}
                    for each, file in list(self.drive.files.items()):
                        if gone & {each, *file["parents"]}:
                            gone.add(each)
                            del self.drive.files[each]
                return self._send(204, b"")
        return self._error(404, "notFound")

    def _token(self) -> None:
        form = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
        if self.drive.refuse_tokens or form["grant_type"][0] not in (
            "refresh_token",
            "urn:ietf:params:oauth:grant-type:jwt-bearer",
        ):
            return self._json({"error": "invalid_grant", "error_description": "Token has been revoked."}, 400)
        token = f"fake-token-{next(self.drive.numbers)}"
        self.drive.tokens.add(token)
        return self._json({"access_token": token, "expires_in": 3600, "token_type": "Bearer"})

    def _list(self, arguments: dict[str, str]) -> None:
        try:
            found = self.drive.select(arguments["q"])
        except KeyError:
            return self._error(404, "notFound")
        start = int(arguments.get("pageToken", 0))
        end = start + min(int(arguments.get("pageSize", 100)), self.drive.page_size)
        answer: dict[str, Any] = {"files": [self._shown(file, {}) for file in found[start:end]]}
        if end < len(found):
            answer["nextPageToken"] = str(end)
        return self._json(answer)

    def _media(self, content: bytes) -> None:
        asked = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))
        headers = {}
        status = 200
        if asked:
            start, end = int(asked[1]), int(asked[2] or len(content) - 1)
            if start >= len(content):
                return self._error(416, "requestedRangeNotSatisfiable")
            headers["Content-Range"] = f"bytes {start}-{min(end, len(content) - 1)}/{len(content)}"
            content, status = content[start : end + 1], 206
        if self.drive.cut_downloads:
            self.drive.cut_downloads -= 1
            return self._send(status, content, headers, cut=True)
        return self._send(status, content, headers)

    def _upload(self, file_id: str | None, arguments: dict[str, str], body: bytes) -> None:
        if file_id is not None and file_id not in self.drive.files:
            return self._error(404, "notFound")
        if arguments["uploadType"] == "resumable":
            session = f"{next(self.drive.numbers)}"
            self.drive.uploads[session] = Upload(file_id, json.loads(body or b"{}"))
            return self._send(200, b"", {"Location": f"{self.drive.address}session/{session}"})
        if arguments["uploadType"] == "media":
            self.drive.received_bytes += len(body)
            return self._json(self._shown(self._keep(file_id, {}, body), arguments))
        kind = self.headers["Content-Type"].encode()
        message = email.parser.BytesParser().parsebytes(b"Content-Type: " + kind + b"\r\n\r\n" + body)
        metadata, content = (part.get_payload(decode=True) for part in message.get_payload())  # type: ignore[union-attr]
        assert isinstance(metadata, bytes)
        assert isinstance(content, bytes)
        self.drive.received_bytes += len(content)
        return self._json(self._shown(self._keep(file_id, json.loads(metadata or b"{}"), content), arguments))

    def _session(self, session: str) -> None:
        upload = self.drive.uploads.get(session)
        length = int(self.headers["Content-Length"])
        if upload is None:
            self.rfile.read(length)
            return self._error(404, "notFound")
        sent = re.fullmatch(r"bytes (?:\*|(\d+)-(\d+))/(\d+)", self.headers.get("Content-Range", ""))
        start = int(sent[1]) if sent and sent[1] else len(upload.received)
        if start != len(upload.received):
            self.rfile.read(length)
            return self._error(400, "badRequest")
        with self.drive.lock:
            failure = self.drive.fail_in_upload.pop(0) if length and self.drive.fail_in_upload else None
            cut = self.drive.cut_upload_at.pop(0) if length and self.drive.cut_upload_at else None
        if cut is not None and cut < length:
            arrived = self.rfile.read(cut)
            upload.received += arrived[: len(arrived) // QUANTUM * QUANTUM]
            self.drive.received_bytes += len(arrived) // QUANTUM * QUANTUM
            self.close_connection = True
            self.connection.close()
            return None
        content = self.rfile.read(length)
        if failure is not None:
            return self._error(*failure)
        upload.received += content
        self.drive.received_bytes += len(content)
        total = int(sent[3]) if sent else length
        if len(upload.received) < total:
            if len(content) % QUANTUM:
                return self._error(400, "badRequest")
            headers = {"Range": f"bytes=0-{len(upload.received) - 1}"} if upload.received else {}
            return self._send(308, b"", headers)
        del self.drive.uploads[session]
        return self._json(self._shown(self._keep(upload.file_id, upload.metadata, bytes(upload.received)), {}))

    def _keep(self, file_id: str | None, metadata: dict[str, Any], content: bytes) -> dict[str, Any]:
        """The new or changed file."""
        if file_id is None:
            return self.drive.new_file(metadata, content)
        self.drive.files[file_id]["content"] = content
        return self.drive.files[file_id]

    def _shown(self, file: dict[str, Any], arguments: dict[str, str]) -> dict[str, Any]:
        shown = {name: value for name, value in file.items() if name != "content"}
        if file["mimeType"] != FOLDER:
            shown["size"] = str(len(file["content"]))
        wanted = arguments.get("fields", "*").replace(" ", "").split(",")
        return {name: value for name, value in shown.items() if wanted == ["*"] or name in wanted}

    def _error(self, status: int, reason: str) -> None:
        error = {"code": status, "message": reason, "errors": [{"domain": "global", "reason": reason}]}
        self._json({"error": error}, status)

    def _json(self, value: Any, status: int = 200) -> None:
        self._send(status, json.dumps(value).encode(), {"Content-Type": "application/json; charset=UTF-8"})

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            self.close_connection = True
