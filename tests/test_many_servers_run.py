"""`bitnet` with a teacher of several servers: plan, doctor, probe and run, and one that is gone."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

from bitnet_cli.main import cli
from launched import HereLauncher
from loopback.faults import serving
from loopback.openai_server import OpenAIServer

pytestmark = pytest.mark.timeout(120)  # a request that no server takes would be waited for
MANIFEST = """
manifest_version = 1
[run]
name = "many"
stages = ["storage", "collect"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "openai-compatible"
model = "loopback-1"
base_urls = [{urls}]
[collect]
prompts = "prompts.txt"
top_k = 2
max_new_tokens = 4
retries = 1
retry_wait_s = 0.001
"""


@pytest.fixture
def servers() -> list[OpenAIServer]:
    return [OpenAIServer(key=""), OpenAIServer(key="")]


@pytest.fixture
def urls(servers: list[OpenAIServer], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BITNET_CACHE", str(tmp_path / "cache"))
    for name in ("SKIP_EXTERNAL", "http_proxy", "https_proxy", "all_proxy", "HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "prompts.txt").write_text("\n".join(f"question {number}" for number in range(30)))
    with serving(servers[0].app()) as one, serving(servers[1].app()) as other:
        yield [f"{one}/v1", f"{other}/v1"]


def write(urls: list[str]) -> None:
    Path("m.toml").write_text(MANIFEST.format(urls=", ".join(f'"{url}"' for url in urls)))


def bitnet(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, " ".join(result.output.split())


def test_all_are_probed_and_asked_and_their_order_changes_nothing(servers: list[OpenAIServer], urls: list[str]) -> None:
    write(urls)
    code, output = bitnet("plan", "m.toml")
    assert code == 0, output
    assert "12 requests" in output
    assert "2 servers, which must agree" in output
    assert "at each of 2 servers" not in output  # no limits, and on this machine: no time is told
    code, output = bitnet("run", "m.toml")
    assert code == 0, output
    asked = [len(each.seen) for each in servers]
    assert sum(asked) == 12 + 30
    assert min(asked) > 6
    (record,) = [json.loads(Path("runs/many/reports/collection.json").read_text())["servers"]]
    assert sorted(each["name"] for each in record) == sorted(urls)
    assert sum(each["answered"] for each in record) == 30

    write(urls[::-1])
    code, output = bitnet("run", "m.toml")
    assert code == 0, output
    assert "same settings and inputs" in output
    assert sum(len(each.seen) for each in servers) == sum(asked)


@pytest.mark.slow
def test_one_that_is_gone_is_told_once(servers: list[OpenAIServer], urls: list[str]) -> None:
    write([urls[0], "http://127.0.0.1:9/v1"])
    code, output = bitnet("run", "m.toml")
    assert code == 0, output
    assert output.count("http://127.0.0.1:9/v1 could not be asked: its requests go to the other servers") == 1
    assert len(servers[0].seen) == 6 + 30
    assert not list(Path("cache").rglob("probes/*"))  # the other server is probed next time


@pytest.mark.slow
def test_one_that_is_gone_stays_out_where_workers_ask(
    servers: list[OpenAIServer], urls: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each worker opens the teacher anew, and nobody has compared what that server would answer by then."""
    monkeypatch.setattr("bitnet_cli.launching.local.LocalLauncher", lambda config: HereLauncher(config.workers))
    write([urls[0], "http://127.0.0.1:9/v1"])
    code, output = bitnet("run", "m.toml", "--cluster", "local", "--set", "cluster.workers=2")
    assert code == 0, output
    assert "could not be asked: its requests go to the other servers" in output
    assert "given up" not in output  # no worker has tried it
    assert len(servers[0].seen) == 6 + 30


def test_another_model_is_refused_before_anything_is_collected(servers: list[OpenAIServer], urls: list[str]) -> None:
    servers[1].model = "loopback-2"
    write(urls)
    for command in ("run", "probe"):
        code, output = bitnet(command, "m.toml")
        assert code == 2
        assert "is not the same teacher as" in output
        assert "→ take one of them out of teacher.base_urls" in output
    assert all("question" not in json.dumps(body["messages"]) for each in servers for body in each.seen)


@pytest.mark.parametrize("command", ["plan", "doctor", "probe", "run"])
def test_both_settings_are_refused_with_the_fix(servers: list[OpenAIServer], urls: list[str], command: str) -> None:
    write(urls)
    code, output = bitnet(command, "m.toml", "--set", f'teacher.base_url="{urls[0]}"')
    assert code == 2
    assert "base_urls: base_url is set as well" in output
    assert "write all servers into base_urls, and take base_url out" in output
    assert servers[0].seen == servers[1].seen == []
