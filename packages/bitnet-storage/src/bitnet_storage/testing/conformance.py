"""What every backend has to pass, any history among it.

Then two machines work on one run, in any order, and die at any moment: what is durable is the old or the new state.
"""

import hashlib
import itertools
import secrets
import shutil
import tempfile
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from bitnet_storage.contract import ObjectMissingError, Objects, StorageError
from bitnet_storage.sync.lease import lease
from bitnet_storage.sync.synced_store import SyncedStore
from bitnet_storage.testing.faults import Cut, FaultyObjects, Killed

RUN = "kit"
NAMES = ("plain.txt", "with space.bin", "ü-模型-🙂.json", 'it\'s "quoted".md', "a+b&c=d%20e#f.txt", "x" * 200)
ENDS = (b"\r", b"\n", b"\r\n", b"\0", b" ", b"--")
"""What a transfer in parts may take for a border, if it is wrong; random contents end so once in 256 times."""


class StoreConformance:
    """Subclass it and give a fixture `objects`: your `Objects`, on an empty place of their own."""

    examples: ClassVar[int] = 10
    """Random histories to try; each has some fifteen steps."""
    exclusive: ClassVar[bool] = True
    """Whether `create` decides between two writers at the same moment; False where the place can't (say so)."""

    # Objects

    @pytest.mark.parametrize("name", NAMES)
    def test_an_object_comes_back_as_it_was(self, objects: Objects, tmp_path: Path, name: str) -> None:
        content = secrets.token_bytes(70_000)
        (tmp_path / "source").write_bytes(content)
        objects.put(f"kit/from file/{name}", tmp_path / "source")
        objects.put(f"kit/from bytes/{name}", content)
        for folder in ("from file", "from bytes"):
            assert b"".join(objects.chunks(f"kit/{folder}/{name}", 0)) == content
            assert b"".join(objects.chunks(f"kit/{folder}/{name}", 69_999)) == content[-1:]
            assert objects.sizes(f"kit/{folder}/") == {f"kit/{folder}/{name}": 70_000}

    def test_an_empty_object(self, objects: Objects) -> None:
        objects.put("kit/empty", b"")
        assert objects.sizes("kit/") == {"kit/empty": 0}
        assert b"".join(objects.chunks("kit/empty", 0)) == b""

    def test_a_put_again_replaces(self, objects: Objects) -> None:
        objects.put("kit/a", b"half")
        objects.put("kit/a", b"the whole")
        assert b"".join(objects.chunks("kit/a", 0)) == b"the whole"
        assert objects.sizes("kit/") == {"kit/a": 9}

    def test_a_missing_object_is_said(self, objects: Objects) -> None:
        with pytest.raises(ObjectMissingError, match="nothing"):
            list(objects.chunks("kit/nothing", 0))
        objects.delete(["kit/nothing"])
        assert objects.sizes("kit/") == {}
        assert objects.folders("kit") == []

    def test_listing_and_deleting(self, objects: Objects) -> None:
        keys = ["kit/a", "kit/b/c", "kit/b/d/e", "kit-not/x"]
        for key in keys:
            objects.put(key, key.encode())
        assert objects.sizes("kit/") == {key: len(key) for key in keys[:3]}
        assert objects.sizes("kit/b/") == {key: len(key) for key in keys[1:3]}
        assert objects.folders("kit") == ["b"]
        assert set(objects.folders("")) >= {"kit", "kit-not"}
        objects.delete(keys[:2])
        assert objects.sizes("kit/") == {"kit/b/d/e": 9}

    def test_create_only_where_nothing_is(self, objects: Objects) -> None:
        assert objects.create("kit/new", b"first")
        assert not objects.create("kit/new", b"second")
        assert b"".join(objects.chunks("kit/new", 0)) == b"first"

    def test_of_two_that_create_at_once_one_wins(self, objects: Objects) -> None:
        if not self.exclusive:
            pytest.skip("this place can't decide between two writers: its documents say so")
        for turn in range(5):
            key = f"kit/race-{turn}"
            gate = threading.Barrier(4)

            def create(number: int, key: str = key, gate: threading.Barrier = gate) -> bool:
                gate.wait()
                return objects.create(key, f"writer {number}".encode())

            with ThreadPoolExecutor(4) as pool:
                won = list(pool.map(create, range(4)))
            assert won.count(True) == 1
            assert b"".join(objects.chunks(key, 0)) == f"writer {won.index(True)}".encode()

    def test_many_at_the_same_time(self, objects: Objects) -> None:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda n: objects.put(f"kit/deep {n % 3}/er/{n}", b"x" * n), range(12)))
        assert objects.sizes("kit/") == {f"kit/deep {n % 3}/er/{n}": n for n in range(12)}

    @pytest.mark.parametrize("key", ["../outside", "/abs", "kit/../../outside", "kit//x", "", "kit/."])
    def test_no_key_leads_out(self, objects: Objects, key: str) -> None:
        place: Objects = objects
        for call in (lambda: place.put(key, b"x"), lambda: place.create(key, b"x"), lambda: list(place.chunks(key, 0))):
            with pytest.raises(StorageError):
                call()

    # The store over them

    def test_a_run_goes_to_another_machine(self, objects: Objects, tmp_path: Path) -> None:
        first = SyncedStore(objects=objects, work=tmp_path / "first")
        folder = first.run_folder(RUN)
        for number, name in enumerate(NAMES):
            (folder / f"reports {number}").mkdir()
            (folder / f"reports {number}" / name).write_bytes(secrets.token_bytes(100 * number))
        pushed = first.push(RUN)
        assert (pushed.files, pushed.generation, pushed.changed) == (len(NAMES), 1, True)
        assert first.push(RUN).changed is False
        second = SyncedStore(objects=objects, work=tmp_path / "second")
        assert second.pull(RUN).size == pushed.size
        assert read(tmp_path / "second" / RUN) == read(folder)
        (snapshot,) = second.runs()
        assert (snapshot.run, snapshot.size) == (RUN, pushed.size)
        assert snapshot.files[f"reports 1/{NAMES[1]}"].sha256 == (
            hashlib.sha256((folder / "reports 1" / NAMES[1]).read_bytes()).hexdigest()
        )

    def test_a_push_that_was_cut_off_goes_on(self, objects: Objects, tmp_path: Path) -> None:
        place = FaultyObjects(objects, calls_left=3, error=StorageError)
        store = SyncedStore(objects=place, work=tmp_path)
        for number, end in enumerate(ENDS):
            (store.run_folder(RUN) / f"{number}.bin").write_bytes(secrets.token_bytes(1000) + end)
        with pytest.raises(StorageError):
            store.push(RUN)
        assert store.snapshot(RUN) is None
        place.calls_left, before = None, place.puts
        assert before == 3
        again = SyncedStore(objects=place, work=tmp_path)
        assert again.push(RUN).files == 6 - before
        assert len(again.runs()[0].files) == 6

    def test_only_the_newest_snapshots_are_kept(self, objects: Objects, tmp_path: Path) -> None:
        store = SyncedStore(objects=objects, work=tmp_path)
        file = store.run_folder(RUN) / "growing.bin"
        for generation in range(1, 6):
            file.write_bytes(b"x" * generation)
            assert store.push(RUN).generation == generation
        assert len(objects.sizes(f"{RUN}/snapshots/")) == 4  # each with its copy
        assert sorted(objects.sizes(f"{RUN}/files/").values()) == [4, 5]

    def test_two_writers_are_kept_apart(self, objects: Objects, tmp_path: Path) -> None:
        store = SyncedStore(objects=objects, work=tmp_path, lease_seconds=100.0)

        def renew(seconds: float) -> None:
            """As the holder does in time."""
            (held,) = objects.sizes(f"{RUN}/lease/")
            expires, _, name = held.rpartition("/")[2].partition("-")
            objects.put(f"{RUN}/lease/{int(expires) + 1:014d}-{name}", b"".join(objects.chunks(held, 0)))

        with store.lease(RUN):
            busy = pytest.raises(StorageError, match="is being worked on by")
            with busy, lease(objects, RUN, 100.0, print, sleep=renew):
                raise AssertionError("two writers")
        with store.lease(RUN):
            pass
        assert objects.sizes(f"{RUN}/lease/") == {}

    def test_any_history_leaves_the_old_state_or_the_new(self, objects: Objects, tmp_path: Path) -> None:
        run_state_machine_as_test(
            machine(objects, tmp_path),
            settings=settings(
                max_examples=self.examples,
                stateful_step_count=15,
                deadline=None,
                database=None,
                phases=(Phase.explicit, Phase.generate, Phase.shrink),
                suppress_health_check=list(HealthCheck),
            ),
        )


