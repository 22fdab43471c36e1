"""One collection by several workers: the same shards, one budget, and nothing lost with a worker."""

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner

from bitnet_cli.contract import ClusterConfig, Launcher
from bitnet_cli.errors import UserError
from bitnet_cli.launching.local import LocalLauncher
from bitnet_cli.main import cli
from bitnet_cli.stages.collect_on_workers import Dealer
from bitnet_providers.config import BudgetConfig, PricesConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.raw.write_shard import METADATA_KEY
from launched import HereLauncher
from parrot import Folders, collect_with, config_of
from tiny_run import make_teacher

PROMPTS = [f"what is {number}?" for number in range(40)]


def collected(
    folder: Path, prompts: list[str], launcher: Launcher | None, **settings: Any
) -> tuple[dict[str, Any], Folders]:
    """A collection into a folder; `launcher` None: without workers."""
    folders = Folders(folder)
    more = {name: settings.pop(name) for name in ("lease", "model") if name in settings}
    config = config_of(folder.parent, prompts, **settings)
    return asyncio.run(collect_with(launcher, folders, config, **more)), folders


def processes(workers: int) -> LocalLauncher:
    return LocalLauncher(ClusterConfig(workers=workers))


@pytest.mark.slow
def test_the_shards_are_the_same_whatever_the_number_of_workers(tmp_path: Path) -> None:
    prompts = [*PROMPTS, "busy?", PROMPTS[0]]  # a prompt that is there twice is two draws
    alone, folders = collected(tmp_path / "alone", prompts, None)
    assert len(folders.shards()) == 3
    for number, launcher in enumerate((HereLauncher(1), processes(2), HereLauncher(3))):
        summary, those = collected(tmp_path / str(number), prompts, launcher)
        assert those.shards() == folders.shards()
        assert Counter(those.questions()) == Counter(folders.questions())
        named = ("completions", "planned", "missing", "spent", "retries", "rate_limited", "headline")
        assert {name: summary[name] for name in named} == {name: alone[name] for name in named}


@pytest.mark.slow
def test_what_a_dead_worker_had_goes_to_another_and_what_it_kept_is_not_asked_again(tmp_path: Path) -> None:
    prompts = [*PROMPTS[:20], "die", *PROMPTS[20:]]
    summary, folders = collected(tmp_path / "run", prompts, processes(2), concurrency=1, lease=3)
    assert summary["completions"] == 41
    assert "worker" in summary["notes"][0]
    asked = Counter(folders.questions())
    assert asked["die"] == 2
    assert sum(asked.values()) == 42  # only what was under way
    ledger = read_ledger(folders.raw, read_journal(folders.raw), None)
    assert (ledger.spent.requests, ledger.spent.possibly_paid) == (42, 1)
    assert summary["spent"]["possibly_paid_requests"] == 1


@pytest.mark.slow
def test_where_all_workers_die_what_was_said_is_kept_and_the_next_run_goes_on(tmp_path: Path) -> None:
    prompts = [*PROMPTS, "always die"]
    with pytest.raises(UserError, match="all 2 workers are gone"):
        collected(tmp_path / "run", prompts, processes(2), concurrency=1, lease=2)
    folders = Folders(tmp_path / "run")
    kept = len(read_journal(folders.raw).rows)
    assert 0 < kept <= 40
    folders.asked.unlink()
    summary, _ = collected(tmp_path / "run", PROMPTS, HereLauncher(1))
    assert (summary["completions"], summary["reused"]) == (40, kept)
    assert len(folders.questions()) == 40 - kept


