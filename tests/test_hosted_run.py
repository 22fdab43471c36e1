"""`bitnet run` with a hosted teacher behind a loopback server: its key stays out of all that is written or shown."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_cli.main import cli
from loopback.anthropic_server import KEY, AnthropicServer, error_body
from loopback.faults import rate_limited, script, serving

MANIFEST = """
manifest_version = 1
[run]
name = "hosted"
stages = ["storage", "baseline", "collect", "report"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "anthropic"
model = "claude-loopback"
base_url = "{url}"
api_key_env = "HOSTED_TEST_KEY"
[baseline]
prompts = "prompts.txt"
temperature = 1.0
[collect]
prompts = "prompts.txt"
concurrency = 1
"""


@pytest.fixture
def server() -> AnthropicServer:
    return AnthropicServer()


@pytest.fixture
def folder(server: AnthropicServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    for name in ("SKIP_EXTERNAL", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOSTED_TEST_KEY", "")  # so that what `.env` sets is taken away again
    monkeypatch.delenv("HOSTED_TEST_KEY")
    (tmp_path / "prompts.txt").write_text("one\ntwo\n")
    with serving(server.app()) as url:
        (tmp_path / "m.toml").write_text(MANIFEST.format(url=url))
        yield tmp_path


def bitnet(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.output


def holding_the_key(folder: Path) -> list[Path]:
    files = [path for path in (folder / "runs").rglob("*") if path.is_file()]
    assert len(files) > 5
    return [path for path in files if KEY.encode() in path.read_bytes()]


def test_plan_tells_a_missing_key_and_takes_it_from_env_files(server: AnthropicServer, folder: Path) -> None:
    code, output = bitnet("plan", "m.toml")
    assert code == 2
    assert "teacher: api_key_env: the environment variable HOSTED_TEST_KEY is not set" in " ".join(output.split())
    (folder / ".env").write_text(f"HOSTED_TEST_KEY={KEY}\n")
    code, output = bitnet("plan", "m.toml")
    assert code == 0, output
    assert KEY not in output
    assert server.seen == []


def test_the_key_is_in_nothing_that_a_run_leaves_or_says(server: AnthropicServer, folder: Path) -> None:
    (folder / ".env").write_text(f"HOSTED_TEST_KEY={KEY}\n")
    server.player.reset(script(rate_limited("0")))
    code, output = bitnet("run", "m.toml")
    assert code == 0, output
    assert KEY not in output
    assert len(server.seen) == 1 + 2 + 2  # warm-up, baseline, collection; the rate limit was met before the model
    assert "tok/s (end to end)" in output
    assert "network included" in (folder / "runs/hosted/reports/teacher_baseline.json").read_text()
    assert holding_the_key(folder) == []

    server.refuse = (401, error_body(401, f"invalid x-api-key {KEY}"))
    code, output = bitnet("run", "m.toml", "--set", "baseline.max_new_tokens=9")
    assert code == 2
    assert "HOSTED_TEST_KEY" in output
    assert "Traceback" not in output
    assert KEY not in output
    assert holding_the_key(folder) == []


def test_a_stopped_baseline_goes_on_where_it_was(server: AnthropicServer, folder: Path) -> None:
    (folder / ".env").write_text(f"HOSTED_TEST_KEY={KEY}\n")
    server.player.error_body = lambda status: error_body(402, "no credit")
    server.player.plan = script(None, None, rate_limited("100000"))
    code, output = bitnet("run", "m.toml")
    assert code == 2
    assert 'prompt "2"' in output
    server.player.reset(script())
    server.seen.clear()
    code, output = bitnet("run", "m.toml", "--stages", "baseline")
    assert code == 0, output
    assert [request["messages"][-1]["content"] for request in server.seen] == ["two", "two"]  # warm-up, and the answer


def test_skip_external_asks_nothing(server: AnthropicServer, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SKIP_EXTERNAL", "1")
    code, output = bitnet("run", "m.toml")
    assert code == 0, output
    assert server.seen == []