PATHS = (
    "report.md",
    "stages/train/done.json",
    "checkpoints/step 1/model ü 模型.bin",
    "checkpoints/step 1/it's.json",
    "raw/no-suffix",
    "data/🙂/{braces} [x] #1 100%.txt",
)
_EXAMPLES = itertools.count()

Files = dict[str, bytes]


class Durability(RuleBasedStateMachine):
    """Over `objects`; each example has a place of its own there, and folders in `scratch`."""

    objects: ClassVar[Objects]
    scratch: ClassVar[Path]

    def __init__(self) -> None:
        super().__init__()
        self.example = f"example-{next(_EXAMPLES)}"
        self.root = Path(tempfile.mkdtemp(dir=self.scratch))
        self.place = FaultyObjects(self.objects, prefix=f"{self.example}/")
        self.folders: dict[str, Files] = {"first": {}, "second": {}}
        self.durable: Files | None = None
        self.generation = 0
        self.seen: dict[str, int] = {"first": 0, "second": 0}
        """The generation that each machine's folder was last equal to."""

    def store(self, name: str) -> SyncedStore:
        """As a new process would open it."""
        return SyncedStore(objects=self.place, work=self.root / name)

    @initialize(content=st.binary(max_size=64))
    def begin(self, content: bytes) -> None:
        self.write("first", PATHS[0], content)

    @rule(name=st.sampled_from(("first", "second")), path=st.sampled_from(PATHS), content=st.binary(max_size=200))
    def write(self, name: str, path: str, content: bytes) -> None:
        target = self.store(name).run_folder(RUN) / path
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(".new.tmp")
        temporary.write_bytes(content)
        temporary.replace(target)
        self.folders[name][path] = content

    @precondition(lambda self: any(self.folders.values()))
    @rule(name=st.sampled_from(("first", "second")), data=st.data())
    def delete(self, name: str, data: st.DataObject) -> None:
        if self.folders[name]:
            path = data.draw(st.sampled_from(sorted(self.folders[name])))
            (self.root / name / RUN / path).unlink()
            del self.folders[name][path]

    @rule(name=st.sampled_from(("first", "second")))
    def push(self, name: str) -> None:
        if self.is_behind(name):
            self.refused(self.store(name).push)
            return
        moved = self.store(name).push(RUN)
        self.became_durable(name, moved.generation)

    @rule(
        name=st.sampled_from(("first", "second")),
        calls=st.integers(0, 9),
        cut=st.sampled_from(("before", "half", "after")),
    )
    def die_while_pushing(self, name: str, calls: int, cut: Cut) -> None:
        if self.is_behind(name):
            return
        self.place.calls_left, self.place.cut = calls, cut
        try:
            self.store(name).push(RUN)
        except Killed:
            pass
        finally:
            self.place.calls_left = None
        newest = self.store("reader").snapshot(RUN)
        if newest is not None and newest.generation > self.generation:
            self.became_durable(name, newest.generation)

    @rule(name=st.sampled_from(("first", "second")))
    def pull(self, name: str) -> None:
        own_work = self.own_work(name)
        if self.is_behind(name) and own_work:
            self.refused(self.store(name).pull)
            return
        self.store(name).pull(RUN)
        if self.is_behind(name):
            assert self.durable is not None
            self.folders[name], self.seen[name] = dict(self.durable), self.generation

    @invariant()
    def a_new_machine_finds_what_is_durable(self) -> None:
        folder = self.root / "reader"
        shutil.rmtree(folder, ignore_errors=True)
        store = self.store("reader")
        moved = store.pull(RUN)
        assert read(folder / RUN) == (self.durable or {})
        assert moved.generation == self.generation
        assert [each.run for each in store.runs()] == ([] if self.durable is None else [RUN])

    @invariant()
    def no_folder_has_changed_by_itself(self) -> None:
        for name, files in self.folders.items():
            assert read(self.root / name / RUN) == files

    def is_behind(self, name: str) -> bool:
        return self.seen[name] != self.generation

    def own_work(self, name: str) -> bool:
        """Whether the folder differs from what it was last equal to, and from what is durable now."""
        based_on = self.history[self.seen[name]]
        return bool(self.folders[name]) and self.folders[name] not in (based_on, self.durable)

    def became_durable(self, name: str, generation: int) -> None:
        self.durable, self.generation = dict(self.folders[name]), generation
        self.seen[name] = generation
        self.history[generation] = dict(self.durable)

    @property
    def history(self) -> dict[int, Files]:
        if not hasattr(self, "_history"):
            self._history: dict[int, Files] = {0: {}}
        return self._history

    def refused(self, call: Any) -> None:
        try:
            call(RUN)
        except StorageError:
            return
        raise AssertionError("two machines' work was mixed")

    def teardown(self) -> None:
        self.objects.delete(self.objects.sizes(f"{self.example}/"))
        shutil.rmtree(self.root, ignore_errors=True)


def machine(objects: Objects, scratch: Path) -> type[Durability]:
    """The machine over these `objects`."""
    return type("DurabilityHere", (Durability,), {"objects": objects, "scratch": scratch})


def read(folder: Path) -> Files:
    """Path → content of what is in a run folder, the store's own memory left out."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and not path.relative_to(folder).parts[0].startswith(".")
    }
