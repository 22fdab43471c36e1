"""The Hugging Face Hub on 127.0.0.1, as huggingface_hub speaks to it: what it asks for, and the errors that it knows.

    with own_hub(monkeypatch, tmp_path / "cache") as hub:
        commit = hub.add("org/name", {"config.json": b"{}"})

Files of 1 kB and more are served as the Hub serves LFS files: a redirect to another place, with size and digest of the
linked file. Repositories are kept in memory; each `add` is a commit on "main".

Uploads are taken with `TOKEN`, into the namespaces of `OWNERS`: create, preupload, LFS batch, the file, verify, commit.
The library has to be told that there is no Xet here: ``HF_HUB_DISABLE_XET`` (`own_hub` does).
"""

import base64
import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import pytest
import yaml

TOKEN = "hf_" + "t" * 34
"""The one that may read private and gated repositories."""
READ_TOKEN = "hf_" + "r" * 34
"""Reads what `TOKEN` does, and writes nothing."""
OWNERS = ("me", "team")
"""The account, and its organisation: who may be written to."""
LFS_FROM = 1000
"""Bytes."""


@attrs.define
class Repository:
    """Its commits, and who may read it."""

    commits: dict[str, dict[str, bytes]] = attrs.field(factory=dict)
    """Commit → path → content."""
    refs: dict[str, str] = attrs.field(factory=dict)
    """Branch or tag → commit."""
    private: bool = False
    gated: bool = False
    """Anybody may see what is there; only those who accepted its terms may read the files."""


class HubServer:
    """A running one."""

    def __init__(self) -> None:
        self.repositories: dict[tuple[str, str], Repository] = {}
        """("models" or "datasets", "org/name")"""
        self.requests: list[tuple[str, str, str | None]] = []
        """(method, path with query, the header Range) as they came."""
        self.cut_next: int | None = None
        """The next file is cut after so many bytes, once."""
        self.down: bool = False
        """Everything is answered 503."""
        self.refuses: str = ""
        """Paths with this in them are answered 403."""
        self.received: dict[str, bytes] = {}
        """LFS objects by sha256, as they were sent; a commit makes them part of a repository."""
        self.url = ""
        self.storage_url = ""
        """Where LFS files are redirected to: on the Hub another host, here another port."""

    def add(self, repo: str, files: Mapping[str, bytes], kind: str = "models", **rights: bool) -> str:
        """A commit on "main" with just these files; returns it."""
        found = self.repositories.setdefault((kind, repo), Repository())
        for name, value in rights.items():
            setattr(found, name, value)
        digest = hashlib.sha1(repr((repo, sorted(files.items()))).encode()).hexdigest()
        found.commits[digest] = dict(files)
        found.refs["main"] = digest
        return digest

    def add_folder(self, repo: str, folder: Path, **rights: bool) -> str:
        """A commit with the files of a folder."""
        files = {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
        return self.add(repo, files, **rights)

    def files(self, repo: str, kind: str = "models") -> dict[str, bytes]:
        """What is on "main"."""
        found = self.repositories[kind, repo]
        return found.commits[found.refs["main"]]

    def fetched(self) -> list[str]:
        """Paths of the files that were asked for, in order, each once."""
        found = [re.search(r"/resolve/[^/]+/(.*)", path) for _, path, _ in self.requests]
        return list(dict.fromkeys(each[1] for each in found if each))


@contextmanager
def hub_server() -> Iterator[HubServer]:
    hub = HubServer()
    with _serving(hub) as hub.url, _serving(hub) as hub.storage_url:
        yield hub


@contextmanager
def own_hub(monkeypatch: pytest.MonkeyPatch, cache: Path) -> Iterator[HubServer]:
    """This process's Hub, with an empty cache and no token."""
    from huggingface_hub import constants

    monkeypatch.setenv("HF_HUB_CACHE", str(cache))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(cache))  # `datasets` reads it when it is imported
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(cache / "no token"))
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
    monkeypatch.setattr("huggingface_hub.file_download.time.sleep", lambda seconds: None)
    with hub_server() as hub:
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        yield hub


