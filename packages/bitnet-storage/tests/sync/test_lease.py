"""The lease: who lives is respected, who died is waited for, who died on this machine is not."""

import json
import subprocess
import sys
import time
from pathlib import Path

import attrs
import pytest

from bitnet_storage.backends.mounted_folder import FolderObjects
from bitnet_storage.contract import StorageError
from bitnet_storage.sync.lease import Holder, _boot, lease

RUN = "leased"


@attrs.define
class Clock:
    now: float = 1_000_000.0

    def __call__(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.fixture
def place(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "durable")


def left_by(place: FolderObjects, expires: float, **holder: object) -> str:
    """A lease of another machine."""
    other = {"id": "other", "host": "elsewhere", "boot": "b", "pid": 7, "since": "noon"} | holder
    key = f"{RUN}/lease/{int(expires * 1000):014d}-{other['id']}.json"
    place.put(key, json.dumps(other).encode())
    return key


def test_the_lease_of_a_machine_that_died_lapses(place: FolderObjects) -> None:
    clock = Clock()
    left_by(place, clock.now + 90)
    said: list[str] = []
    with lease(place, RUN, 90, said.append, now=clock, sleep=clock.sleep):
        assert clock.now >= 1_000_090
        assert len(place.sizes(f"{RUN}/lease/")) == 1
    assert said == [
        f"elsewhere (process 7, since noon) holds run {RUN} in {place.root}; looking for up to 90 s whether it is "
        "still alive"
    ]


def test_one_that_is_renewed_is_respected(place: FolderObjects) -> None:
    clock = Clock()
    left_by(place, clock.now + 90)

    def sleep(seconds: float) -> None:
        clock.sleep(seconds)
        left_by(place, clock.now + 90)

    with (
        pytest.raises(StorageError) as caught,
        lease(place, RUN, 90, print, now=clock, sleep=sleep),
    ):
        raise AssertionError("two writers")
    assert str(caught.value) == (
        f"run {RUN} in {place.root} is being worked on by elsewhere (process 7, since noon)  → wait for it or stop it; "
        "or use another run.name"
    )


def test_a_lease_that_lapsed_long_ago_costs_nothing(place: FolderObjects) -> None:
    clock = Clock()
    left_by(place, clock.now - 1)

    def sleep(seconds: float) -> None:
        raise AssertionError("nothing to wait for")

    with lease(place, RUN, 90, print, now=clock, sleep=sleep):
        pass


@pytest.mark.skipif(not _boot(), reason="this system does not tell one boot from another")
def test_a_process_of_this_machine_that_is_gone_is_not_waited_for(place: FolderObjects) -> None:
    import platform

    child = subprocess.Popen([sys.executable, "-c", "pass"])
    child.wait()
    left_by(place, time.time() + 1000, host=platform.node(), boot=_boot(), pid=child.pid)

    def sleep(seconds: float) -> None:
        raise AssertionError("it is dead")

    with lease(place, RUN, 90, print, sleep=sleep):
        pass


def test_a_half_written_lease_is_one(place: FolderObjects) -> None:
    clock = Clock()
    place.put(f"{RUN}/lease/{int((clock.now + 50) * 1000):014d}-x.json", b'{"id": ')
    said: list[str] = []
    with lease(place, RUN, 90, said.append, now=clock, sleep=clock.sleep):
        assert clock.now >= 1_000_050
    assert said[0].startswith("an unknown machine")


def test_it_is_renewed_while_it_is_held(place: FolderObjects) -> None:
    with lease(place, RUN, 0.2, print):
        first = set(place.sizes(f"{RUN}/lease/"))
        until = time.monotonic() + 100
        while set(place.sizes(f"{RUN}/lease/")) <= first:
            assert time.monotonic() < until
            time.sleep(0.01)
    assert place.sizes(f"{RUN}/lease/") == {}


def test_a_holder_elsewhere_is_never_thought_dead_by_its_process_number() -> None:
    assert not Holder(id="x", host="elsewhere", boot=_boot(), pid=999_999_999, since="").is_dead()
