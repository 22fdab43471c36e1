"""`bitnet plan` and `bitnet run` against a server that counts: estimate, consent, budget, parts, refusals."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from bitnet_cli.main import cli
from loopback.counting_server import counts_of, running

MANIFEST = """
manifest_version = 1
[run]
name = "asked"
stages = ["storage", "collect"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "openai-compatible"
model = "counting-1"
base_url = "{url}/v1"
[collect]
prompts = "prompts.txt"
top_k = 5
max_new_tokens = 8
[collect.prices]
input_per_million = 100.0
output_per_million = 100.0
"""


@pytest.fixture
def server() -> Iterator[str]:
    with running(tokens=4, candidates=5, refuse="question 7") as url:
        yield url


@pytest.fixture
def manifest(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SKIP_EXTERNAL", raising=False)
    (tmp_path / "prompts.txt").write_text("\n".join(f"question {n}" for n in range(10)))
    path = tmp_path / "asked.toml"
    path.write_text(MANIFEST.format(url=server))
    return path


def bitnet(*arguments: str) -> tuple[int, str]:
    result = CliRunner().invoke(cli, arguments)
    return result.exit_code, result.output


def collection(manifest: Path) -> Any:
    return json.loads((manifest.parent / "runs/asked/reports/collection.json").read_text())


def asked(server: str) -> int:
    """Requests for the collection; the probe that runs before it asks something else."""
    return sum(count for key, count in counts_of(server)["arrived"].items() if "question" in key)


def test_the_plan_of_a_billion_positions(manifest: Path, server: str) -> None:
    many = ("--set", "collect.samples_per_prompt=12500000")  # of ten prompts, eight tokens each
    code, output = bitnet("plan", str(manifest), *many, "--set", "collect.requests_per_minute=1000")
    assert code == 0
    assert "collection: requests: 125,000,000\n" in output
    assert "collection: raw shards: about 47.0 GB, 1,000,000,000 positions\n" in output
    assert "collection: KD shards: about 27.1 GB\n" in output
    assert "collection: time: about 87 days at least, by collect.requests_per_minute = 1,000\n" in output
    elsewhere = ("--set", "teacher.base_url=https://teacher.example/v1")  # nothing is asked
    code, output = bitnet("plan", str(manifest), *many, *elsewhere)
    each = "about 23 days for each second that an answer takes, with collect.concurrency = 64"
    assert f"collection: time: {each}\n" in output
    assert asked(server) == 0


def test_the_estimate_and_the_question(manifest: Path, server: str) -> None:
    code, output = bitnet("plan", str(manifest))
    assert code == 0
    assert "collection: requests: 10\n" in output
    assert "collection: price: $0.29" in output
    assert "collection: raw shards: about 0.0 MB, 80 positions\n" in output
    cheap = ("--set", "collect.confirm_above_dollars=0.1")
    code, output = bitnet("run", str(manifest), *cheap)
    assert code == 2
    assert (
        "The collection may take more than collect.confirm_above_dollars = 0.1 (requests: 16; " in output
    )  # with the probe
    assert "There is nobody to answer  → add --yes, or raise that setting" in output
    assert asked(server) == 0
    code, output = bitnet("run", str(manifest), *cheap, "--yes")
    assert code == 0, output
    assert "9 completions, 36 KD positions; at most $0.0530 spent in all; 1 refused by the teacher" in output
    assert asked(server) == 10


def test_refused_ones_are_asked_again_only_when_told_to(manifest: Path, server: str) -> None:
    assert bitnet("run", str(manifest))[0] == 0
    assert collection(manifest)["refused"][0]["id"] == "8"
    assert "this is not said here" in collection(manifest)["refused"][0]["reason"]
    code, output = bitnet("run", str(manifest))
    assert "skipped" in output
    bitnet("run", str(manifest), "--from", "collect")
    assert asked(server) == 10
    code, output = bitnet("run", str(manifest), "--retry-failed")
    assert code == 0, output
    assert asked(server) == 11


def test_a_budget_is_raised_and_the_run_goes_on(manifest: Path, server: str) -> None:
    code, output = bitnet("run", str(manifest), "--set", "collect.budget.requests=10")  # six are the probe's
    assert code == 0, output
    assert "6 of 10 not asked: collect.budget.requests = 10 is reached" in output
    assert collection(manifest)["spent"]["requests"] == sum(counts_of(server)["arrived"].values()) == 10
    code, output = bitnet("run", str(manifest), "--set", "collect.budget.requests=40")
    assert code == 0, output
    assert collection(manifest)["completions"] == 9
    assert asked(server) == 10


def test_parts_of_two_machines_are_the_whole(manifest: Path, server: str) -> None:
    runs = manifest.parent / "runs/asked"
    for part in ("1/2", "2/2"):
        code, output = bitnet("run", str(manifest), "--shard", part)
        assert code == 0, output
    assert len(list(runs.glob("raw/shard_?of2_*.parquet"))) == 2
    code, output = bitnet("run", str(manifest))
    assert code == 0, output
    assert [path.name for path in runs.glob("raw/shard_*")] == ["shard_000.parquet"]
    assert asked(server) == 10
    code, output = bitnet("run", str(manifest), "--shard", "3/2")
    assert code == 2
    assert 'collect.shard: write "1/4" for the first of four machines' in output


def test_the_prompts_of_the_baseline(manifest: Path, server: str) -> None:
    (manifest.parent / "few.txt").write_text("one\ntwo\nthree\n")
    section = '[baseline]\nprompts = "few.txt"\nmax_prompts = 2\n'
    manifest.write_text(manifest.read_text() + section)
    use = ("--set", 'collect.prompts="baseline"')
    assert "completions to sample: 2, " in bitnet("plan", str(manifest), *use)[1]
    code, output = bitnet("run", str(manifest), *use)
    assert code == 0, output
    assert collection(manifest)["completions"] == 2
    (manifest.parent / "few.txt").write_text("one\nnew\nthree\n")
    assert "what baseline.prompts names has changed" in bitnet("plan", str(manifest), *use)[1]
