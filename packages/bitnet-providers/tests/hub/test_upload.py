"""Uploads through the real library, against a Hub on the loopback."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub.names import HubName
from bitnet_providers.hub.upload import Upload, check_name, check_rights, licence_of, send
from loopback.hub_server import READ_TOKEN, TOKEN, HubServer, own_hub

BIG = bytes(range(256)) * 16


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with own_hub(monkeypatch, tmp_path / "cache") as server:
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def upload(tmp_path: Path, repo: str = "me/tea", **settings: bool) -> Upload:
    (tmp_path / "big.gguf").write_bytes(BIG)
    files = {"deep/big.gguf": tmp_path / "big.gguf", "README.md": b"---\nlicense: mit\n---\n"}
    return Upload(repo=repo, repo_type="model", files=files, **settings)


def told(*uploads: Upload) -> str:
    with pytest.raises(ProviderError) as error:
        everything(*uploads)
    return str(error.value)


def everything(*uploads: Upload) -> None:
    for target in check_rights(uploads):
        send(target, "a message")


def test_files_of_both_kinds_arrive_in_one_private_commit(hub: HubServer, tmp_path: Path) -> None:
    (target,) = check_rights([upload(tmp_path)])
    assert not target.exists
    assert send(target, "a message") == f"{hub.url}/me/tea"
    found = hub.repositories["models", "me/tea"]
    assert found.private
    assert len(found.commits) == 2, "the empty one, and ours"
    assert hub.files("me/tea") == {
        ".gitattributes": b"", "deep/big.gguf": BIG, "README.md": b"---\nlicense: mit\n---\n",
    }  # fmt: skip
    assert len(hub.received) == 1, "only the big one went to the storage"


def test_what_is_there_already_is_told_and_stays(hub: HubServer, tmp_path: Path) -> None:
    hub.add("team/tea", {"old.gguf": b"old", "README.md": b"old"}, private=True)
    (target,) = check_rights([upload(tmp_path, "team/tea")])
    assert (target.exists, target.private, target.others) == (True, True, ("old.gguf",))
    send(target, "a message")
    assert hub.files("team/tea")["old.gguf"] == b"old"
    assert hub.files("team/tea")["README.md"].startswith(b"---")
    assert not [path for _, path, _ in hub.requests if path == "/api/repos/create"]


def test_a_stopped_upload_goes_on(hub: HubServer, tmp_path: Path) -> None:
    hub.refuses = "/commit/"
    assert "me/tea: your token may not write there (403: " in told(upload(tmp_path))
    assert len(hub.received) == 1
    hub.refuses = ""
    hub.requests.clear()
    (target,) = check_rights([upload(tmp_path)])
    send(target, "a message")
    assert not [method for method, _, _ in hub.requests if method == "PUT"]
    assert hub.files("me/tea")["deep/big.gguf"] == BIG


def test_a_public_repository_takes_nothing_private(hub: HubServer, tmp_path: Path) -> None:
    hub.add("me/tea", {})
    assert told(upload(tmp_path)) == (
        "me/tea: the model is there already, and everybody can read it  "
        "→ say --public, choose another name, or make it private on its page"
    )
    (target,) = check_rights([upload(tmp_path, private=False)])
    send(target, "a message")
    assert not hub.repositories["models", "me/tea"].private


def test_rights_are_asked_before_anything_is_created(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fix = "put a token that may write into HF_TOKEN (or run `hf auth login`)"
    assert told(upload(tmp_path), upload(tmp_path, "others/tea")) == (
        "others/tea: your account doesn't belong to others  "
        "→ choose one that you may write to: me, team; or use another token"
    )
    monkeypatch.setenv("HF_TOKEN", READ_TOKEN)
    assert told(upload(tmp_path)) == f"the token of me may only read  → {fix}"
    monkeypatch.setenv("HF_TOKEN", "hf_" + "x" * 34)
    assert told(upload(tmp_path)) == f"the Hub: the Hub doesn't know your token (401)  → {fix}"
    monkeypatch.delenv("HF_TOKEN")
    assert told(upload(tmp_path)) == f"the Hub takes no upload without a token, and none was found  → {fix}"
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert told(upload(tmp_path)) == "HF_HUB_OFFLINE is set  → unset it to upload"
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens there
    assert "the Hub was not reached" in told(upload(tmp_path))
    assert hub.repositories == {}
    assert hub.received == {}


def test_a_hub_that_is_down_or_refuses_the_card(hub: HubServer, tmp_path: Path) -> None:
    hub.down = True
    assert "the Hub: the Hub answered 503" in told(upload(tmp_path))
    hub.down = False
    bad = Upload(repo="me/tea", repo_type="model", files={"README.md": b"no metadata"})
    assert told(bad) == "me/tea: the Hub answered 400 (no metadata)  → correct that, and push again"
    assert hub.files("me/tea") == {".gitattributes": b""}


@pytest.mark.parametrize("name", ["tea", "a/b/c", "me/-tea", "me/t..ea", "me/" + "x" * 97])
def test_names_that_the_hub_takes_not(name: str) -> None:
    with pytest.raises(ProviderError, match="write ORG/NAME"):
        check_name(name)


def test_a_licence_is_what_the_card_says(hub: HubServer) -> None:
    hub.add("org/a", {"README.md": b"---\nlicense: other\nlicense_name: tea\nlicense_link: https://tea.example\n---\n"})
    hub.add("org/b", {"config.json": b"{}"})
    assert licence_of(HubName("org/a")) == {
        "license": "other", "license_name": "tea", "license_link": "https://tea.example",
    }  # fmt: skip
    assert licence_of(HubName("org/b")) == {}
    with pytest.raises(ProviderError, match="org/none: the Hub answered 404"):
        licence_of(HubName("org/none"))
