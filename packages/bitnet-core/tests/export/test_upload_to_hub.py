"""The upload: the real client of the Hub against a stand-in on the loopback, which keeps what it is sent."""

import base64
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest

from bitnet_core.config.export import HFOptions
from bitnet_core.errors import CoreError
from bitnet_core.export.hf import hf_exporter


class StandIn(BaseHTTPRequestHandler):
    """As much of the Hub's API as an upload of small files needs."""

    created: dict[str, Any]
    files: dict[str, bytes]
    tokens: set[str | None]

    def do_POST(self) -> None:
        StandIn.tokens.add(self.headers.get("Authorization"))
        content = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/api/repos/create":
            StandIn.created = json.loads(content)
            allowed = StandIn.created.get("organization") != "barred"
            self.answer(
                200 if allowed else 403,
                {"url": "https://huggingface.co/me/tea"} if allowed else {"error": "you can't write here"},
            )
        elif self.path.endswith("/preupload/main"):
            asked = json.loads(content)["files"]
            self.answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        elif "/commit/main" in self.path:
            for line in map(json.loads, content.decode().splitlines()):
                if line["key"] == "file":
                    StandIn.files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
            self.answer(200, {"commitUrl": "https://huggingface.co/me/tea/commit/1", "commitOid": "1", "success": True})
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        there = "barred" not in self.path
        found = {"id": "me/tea", "siblings": [], "sha": "0"}
        self.answer(200 if there else 404, found if there else {"error": "not found"})

    def answer(self, status: int, value: Any) -> None:
        body = json.dumps(value).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    StandIn.created, StandIn.files, StandIn.tokens = {}, {}, set()
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    real, endpoint = huggingface_hub.HfApi, f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda token: real(endpoint=endpoint, token=token))
    monkeypatch.setenv("MY_TOKEN", "hf_not_a_real_token")
    (tmp_path / "run/exports/hf").mkdir(parents=True)
    (tmp_path / "run/exports/hf/config.json").write_text('{"tea": 1}')
    yield tmp_path / "run/exports"
    server.shutdown()
    server.server_close()


def test_the_folder_is_uploaded_as_private_with_the_token(out: Path) -> None:
    publish = hf_exporter(HFOptions(push_to="me/tea", token_env="MY_TOKEN")).publish
    assert publish is not None
    assert publish(out) == "https://huggingface.co/me/tea/commit/1"
    assert StandIn.created["name"] == "tea"
    assert StandIn.created.get("private", StandIn.created.get("visibility")) in (True, "private")
    assert StandIn.files["config.json"] == b'{"tea": 1}'
    assert StandIn.tokens == {"Bearer hf_not_a_real_token"}


def test_a_refusal_says_what_to_check_and_not_the_token(out: Path) -> None:
    publish = hf_exporter(HFOptions(push_to="barred/tea", token_env="MY_TOKEN")).publish
    assert publish is not None
    with pytest.raises(CoreError, match=r"barred/tea did not take it: .*403.*the variable MY_TOKEN") as error:
        publish(out)
    assert "hf_not_a_real_token" not in str(error.value)
    assert StandIn.files == {}


def test_nothing_is_uploaded_unless_asked() -> None:
    assert hf_exporter(HFOptions()).publish is None


def test_a_name_without_an_owner_is_refused() -> None:
    with pytest.raises(ValueError, match="must be "):
        HFOptions(push_to="tea")