@contextmanager
def _serving(hub: HubServer) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), type("Handler", (_Handler,), {"hub": hub}))
    server.daemon_threads = True
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Handler(BaseHTTPRequestHandler):
    hub: HubServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    def do_POST(self) -> None:
        self._answer()

    def do_PUT(self) -> None:
        self._answer()

    def _answer(self) -> None:
        self.hub.requests.append((self.command, self.path, self.headers.get("Range")))
        self.body = self._read_body()
        url = urlsplit(self.path)
        path, query = unquote(url.path), parse_qs(url.query)
        if self.hub.down:
            self._json(503, {"error": "Service Unavailable"})
        elif self.hub.refuses and self.hub.refuses in path:
            self._json(403, {"error": "Forbidden: pass a valid token with the right permissions"})
        elif self.command == "PUT" or path == "/api/whoami-v2" or path in ("/api/repos/create", "/api/validate-yaml"):
            self._of_account(path)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)\.git/info/lfs/objects/(batch|verify)", path):
            self._lfs(match[3])
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)/(preupload|commit)/main", path):
            self._write(*match.groups())
        elif match := re.fullmatch(r"/lfs/([0-9a-f]{64})", path):
            self._send_file(self._by_sha256(match[1]), match[1])
        elif match := re.fullmatch(r"/api/(models|datasets)/([^/]+/[^/]+)(?:/(revision|tree|paths-info)/(.+))?", path):
            kind, repo, what, revision = match.groups()
            self._of_repository(kind, repo, what or "revision", revision or "main", query)
        elif match := re.fullmatch(r"/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self._resolve("datasets" if match[1] else "models", *match.groups()[1:])
        else:
            self._json(404, {"error": "Sorry, we can't find the page you are looking for."})

    def _read_body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        parts = []
        while size := int(self.rfile.readline(), 16):
            parts.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(parts)

    def _of_account(self, path: str) -> None:
        if self.command == "PUT":  # an LFS object: its address is the permission
            self.hub.received[hashlib.sha256(self.body).hexdigest()] = self.body
            self._json(200, {})
        elif path == "/api/validate-yaml":
            said = json.loads(self.body)["content"]
            bad = [] if said.startswith("---\n") else [{"message": "no metadata"}]
            self._json(400 if bad else 200, {"errors": bad, "warnings": []})
        elif not self._has_token():
            self._json(401, {"error": "Invalid username or password."})
        elif path == "/api/whoami-v2":
            orgs = [{"type": "org", "name": name, "roleInOrg": "write"} for name in OWNERS[1:]]
            token = {"displayName": "a token", "role": "write" if self._may_write() else "read"}
            about = {"type": "user", "name": OWNERS[0], "orgs": orgs}
            self._json(200, about | {"auth": {"type": "access_token", "accessToken": token}})
        else:
            self._create(json.loads(self.body))

    def _create(self, asked: Mapping[str, Any]) -> None:
        kind = "datasets" if asked.get("type") == "dataset" else "models"
        repo = f"{asked.get('organization') or OWNERS[0]}/{asked['name']}"
        url = {"url": f"{self.hub.url}/{'datasets/' if kind == 'datasets' else ''}{repo}"}
        if not self._may_write() or repo.partition("/")[0] not in OWNERS:
            self._json(403, {"error": f"You don't have the rights to create {repo}"})
        elif (kind, repo) in self.hub.repositories:
            self._json(409, url | {"error": f"You already created {repo}"})
        else:
            private = asked.get("visibility") == "private" or bool(asked.get("private"))
            self.hub.add(repo, {".gitattributes": b""}, kind, private=private)
            self._json(200, url)

    def _lfs(self, what: str) -> None:
        asked = json.loads(self.body)
        if what == "verify":
            whole = len(self.hub.received.get(asked["oid"], b"")) == asked["size"]
            self._json(200 if whole else 404, {})
            return
        objects = []
        for each in asked["objects"]:
            if each["oid"] not in self.hub.received:
                verify = f"{self.hub.url}{self.path.removesuffix('batch')}verify"
                each["actions"] = {"upload": {"href": f"{self.hub.storage_url}/put/{each['oid']}"}}
                each["actions"]["verify"] = {"href": verify}
            objects.append(each)
        self._json(200, {"transfer": "basic", "objects": objects})

    def _write(self, kind: str, repo: str, what: str) -> None:
        found = self._repository(kind, repo)
        if found is None:
            return
        if not self._may_write() or repo.partition("/")[0] not in OWNERS:
            self._json(403, {"error": "Forbidden: you need write access"})
        elif what == "preupload":
            files = [self._upload_mode(each) for each in json.loads(self.body)["files"]]
            self._json(200, {"files": files})
        else:
            files = dict(found.commits[found.refs["main"]])
            for line in map(json.loads, self.body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    files[value["path"]] = self.hub.received[value["oid"]]
            commit = self.hub.add(repo, files, kind)
            self._json(
                200, {"success": True, "commitOid": commit, "commitUrl": f"{self.hub.url}/{repo}/commit/{commit}"}
            )

    def _upload_mode(self, asked: Mapping[str, Any]) -> dict[str, Any]:
        mode = "lfs" if asked["size"] >= LFS_FROM else "regular"
        return {"path": asked["path"], "uploadMode": mode, "shouldIgnore": False, "oid": None}

    def _of_repository(self, kind: str, repo: str, what: str, revision: str, query: Mapping[str, list[str]]) -> None:
        found = self._repository(kind, repo)
        if found is None:
            return
        revision, _, folder = revision.partition("/") if what == "tree" else (revision, "", "")
        commit = found.refs.get(revision, revision)
        if commit not in found.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
            return
        files = found.commits[commit]
        if what == "revision":
            name = "modelId" if kind == "models" else "_"
            info = {"_id": "1", "id": repo, name: repo, "sha": commit, "private": found.private}
            info |= {"gated": "manual" if found.gated else False, "disabled": False, "downloads": 0, "likes": 0}
            info |= {"tags": [], "lastModified": "2026-01-01T00:00:00.000Z", "createdAt": "2026-01-01T00:00:00.000Z"}
            if card := re.match(r"---\n(.*?)\n---\n", files.get("README.md", b"").decode(), re.DOTALL):
                info["cardData"] = yaml.safe_load(card[1])
            self._json(200, info | {"siblings": [{"rfilename": path} for path in files]})
        elif what == "paths-info":
            wanted = parse_qs(self.body.decode()).get("paths", []) or json.loads(self.body or b"{}").get("paths", [])
            self._json(200, [self._entry(path, files[path]) for path in wanted if path in files])
        else:
            self._json(200, self._tree(files, folder, recursive=query.get("recursive", [""])[0].lower() == "true"))

    def _tree(self, files: Mapping[str, bytes], folder: str, *, recursive: bool) -> list[dict[str, Any]]:
        prefix = f"{folder.rstrip('/')}/" if folder else ""
        inside = [path for path in files if path.startswith(prefix)]
        names = [path.removeprefix(prefix) for path in inside]
        folders = {prefix + name.partition("/")[0] for name in names if "/" in name}
        entries = [{"type": "directory", "oid": "0" * 40, "size": 0, "path": each} for each in sorted(folders)]
        shown = [prefix + name for name in names if recursive or "/" not in name]
        return entries + [self._entry(path, files[path]) for path in shown]

    def _entry(self, path: str, content: bytes) -> dict[str, Any]:
        entry = {"type": "file", "oid": _blob_id(content), "size": len(content), "path": path}
        if len(content) >= LFS_FROM:
            entry["lfs"] = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        return entry

    def _resolve(self, kind: str, repo: str, revision: str, path: str) -> None:
        found = self._repository(kind, repo)
        if found is None:
            return
        if found.gated and not self._has_token():
            self._error(401, "GatedRepo", f"Access to model {repo} is restricted. You must have access to it.")
            return
        commit = found.refs.get(revision, revision)
        if commit not in found.commits:
            self._error(404, "RevisionNotFound", f"Invalid rev id: {revision}")
        elif path not in found.commits[commit]:
            self._error(404, "EntryNotFound", "Entry not found")
        else:
            self._send_resolved(commit, found.commits[commit][path])

    def _send_resolved(self, commit: str, content: bytes) -> None:
        if len(content) < LFS_FROM:
            self._send_file(content, _blob_id(content), {"X-Repo-Commit": commit})
            return
        digest = hashlib.sha256(content).hexdigest()
        self.send_response(302)
        for name, value in {
            "Location": f"{self.hub.storage_url}/lfs/{digest}",
            "X-Repo-Commit": commit,
            "X-Linked-Etag": f'"{digest}"',
            "X-Linked-Size": str(len(content)),
            "Content-Length": "0",
        }.items():
            self.send_header(name, value)
        self.end_headers()

    def _send_file(self, content: bytes, etag: str, headers: Mapping[str, str] | None = None) -> None:
        match = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range") or "")
        start = int(match[1]) if match else 0
        part = content[start:]
        self.send_response(206 if match else 200)
        for name, value in {"ETag": f'"{etag}"', "Content-Length": str(len(part)), **(headers or {})}.items():
            self.send_header(name, value)
        if match:
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        cut, self.hub.cut_next = (self.hub.cut_next, None) if len(content) >= LFS_FROM else (None, self.hub.cut_next)
        self.wfile.write(part if cut is None else part[:cut])
        if cut is not None:
            self.close_connection = True

    def _repository(self, kind: str, repo: str) -> Repository | None:
        """None: answered already. Who has no token is not told whether a repository is private or not there."""
        found = self.hub.repositories.get((kind, repo))
        if found is not None and (not found.private or self._has_token()):
            return found
        if self._has_token():
            self._error(404, "RepoNotFound", "Repository not found")
        else:
            self._error(401, "RepoNotFound", "Invalid username or password.")
        return None

    def _by_sha256(self, digest: str) -> bytes:
        contents = (
            content
            for repository in self.hub.repositories.values()
            for files in repository.commits.values()
            for content in files.values()
        )
        return next(each for each in contents if hashlib.sha256(each).hexdigest() == digest)

    def _has_token(self) -> bool:
        return self.headers.get("Authorization") in (f"Bearer {TOKEN}", f"Bearer {READ_TOKEN}")

    def _may_write(self) -> bool:
        return self.headers.get("Authorization") == f"Bearer {TOKEN}"

    def _error(self, status: int, code: str, message: str) -> None:
        self._json(status, {"error": message}, {"X-Error-Code": code, "X-Error-Message": message})

    def _json(self, status: int, value: Any, headers: Mapping[str, str] | None = None) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        usual = {"Content-Type": "application/json", "Content-Length": str(len(body))}
        for name, text in {**usual, **(headers or {})}.items():
            self.send_header(name, text)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _blob_id(content: bytes) -> str:
    """As git has it."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
