"""Two machines work on one run, in any order, and die at any moment: what is durable is the old or the new state."""

import itertools
import shutil
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from bitnet_storage.contract import Objects, StorageError
from bitnet_storage.sync.synced_store import SyncedStore
from bitnet_storage.testing.faults import Cut, FaultyObjects, Killed

RUN = "a-run"
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
