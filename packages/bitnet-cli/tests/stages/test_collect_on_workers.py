"""One collection by several workers: the same shards, one budget, and nothing lost with a worker."""

import asyncio
import json
from collections import Counter
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from filelock import FileLock

from bitnet_cli.contract import ClusterConfig, Launcher
from bitnet_cli.errors import UserError
from bitnet_cli.launching.local import LocalLauncher
from bitnet_cli.main import cli
from bitnet_cli.stages.collect_on_workers import Dealer, Elsewhere, marked, own_folder, take_answers, workers_folder
from bitnet_providers.config import BudgetConfig, PricesConfig
from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.journal import read_journal
from bitnet_providers.raw.ledger import read_ledger
from bitnet_providers.raw.write_shard import METADATA_KEY
from bitnet_storage.contract import SharedStore, StorageError
from launched import HereLauncher
from parrot import Folders, collect_with, config_of, open_balky_store
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


FEW_PROMPTS = [f"what is {number}?" for number in range(12)]


def elsewhere(root: Path, **more: object) -> Elsewhere:
    settings = {
        "run": "answers", "open_store": partial(open_balky_store, root, root / "no-network"), "push_every": 3600.0,
        "scratch": root / "scratch", "store": "here", "marker": "",
    }  # fmt: skip
    return Elsewhere(**settings | more)  # type: ignore[arg-type]


def collected_elsewhere(root: Path, folders: Folders, place: Elsewhere) -> int:
    """Answers that were there before, of all."""
    take = partial(take_answers, open_balky_store(root, root / "no-network"), "answers", folders.raw)
    config = config_of(root, FEW_PROMPTS)
    summary = asyncio.run(collect_with(HereLauncher(2), folders, config, elsewhere=place, take_answers=take))
    assert summary["completions"] == 12
    return int(summary["reused"])


def test_what_a_dead_process_left_on_its_machine_is_pushed_by_the_next_and_not_asked_again(tmp_path: Path) -> None:
    first = Folders(tmp_path / "first")
    asyncio.run(collect_with(None, first, config_of(tmp_path, FEW_PROMPTS[:5])))
    (journal,) = first.raw.glob("journal-*.bin")
    dead = tmp_path / "scratch" / workers_folder() / f"answers-{sha256(b'here').hexdigest()[:12]}" / "dead"
    dead.mkdir(parents=True)
    (dead / journal.name).write_bytes(journal.read_bytes())
    second = Folders(tmp_path / "second")
    assert collected_elsewhere(tmp_path, second, elsewhere(tmp_path)) == 0  # nobody knew of them when it was planned
    assert sorted(second.questions()) == sorted(FEW_PROMPTS[5:])
    assert not dead.exists()


def test_a_folder_of_a_living_process_is_left_alone(tmp_path: Path) -> None:
    living = tmp_path / "run/living"
    living.mkdir(parents=True)
    (living / "journal-000-aa.bin").write_bytes(b"x")
    with FileLock(living / "lock"):
        own = own_folder(tmp_path / "run")
        assert [path.name for path in own.iterdir()] == ["lock"]
    assert (living / "journal-000-aa.bin").exists()


def test_answers_that_cannot_be_pushed_at_the_end_are_told_and_kept(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "run")
    (tmp_path / "no-network").touch()
    with pytest.raises(StorageError, match="the network is down"):
        collected_elsewhere(tmp_path, folders, elsewhere(tmp_path))
    kept = list((tmp_path / "scratch").rglob("journal-*.bin"))
    assert sum(len(read_journal(file.parent).rows) for file in kept) == 12


def test_what_a_snapshot_has_is_no_longer_incoming(tmp_path: Path) -> None:
    store = open_balky_store(tmp_path, tmp_path / "no-network")
    assert isinstance(store, SharedStore)
    raw = store.run_folder("answers") / "raw"
    source = tmp_path / "journal-000-aa.bin"
    source.write_bytes(b"answers")
    store.objects.put(f"answers/incoming/{source.name}", source)
    take_answers(store, "answers", raw)
    assert (raw / source.name).read_bytes() == b"answers"
    assert len(store.objects.sizes("answers/incoming/")) == 1  # the only durable copy
    store.push("answers")
    take_answers(store, "answers", raw)
    assert store.objects.sizes("answers/incoming/") == {}


def test_without_a_store_that_many_reach_workers_must_see_the_run_folder(tmp_path: Path) -> None:
    folders = Folders(tmp_path / "run")
    with pytest.raises(UserError, match="does not see") as error:
        collected_elsewhere(tmp_path, folders, elsewhere(tmp_path, open_store=None, marker=".of-another-machine"))
    assert "store.root on a disk that all share" in error.value.fix
    name = marked(folders.raw)
    assert collected_elsewhere(tmp_path, folders, elsewhere(tmp_path, open_store=None, marker=name)) == 0


def test_a_run_of_the_same_name_in_another_store_is_another_one(tmp_path: Path) -> None:
    first = Folders(tmp_path / "first")
    asyncio.run(collect_with(None, first, config_of(tmp_path, FEW_PROMPTS[:5])))
    (journal,) = first.raw.glob("journal-*.bin")
    theirs = tmp_path / "scratch" / workers_folder() / f"answers-{sha256(b'there').hexdigest()[:12]}" / "dead"
    theirs.mkdir(parents=True)
    (theirs / journal.name).write_bytes(journal.read_bytes())
    second = Folders(tmp_path / "second")
    collected_elsewhere(tmp_path, second, elsewhere(tmp_path))
    assert len(second.questions()) == len(FEW_PROMPTS)
    assert (theirs / journal.name).exists()
