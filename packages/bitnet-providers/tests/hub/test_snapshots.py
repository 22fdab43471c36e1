"""Models by their name on the Hub: through huggingface_hub itself, against a loopback hub."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitnet_providers.contract import ProviderError
from bitnet_providers.hub import snapshots
from bitnet_providers.hub.names import HubName, hub_name
from bitnet_providers.hub.snapshots import cached_commit, cached_folder, model_snapshot, offline_problem, pinned
from loopback.hub_server import TOKEN, HubServer, own_hub

FILES = {
    "config.json": b"{}",
    "model.safetensors": b"w" * 5000,
    "tokenizer.json": b"{}" + b" " * 2000,
    "chat_template.jinja": b"{{ messages }}",
    "pytorch_model.bin": b"no" * 1000,
    "modeling_own.py": b"no",
    "onnx/model.safetensors": b"no" * 1000,
    "README.md": b"no",
}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[HubServer]:
    with own_hub(monkeypatch, tmp_path / "cache") as server:
        yield server


def told(name: str) -> str:
    with pytest.raises(ProviderError) as caught:
        model_snapshot(pinned(HubName(*name.split("@"))))
    assert caught.value.fix
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("org/name", HubName("org/name")),
        ("HuggingFaceTB/SmolLM2-135M", HubName("HuggingFaceTB/SmolLM2-135M")),
        ("org/name@v1.0", HubName("org/name", "v1.0")),
        ("org/name@refs/pr/1", HubName("org/name", "refs/pr/1")),
        ("name", None),
        ("/org/name", None),
        ("./name", None),
        ("../a/b", None),
        ("~/b", None),
        ("a/b/c", None),
        ("models/own.gguf", None),
    ],
)
def test_what_is_a_name(text: str, name: HubName | None) -> None:
    assert hub_name(text) == name
    assert name is None or str(name) == text


def test_only_what_a_model_needs_is_fetched_and_only_once(hub: HubServer) -> None:
    commit = hub.add("org/name", FILES)
    name = HubName("org/name")
    assert (cached_commit(name), cached_folder(name)) == (None, None)
    assert pinned(name) == HubName("org/name", commit)
    folder = model_snapshot(name)
    assert sorted(path.name for path in folder.rglob("*")) == [
        "chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json",
    ]  # fmt: skip
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert sorted(hub.fetched()) == ["chat_template.jinja", "config.json", "model.safetensors", "tokenizer.json"]
    assert (cached_commit(name), cached_folder(name)) == (commit, folder)
    before = len(hub.requests)
    assert model_snapshot(pinned(HubName("org/name", commit))) == folder  # a commit in the cache needs no call
    assert len(hub.requests) == before


def test_a_tokenizer_comes_without_weights_and_a_log_without_bars(
    hub: HubServer, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.add("org/name", FILES)
    folder = model_snapshot(HubName("org/name"), tokenizer_only=True)
    assert sorted(path.name for path in folder.iterdir()) == ["chat_template.jinja", "config.json", "tokenizer.json"]
    assert (model_snapshot(HubName("org/name")) / "model.safetensors").is_file()
    assert capsys.readouterr().err == ""


def test_a_commit_stays_and_a_branch_moves(hub: HubServer) -> None:
    old = hub.add("org/name", FILES)
    new = hub.add("org/name", FILES | {"config.json": b'{"new": 1}'})
    assert pinned(HubName("org/name")).revision == pinned(HubName("org/name", "main")).revision == new
    assert (model_snapshot(HubName("org/name", old)) / "config.json").read_bytes() == b"{}"


def test_a_cut_download_goes_on_where_it_was(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE", 100)
    hub.add("org/name", FILES)
    hub.cut_next = 700
    folder = model_snapshot(HubName("org/name"))
    assert (folder / "model.safetensors").read_bytes() == FILES["model.safetensors"]
    assert (folder / "tokenizer.json").read_bytes() == FILES["tokenizer.json"]
    assert "bytes=700-" in [asked for _, path, asked in hub.requests if path.startswith("/lfs/")]


def test_what_may_not_be_read_says_why(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    hub.add("org/gated", FILES, gated=True)
    hub.add("org/private", FILES, private=True)
    gated = told("org/gated")
    assert gated.startswith("org/gated@")
    assert gated.endswith(
        ": the model is gated, and your account may not read it (yet)  → accept its terms on "
        f"{hub.url}/org/gated, and put your token into HF_TOKEN (or run `hf auth login`)"
    )
    missing = "the Hub has no such model, or it is private, and no folder here is called so"
    assert missing in told("org/private")
    assert missing in told("org/nowhere")
    assert "the model has no revision v9" in told("org/gated@v9")
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    assert missing in told("org/nowhere")
    for name in ("org/gated", "org/private"):
        assert (model_snapshot(HubName(name)) / "config.json").is_file()


def test_offline_the_cache_answers(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("org/name", FILES)
    hub.add("org/other", FILES)
    folder = model_snapshot(HubName("org/name"))
    hub.requests.clear()
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert pinned(HubName("org/name")).revision == commit
    assert model_snapshot(HubName("org/name")) == folder
    assert offline_problem(HubName("org/name")) is None
    assert str(offline_problem(HubName("org/other"))) == told("org/other")
    assert told("org/other") == (
        "org/other is not in the cache, and HF_HUB_OFFLINE is set  → unset HF_HUB_OFFLINE, to fetch it"
    )
    assert hub.requests == []


def test_a_hub_that_is_down_or_not_there(hub: HubServer, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = hub.add("org/name", FILES)
    hub.add("org/other", FILES)
    folder = model_snapshot(HubName("org/name"))
    hub.down = True
    assert "the Hub answered 503" in told("org/other") or "was not reached" in told("org/other")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # discard: nobody listens there
    assert "was not reached" in told("org/other")
    assert pinned(HubName("org/name")).revision == commit
    assert model_snapshot(pinned(HubName("org/name"))) == folder


def test_the_extra_is_named_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "huggingface_hub", None)
    with pytest.raises(ProviderError, match="need the package huggingface_hub"):
        snapshots.library()


def test_the_cache_is_where_the_variables_say_now(
    hub: HubServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.add("org/name", FILES)
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "home"))
    folder = model_snapshot(HubName("org/name"))
    assert folder.is_relative_to(tmp_path / "home/hub")
    assert cached_folder(HubName("org/name")) == folder


@pytest.mark.slow
def test_a_process_that_has_loaded_nothing_else_can_ask(hub: HubServer) -> None:
    """huggingface_hub's lazy names hide what another module of the tests may have imported."""
    hub.add("org/name", FILES)
    code = "from bitnet_providers.hub.names import HubName; from bitnet_providers.hub.snapshots import *; "
    code += "print(fetched_note(HubName('org/name'))); print(model_snapshot(pinned(HubName('org/name'))).is_dir())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "org/name is fetched from the Hub when the run starts\nTrue\n"
