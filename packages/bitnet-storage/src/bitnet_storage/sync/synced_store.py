"""The store of a working folder and a durable place, over any `Objects`."""

import hashlib
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import attrs

from bitnet_storage.backends import local
from bitnet_storage.contract import Objects, Snapshot, StorageError, Transfer
from bitnet_storage.names_and_paths import run_name_problem
from bitnet_storage.sync.lease import lease
from bitnet_storage.sync.pull import pull
from bitnet_storage.sync.push import Arrived, push
from bitnet_storage.sync.snapshots import history
from bitnet_storage.sync.sync_state import Memory, recall

Notify = Callable[[str], None]


def _quiet(_: str) -> None:
    return


@attrs.frozen(kw_only=True)
class SyncedStore:
    """A `DurableStore`: runs are worked on in folders of `work`, and pushed to and pulled from `objects`."""

    objects: Objects
    work: Path
    cache_root: Path | None = None
    push_every: float = 300.0
    keep_checkpoints: int | None = None
    lease_seconds: float = 90.0
    _arrived: dict[str, Arrived] = attrs.field(factory=dict, init=False, eq=False, repr=False)

    @property
    def location(self) -> str:
        return self.objects.location

    def run_folder(self, run_name: str) -> Path:
        return local.run_folder(self.work, run_name, "store.work")

    def cache_environment(self) -> Mapping[str, str]:
        return local.cache_environment(self.cache_root)

    def free_bytes(self) -> int:
        return local.free_bytes(self.work, "store.work")

    def runs(self) -> list[Snapshot]:
        names = [name for name in self.objects.folders("") if run_name_problem(name) is None]
        return [snapshot for name in sorted(names) if (snapshot := self.snapshot(name)) is not None]

    def snapshot(self, run_name: str) -> Snapshot | None:
        local.check_run_name(run_name)
        return history(self.objects, run_name).newest

    def read(self, snapshot: Snapshot, path: str) -> bytes:
        file = snapshot.files[path]
        content = b"".join(self.objects.chunks(file.key, 0))
        if hashlib.sha256(content).hexdigest() != file.sha256:
            raise StorageError(
                f"{file.key} in {self.location} is damaged: its sha256 is not the one that was pushed",
                "push the run again from a working folder that has it",
            )
        return content

    def pull(self, run_name: str, notify: Notify = _quiet) -> Transfer:
        return pull(self.objects, run_name, self._memory(run_name), notify)

    def push(self, run_name: str) -> Transfer:
        memory = self._memory(run_name)
        if memory.pulling:
            raise StorageError(
                f"{memory.folder} is only half pulled", "pull it again before anything is pushed from it"
            )
        arrived = self._arrived.setdefault(run_name, Arrived())
        return push(self.objects, run_name, memory, arrived, self.keep_checkpoints)

    def lease(self, run_name: str, notify: Notify = _quiet) -> AbstractContextManager[None]:
        local.check_run_name(run_name)
        return lease(self.objects, run_name, self.lease_seconds, notify)

    def _memory(self, run_name: str) -> Memory:
        return recall(self.run_folder(run_name))