def test_the_budget_is_the_runs(tmp_path: Path) -> None:
    """Requests of all workers together, and of the run before it was stopped."""
    budget = BudgetConfig(requests=10)
    summary, folders = collected(tmp_path / "run", PROMPTS, HereLauncher(3), budget=budget, lease=4)
    assert len(folders.questions()) == summary["completions"] == 10
    assert "collect.budget.requests = 10 is reached" in summary["stopped"]
    summary, _ = collected(tmp_path / "run", PROMPTS, HereLauncher(2), budget=BudgetConfig(requests=15), lease=4)
    assert len(folders.questions()) == summary["completions"] == 15
    prices = PricesConfig(input_per_million=100.0, output_per_million=1000.0)
    dollars = 20 * (5 * 100 + 2 * 1000) / 1e6  # twenty answers, if nothing were set aside for the worst case
    folders = Folders(tmp_path / "dollars")
    summary, _ = collected(
        folders.root, PROMPTS, HereLauncher(2), prices=prices, budget=BudgetConfig(dollars=dollars), lease=4
    )
    assert 0 < summary["spent"]["dollars"] <= dollars
    assert summary["missing"]["not_asked"] > 0


def test_what_stops_one_worker_stops_all(tmp_path: Path) -> None:
    with pytest.raises(ProviderError, match="the key is wrong"):
        collected(tmp_path / "run", ["wrong key", *PROMPTS], HereLauncher(2), concurrency=1)
    assert len(Folders(tmp_path / "run").questions()) < 41


@pytest.mark.slow
def test_a_worker_with_another_model_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="another teacher: its model is 'cuckoo', not 'parrot'"):
        collected(tmp_path / "run", PROMPTS, processes(1), model="cuckoo")
    assert Folders(tmp_path / "run").questions() == []


def test_leases_get_smaller_towards_the_end(tmp_path: Path) -> None:
    class Before:
        missing = tuple(range(100))

    dealer = Dealer(Before(), workers=2, lease=10)  # type: ignore[arg-type]
    sizes = []
    while (lease := dealer.next()) is not None:
        sizes.append(len(lease.places))
    assert sizes[0] == 10
    assert sizes[-1] == 1
    assert sizes == sorted(sizes, reverse=True)
    assert sum(sizes) == 100


DEVICES = """
manifest_version = 1
[run]
name = "replicas"
stages = ["storage", "collect"]
[store]
kind = "local"
root = "runs"
[teacher]
kind = "local"
model = "model"
dtype = "fp32"
device = "cpu"
devices = 2
batch_size = 2
[collect]
prompts = "prompts.txt"
top_k = 3
max_new_tokens = 4
"""


@pytest.mark.slow
def test_a_copy_of_the_local_teacher_on_each_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the command; the answers are those of one copy, but for the rounding of other batches."""
    monkeypatch.chdir(tmp_path)
    make_teacher(tmp_path / "model")
    (tmp_path / "prompts.txt").write_text("\n".join(PROMPTS[:12]))
    (tmp_path / "m.toml").write_text(DEVICES)
    tables = {}
    for devices in (2, 1):
        name = f"replicas-{devices}"
        result = CliRunner().invoke(
            cli, ["run", "m.toml", "--set", f"teacher.devices={devices}", "--set", f"run.name={name}"]
        )
        assert result.exit_code == 0, result.output
        tables[devices] = pq.read_table(tmp_path / "runs" / name / "raw" / "shard_000.parquet")
    assert (tmp_path / "runs/replicas-2/logs/worker-1.log").exists()
    two, one = tables[2], tables[1]
    for column in ("source_id", "messages", "text", "token_ids", "request_sha256"):
        assert two[column].to_pylist() == one[column].to_pylist()
    told = [json.loads(table.schema.metadata[METADATA_KEY]) for table in (two, one)]
    assert told[0] == told[1]
    changed = CliRunner().invoke(cli, ["plan", "m.toml", "--set", "run.name=replicas-2", "--set", "teacher.devices=3"])
    assert "collect   skip" in changed.output  # how many copies there are redoes nothing


def test_workers_are_said_in_one_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "prompts.txt").write_text("one")
    (tmp_path / "model").mkdir()
    (tmp_path / "m.toml").write_text(DEVICES + '[cluster]\nkind = "local"\nworkers = 2\n')
    result = CliRunner().invoke(cli, ["plan", "m.toml", "--set", 'teacher.device="cuda:1"'])
    assert "take teacher.devices out, and set cluster.workers" in result.output
    assert 'devices: 2, and device = "cuda:1" names one' in result.output
