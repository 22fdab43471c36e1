"""What every backend has to pass."""

import hashlib
import secrets
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import ClassVar

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from bitnet_storage.contract import ObjectMissingError, Objects, StorageError
from bitnet_storage.sync.lease import lease
from bitnet_storage.sync.synced_store import SyncedStore
from bitnet_storage.testing.faults import FaultyObjects
from bitnet_storage.testing.machine import machine, read

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
