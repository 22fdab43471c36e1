"""The upload, against a stand-in of the Hub's client: what is asked of it, and what its refusals become."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub.errors import HfHubHTTPError

from bitnet_core.errors import CoreError
from bitnet_core.export.config import HFOptions
from bitnet_core.export.hf import hf_exporter


class StandIn:
    """Takes repositories and folders, and refuses what it is told to refuse."""

    asked: list[tuple[Any, ...]]

    def __init__(self, token: str | None) -> None:
        StandIn.asked = [("token", token)]

    def create_repo(self, repo_id: str, *, private: bool, exist_ok: bool) -> None:
        StandIn.asked.append(("create", repo_id, private, exist_ok))
        if repo_id.startswith("barred/"):
            response = httpx.Response(403, request=httpx.Request("POST", "https://hub.invalid"))
            raise HfHubHTTPError("403 Forbidden: you can't write here", response=response)

    def upload_folder(self, *, repo_id: str, folder_path: Path, commit_message: str) -> SimpleNamespace:
        StandIn.asked.append(("upload", repo_id, sorted(path.name for path in folder_path.iterdir()), commit_message))
        return SimpleNamespace(commit_url=f"https://hub.invalid/{repo_id}/commit/1")


@pytest.fixture
def out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(huggingface_hub, "HfApi", StandIn)
    monkeypatch.setenv("MY_TOKEN", "hf_not_a_real_token")
    (tmp_path / "run/exports/hf").mkdir(parents=True)
    (tmp_path / "run/exports/hf/config.json").write_text("{}")
    return tmp_path / "run/exports"


def test_the_folder_is_uploaded_as_private(out: Path) -> None:
    publish = hf_exporter(HFOptions(push_to="me/tea", token_env="MY_TOKEN")).publish
    assert publish is not None
    assert publish(out) == "https://hub.invalid/me/tea/commit/1"
    assert StandIn.asked == [
        ("token", "hf_not_a_real_token"),
        ("create", "me/tea", True, True),
        ("upload", "me/tea", ["config.json"], "Export of run"),
    ]


def test_a_refusal_says_what_to_check_and_not_the_token(out: Path) -> None:
    publish = hf_exporter(HFOptions(push_to="barred/tea", token_env="MY_TOKEN")).publish
    assert publish is not None
    with pytest.raises(CoreError, match=r"barred/tea did not take it: .*403.*the variable MY_TOKEN") as error:
        publish(out)
    assert "hf_not_a_real_token" not in str(error.value)


def test_nothing_is_uploaded_unless_asked() -> None:
    assert hf_exporter(HFOptions()).publish is None


def test_a_name_without_an_owner_is_refused() -> None:
    with pytest.raises(ValueError, match='must be "user/name"'):
        HFOptions(push_to="tea")
