"""What workers of other machines keep, on its way to the run."""

import asyncio
from functools import partial
from hashlib import sha256
from pathlib import Path

import pytest
from filelock import FileLock

from bitnet_cli.errors import UserError
from bitnet_cli.stages.workers_elsewhere import Elsewhere, marked, own_folder, take_answers, workers_folder
from bitnet_providers.raw.journal import read_journal
from bitnet_storage.contract import SharedStore, StorageError
from launched import HereLauncher
from parrot import Folders, collect_with, config_of, open_balky_store

PROMPTS = [f"what is {number}?" for number in range(12)]


def elsewhere(root: Path, **more: object) -> Elsewhere:
    settings = {
        "run": "answers", "open_store": partial(open_balky_store, root, root / "no-network"), "push_every": 3600.0,
        "scratch": root / "scratch", "store": "here", "marker": "",
    }  # fmt: skip
    return Elsewhere(**settings | more)  # type: ignore[arg-type]


def collected(root: Path, folders: Folders, place: Elsewhere) -> int:
    """Answers that were there before, of all."""
    take = partial(take_answers, open_balky_store(root, root / "no-network"), "answers", folders.raw)
    config = config_of(root, PROMPTS)
    summary = asyncio.run(collect_with(HereLauncher(2), folders, config, elsewhere=place, take_answers=take))
    assert summary["completions"] == 12
    return int(summary["reused"])


def test_what_a_dead_process_left_on_its_machine_is_pushed_by_the_next_and_not_asked_again(tmp_path: Path) -> None:
    first = Folders(tmp_path / "first")
    asyncio.run(collect_with(None, first, config_of(tmp_path, PROMPTS[:5])))
    (journal,) = first.raw.glob("journal-*.bin")
    dead = tmp_path / "scratch" / workers_folder() / f"answers-{sha256(b'here').hexdigest()[:12]}" / "dead"
    dead.mkdir(parents=True)
    (dead / journal.name).write_bytes(journal.read_bytes())
    second = Folders(tmp_path / "second")
    assert collected(tmp_path, second, elsewhere(tmp_path)) == 0  # nobody knew of them when it was planned
    assert sorted(second.questions()) == sorted(PROMPTS[5:])
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
        collected(tmp_path, folders, elsewhere(tmp_path))
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
        collected(tmp_path, folders, elsewhere(tmp_path, open_store=None, marker=".of-another-machine"))
    assert "store.root on a disk that all share" in error.value.fix
    name = marked(folders.raw)
    assert collected(tmp_path, folders, elsewhere(tmp_path, open_store=None, marker=name)) == 0


def test_a_run_of_the_same_name_in_another_store_is_another_one(tmp_path: Path) -> None:
    first = Folders(tmp_path / "first")
    asyncio.run(collect_with(None, first, config_of(tmp_path, PROMPTS[:5])))
    (journal,) = first.raw.glob("journal-*.bin")
    theirs = tmp_path / "scratch" / workers_folder() / f"answers-{sha256(b'there').hexdigest()[:12]}" / "dead"
    theirs.mkdir(parents=True)
    (theirs / journal.name).write_bytes(journal.read_bytes())
    second = Folders(tmp_path / "second")
    collected(tmp_path, second, elsewhere(tmp_path))
    assert len(second.questions()) == len(PROMPTS)
    assert (theirs / journal.name).exists()
