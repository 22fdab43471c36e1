"""When a run pulls and pushes, what it says, and what a failing push may and may not stop."""

import io
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from bitnet_cli.pipeline.make_plan import _notes
from bitnet_cli.pipeline.pull_and_push import durable
from bitnet_cli.reporter.progress import Reporter
from bitnet_storage.backends.local import LocalStore
from bitnet_storage.backends.mounted_folder import FolderObjects
from bitnet_storage.config import LocalStoreConfig
from bitnet_storage.contract import StorageError
from bitnet_storage.sync.synced_store import SyncedStore
from bitnet_storage.testing import FaultyObjects

RUN = "a-run"


class Machine:
    """One machine's store and what its run says."""

    def __init__(self, tmp_path: Path, name: str = "first", push_every: float = 300.0) -> None:
        self.objects = FaultyObjects(FolderObjects(tmp_path / "durable"), error=StorageError)
        self.store = SyncedStore(objects=self.objects, work=tmp_path / name, push_every=push_every, lease_seconds=60.0)
        self.folder = self.store.run_folder(RUN)
        self.stream = io.StringIO()
        self.reporter = Reporter(Console(file=self.stream, width=500))

    def at_work(self) -> Any:
        return durable(self.store, RUN, self.folder, self.reporter)

    @property
    def said(self) -> str:
        return self.stream.getvalue()


def test_with_the_local_store_nothing_is_copied(tmp_path: Path) -> None:
    store = LocalStore(LocalStoreConfig(root=tmp_path))
    folder = store.run_folder(RUN)
    (folder / "a").write_text("content")
    stream = io.StringIO()
    with durable(store, RUN, folder, Reporter(Console(file=stream))) as place:
        place.push_stage("train")
        place.push_meanwhile("train")
        place.push_end()
    assert [path.name for path in tmp_path.rglob("*")] == [RUN, "a"]
    assert stream.getvalue() == ""


def test_a_finished_stage_is_durable_and_said_so(tmp_path: Path) -> None:
    first = Machine(tmp_path)
    with first.at_work() as place:
        (first.folder / "a").write_bytes(b"x" * 2_500_000)
        place.push_stage("train")
    assert f"train     durable: 1 file, 2.5 MB to {first.store.location}" in first.said
    second = Machine(tmp_path, "second")
    with second.at_work():
        assert (second.folder / "a").stat().st_size == 2_500_000
    assert f"pulled 1 file, 2.5 MB from {second.store.location}" in second.said


def test_a_stage_that_is_not_durable_stops_the_run(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.folder / "a").write_text("content")

    def run() -> None:
        with machine.at_work() as place:
            machine.objects.calls_left = 0
            place.push_stage("train")

    with pytest.raises(StorageError) as caught:
        run()
    assert str(caught.value).startswith(f"train is done in {machine.folder}, but not durable yet: a fault was injected")
    machine.objects.calls_left = None
    with machine.at_work() as place:
        place.push_end()
    assert machine.store.runs()[0].files.keys() == {"a"}


def test_meanwhile_pushes_only_now_and_then_and_stops_nothing(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    with machine.at_work() as place:
        (machine.folder / "a").write_text("1")
        place.push_meanwhile("train")
        assert machine.store.snapshot(RUN) is None, "it is not time yet"
        place.pushed_at -= 301
        machine.objects.calls_left = 0
        place.push_meanwhile("train")
        assert "train     not durable yet, the stage goes on: a fault was injected" in machine.said
        machine.objects.calls_left = None
        place.push_meanwhile("train")
        assert machine.store.snapshot(RUN) is None, "and not again at once"
        place.pushed_at -= 301
        place.push_meanwhile("train")
        assert machine.store.snapshot(RUN) is not None


@pytest.mark.parametrize("error", [KeyboardInterrupt, ValueError])
def test_a_run_that_fails_leaves_what_there_is_in_the_durable_place(tmp_path: Path, error: type[BaseException]) -> None:
    machine = Machine(tmp_path)
    (machine.folder / "raw").mkdir()
    (machine.folder / "raw/journal").write_text("paid for")
    with pytest.raises(error), machine.at_work():
        raise error
    assert machine.store.runs()[0].files.keys() == {"raw/journal"}
    assert f"what there is so far is durable in {machine.store.location}" in machine.said


def test_the_runs_own_error_counts_when_the_last_push_fails_too(tmp_path: Path) -> None:
    machine = Machine(tmp_path)
    (machine.folder / "a").write_text("1")

    def run() -> None:
        with machine.at_work():
            machine.objects.calls_left = 0
            raise ValueError("the run's own")

    with pytest.raises(ValueError, match="the run's own"):
        run()
    assert f"what there is so far is only in {machine.folder}: a fault was injected" in machine.said


def test_a_plan_says_what_it_cannot_see(tmp_path: Path) -> None:
    def notes(options: LocalStoreConfig) -> list[str]:
        manifest: Any = SimpleNamespace(store=SimpleNamespace(options=options), student=None, train=None)
        return list(_notes(manifest))

    assert notes(LocalStoreConfig(root=tmp_path)) == []
    (note,) = notes(LocalStoreConfig(root=tmp_path / "drive", work=tmp_path / "fast"))
    assert (
        note == "only the working folder was looked at: what the store holds of this run is pulled when the run starts"
    )


def test_a_second_machine_is_kept_out(tmp_path: Path) -> None:
    first, second = Machine(tmp_path), Machine(tmp_path, "second")
    second.store = SyncedStore(objects=second.objects, work=second.store.work, lease_seconds=0.2)
    first.store = SyncedStore(objects=first.objects, work=first.store.work, lease_seconds=0.2)
    with first.at_work(), pytest.raises(StorageError, match="is being worked on by"), second.at_work():
        raise AssertionError("two writers")
    assert "looking for up to 0 s whether it is still alive" in second.said
