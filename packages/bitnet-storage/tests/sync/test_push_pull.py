"""What a push and a pull promise beyond the conformance kit: damage, divergence, full disks, names that lead out."""

import contextlib
import errno
import json
import os
import secrets
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bitnet_storage.backends.mounted_folder import FolderObjects
from bitnet_storage.contract import ReadableStore, Snapshot, StorageError, StoredFile
from bitnet_storage.names_and_paths import path_problem
from bitnet_storage.sync import pull as pull_module
from bitnet_storage.sync import snapshots
from bitnet_storage.sync.sync_state import recall
from bitnet_storage.sync.synced_store import SyncedStore
from bitnet_storage.testing import FaultyObjects, Killed
from bitnet_storage.testing.conformance import read

RUN = "ci"


@pytest.fixture
def place(tmp_path: Path) -> FolderObjects:
    return FolderObjects(tmp_path / "durable")


def machine(place: FolderObjects, name: str = "first", **settings: object) -> SyncedStore:
    return SyncedStore(objects=place, work=place.root.parent / name, **settings)  # type: ignore[arg-type]


def write(store: SyncedStore, path: str, content: bytes = b"content") -> Path:
    file = store.run_folder(RUN) / path
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(content)
    return file


def only_object(place: FolderObjects, name: str) -> Path:
    (found,) = place.root.glob(f"{RUN}/files/**/{name}")
    return found


def test_what_lies_in_the_place_can_be_read_by_people(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "reports/report.md", b"# Fine")
    store.push(RUN)
    file = only_object(place, "report.*.md")
    assert file.read_bytes() == b"# Fine"
    assert file.parent.name == "reports"


def test_moved_and_equal_files_are_sent_once(place: FolderObjects) -> None:
    store = machine(place)
    file = write(store, "checkpoints/step_1/model.bin", b"weights")
    store.push(RUN)
    (store.run_folder(RUN) / "stages/train/before").mkdir(parents=True)
    file.rename(store.run_folder(RUN) / "stages/train/before/model.bin")
    moved = store.push(RUN)
    assert (moved.files, moved.changed) == (0, True)
    other = machine(place, "second")
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {"stages/train/before/model.bin": b"weights"}


def test_locks_and_temporary_files_stay_here(place: FolderObjects) -> None:
    store = machine(place)
    for path in ("a", "stages/.lock", ".hidden/x", "b.tmp", "checkpoints/.step_2.partial/model.bin"):
        write(store, path)
    store.push(RUN)
    assert list(store.runs()[0].files) == ["a"]


@pytest.mark.parametrize("inside", [True, False])
def test_links_are_not_followed(place: FolderObjects, tmp_path: Path, inside: bool) -> None:
    store = machine(place)
    (tmp_path / "secret").mkdir()
    (tmp_path / "secret/key").write_text("secret")
    link = store.run_folder(RUN) / ("file" if inside else "folder")
    link.symlink_to(tmp_path / ("secret/key" if inside else "secret"))
    with pytest.raises(StorageError, match="is a link, and links can't be pushed  → put the file itself there"):
        store.push(RUN)
    assert store.runs() == []


def test_retention_keeps_the_newest_checkpoints(place: FolderObjects) -> None:
    store = machine(place, keep_checkpoints=2)
    for step in (2, 10, 9):
        write(store, f"checkpoints/step_{step}/model.bin", b"%d" % step)
        write(store, f"checkpoints/step_{step}_health.json")
    store.push(RUN)
    kept = [path for path in store.runs()[0].files if "model" in path]
    assert kept == ["checkpoints/step_10/model.bin", "checkpoints/step_9/model.bin"]
    assert len(store.runs()[0].files) == 5
    assert (store.run_folder(RUN) / "checkpoints/step_2/model.bin").exists()


def test_a_half_written_snapshot_counts_by_its_copy_and_its_number_is_not_used_again(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "a", b"1")
    store.push(RUN)
    write(store, "a", b"22")
    store.push(RUN)
    cut = place.root / snapshots.snapshot_key(RUN, 2)
    cut.write_bytes(cut.read_bytes()[:-40])
    said: list[str] = []
    other = machine(place, "second")
    assert other.pull(RUN, said.append).generation == 2
    assert said == [f"{RUN}/snapshots/00000002.json in {place.location} can't be read: its copy counts"]
    assert read(other.run_folder(RUN)) == {"a": b"22"}
    write(store, "a", b"333")
    assert store.push(RUN).generation == 3


def all_of(place: FolderObjects) -> set[bytes]:
    return {path.read_bytes() for path in place.root.glob(f"{RUN}/files/**/*") if path.is_file()}


def three_generations(place: FolderObjects) -> SyncedStore:
    """A paid answer more in each."""
    store = machine(place)
    for paid in (b"one", b"one two", b"one two three"):
        write(store, "raw/journal.bin", paid)
        store.push(RUN)
    return store


@pytest.mark.parametrize("bit", [0, 6])
def test_a_bit_of_the_newest_snapshot_wherever_it_flips(place: FolderObjects, bit: int) -> None:
    """The snapshot alone: its copy counts, which is told. Both: the one before does, and nothing is deleted."""
    three_generations(place)
    newest = place.root / snapshots.snapshot_key(RUN, 3)
    (copy,) = newest.parent.glob("00000003-*.json")
    whole = newest.read_bytes()
    for at in range(0, len(whole), 5):
        flipped = bytearray(whole)
        flipped[at] ^= 1 << bit
        newest.write_bytes(flipped)
        said: list[str] = []
        other = machine(place, f"{at}")
        assert other.pull(RUN, said.append).generation == 3
        assert said == [f"{RUN}/snapshots/00000003.json in {place.location} can't be read: its copy counts"], at
    copy.write_bytes(flipped)
    said = []
    other = machine(place, "second")
    assert other.pull(RUN, said.append).generation == 2
    assert said[0].startswith(f"{RUN}/snapshots/00000003.json in {place.location} can't be read: generation 2 is the ")
    before = all_of(place)
    for text in (b"other", b"another", b"and another"):
        write(other, "raw/journal.bin", text)
        assert other.push(RUN).generation > 3
    assert before < all_of(place), "what was paid for and only the damaged one names lies there still"
    newest.write_bytes(whole)  # somebody puts it back, and takes the mark away
    (newest.parent / "00000003.damaged").unlink()
    write(other, "raw/journal.bin", b"the last")
    other.push(RUN)
    assert all_of(place) == {b"and another", b"the last"}


def test_a_damaged_memory_of_the_folder_gives_no_content_a_wrong_digest(
    place: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("bitnet_storage.sync.push.SMALL", 0)  # digests of small files are not remembered
    store = machine(place)
    file = write(store, "a", b"1")
    os.utime(file, (1_000_000_000, 1_000_000_000))  # old enough for its digest to be remembered
    store.push(RUN)
    state = store.run_folder(RUN) / ".bitnet-store/state.json"
    digest = recall(store.run_folder(RUN)).digests["a"].sha256
    state.write_text(state.read_text().replace(digest, f"{'0' if digest[0] != '0' else '1'}{digest[1:]}"))
    write(store, "b", b"2")
    machine(place).push(RUN)
    other = machine(place, "second")
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {"a": b"1", "b": b"2"}


def test_where_no_snapshot_can_be_read_nothing_is_begun_anew(place: FolderObjects) -> None:
    store = three_generations(place)
    for path in (place.root / f"{RUN}/snapshots").iterdir():
        path.write_bytes(path.read_bytes()[:-2])
    before = all_of(place)
    for call in (machine(place, "second").pull, store.push, store.pull):
        with pytest.raises(StorageError, match=r"no snapshot in .* can be read \(ci/snapshots/00000003.json, ci/snap"):
            call(RUN)
    assert all_of(place) == before


def test_a_damaged_file_keeps_all_of_its_generation(place: FolderObjects) -> None:
    """The report is damaged, the journal beside it is not: the generation before counts, and nothing is deleted."""
    store = three_generations(place)
    write(store, "report.md", b"fine")
    store.push(RUN)
    only_object(place, "report.*.md").write_bytes(b"FINE")
    said: list[str] = []
    other = machine(place, "second")
    assert other.pull(RUN, said.append).generation == 3
    assert "generation 4 is not whole (" in said[0]
    for text in (b"other", b"another", b"and another"):
        write(other, "raw/journal.bin", text)
        other.push(RUN)
    assert b"one two three" in all_of(place)
    said.clear()
    machine(place, "third").pull(RUN, said.append)
    assert said == [
        f"nothing is deleted in {place.location} as long as {RUN}/snapshots/00000004.damaged lies there, which says why"
    ]


def test_a_snapshot_before_its_contents_gives_the_one_before(place: FolderObjects) -> None:
    """A mounted drive uploads in the background, in any order."""
    store = machine(place)
    write(store, "a", b"old")
    store.push(RUN)
    write(store, "a", b"newer")
    store.push(RUN)
    newest = next(path for path in place.root.glob(f"{RUN}/files/a.*") if path.read_bytes() == b"newer")
    newest.unlink()
    said: list[str] = []
    other = machine(place, "second")
    assert other.pull(RUN, said.append).generation == 1
    assert read(other.run_folder(RUN)) == {"a": b"old"}
    assert "generation 2 is not whole yet" in said[0]
    write(other, "a", b"and on from there")
    assert other.push(RUN).generation == 3
    third = machine(place, "third")
    third.pull(RUN)
    assert read(third.run_folder(RUN)) == {"a": b"and on from there"}


def test_damage_is_found_and_never_put_in_place(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "a", b"sound")
    store.push(RUN)
    only_object(place, "a.*").write_bytes(b"SOUND")
    other = machine(place, "second")
    with pytest.raises(StorageError, match="its sha256 is not the one that was pushed"):
        other.pull(RUN)
    assert read(other.run_folder(RUN)) == {}
    # the machine that has the file repairs it: its next process looks at what is there
    only_object(place, "a.*").unlink()
    assert machine(place).push(RUN).files == 1
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {"a": b"sound"}


def test_a_pull_that_was_cut_off_goes_on_where_it_was(place: FolderObjects, monkeypatch: pytest.MonkeyPatch) -> None:
    store = machine(place)
    content = secrets.token_bytes(3_000_000)
    write(store, "big", content)
    store.push(RUN)
    other = machine(place, "second")
    asked: list[int] = []
    chunks = FolderObjects.chunks

    def cut_off(self: FolderObjects, key: str, start: int):
        if "/files/" not in key:
            yield from chunks(self, key, start)
            return
        asked.append(start)
        yield next(chunks(self, key, start))[:1_000_000]
        raise StorageError("the network is gone")

    monkeypatch.setattr(FolderObjects, "chunks", cut_off)
    for _ in range(2):
        with pytest.raises(StorageError, match="the network is gone"):
            other.pull(RUN)
    with pytest.raises(StorageError, match="only half pulled"):
        other.push(RUN)
    monkeypatch.setattr(FolderObjects, "chunks", chunks)
    other.pull(RUN)
    assert asked == [0, 1_000_000]
    assert read(other.run_folder(RUN)) == {"big": content}


def test_a_damaged_part_is_fetched_anew(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "a", b"content")
    store.push(RUN)
    other = machine(place, "second")
    digest = store.runs()[0].files["a"].sha256
    partial = other.run_folder(RUN) / ".bitnet-store/partial" / digest
    partial.parent.mkdir(parents=True)
    partial.write_bytes(b"XXX")
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {"a": b"content"}


def test_work_of_two_machines_is_not_mixed(place: FolderObjects) -> None:
    first, second = machine(place), machine(place, "second")
    write(first, "a", b"1")
    first.push(RUN)
    second.pull(RUN)
    write(second, "a", b"2")
    second.push(RUN)
    write(first, "b", b"work of its own")
    for call in (first.pull, first.push):
        with pytest.raises(StorageError, match=r"run ci has moved on .* and has work of its own\. Nothing was changed"):
            call(RUN)
    assert read(first.run_folder(RUN)) == {"a": b"1", "b": b"work of its own"}
    (first.run_folder(RUN) / "b").unlink()
    first.pull(RUN)
    assert read(first.run_folder(RUN)) == {"a": b"2"}


def test_a_log_is_no_work_of_its_own(place: FolderObjects) -> None:
    first, second = machine(place), machine(place, "second")
    write(first, "a", b"1")
    first.push(RUN)
    write(second, "logs/run.log", b"started\n")
    second.pull(RUN)
    assert (second.run_folder(RUN) / "a").read_bytes() == b"1"
    assert (second.run_folder(RUN) / "logs/run.log").exists()


def test_a_push_whose_answer_was_lost_is_known_as_ones_own(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "a", b"1")
    store.push(RUN)
    state = store.run_folder(RUN) / ".bitnet-store/state.json"
    before = state.read_bytes()
    write(store, "a", b"22")
    store.push(RUN)
    state.write_bytes(before)  # killed before it was noted
    write(store, "b", b"since then")
    store.pull(RUN)
    assert read(store.run_folder(RUN)) == {"a": b"22", "b": b"since then"}
    assert store.push(RUN).generation == 3


@pytest.mark.parametrize("calls", [1, 2, 3])
def test_a_first_push_that_was_killed_is_known_as_ones_own(place: FolderObjects, calls: int) -> None:
    faulty = FaultyObjects(place, calls_left=calls, cut="after")
    store = SyncedStore(objects=faulty, work=place.root.parent / "first")
    write(store, "a", b"1")
    with contextlib.suppress(Killed):
        store.push(RUN)
    faulty.calls_left = None
    write(store, "b", b"since then")
    again = SyncedStore(objects=faulty, work=store.work)
    again.pull(RUN)
    again.push(RUN)
    assert again.runs()[0].files.keys() == {"a", "b"}


def test_a_working_folder_belongs_to_one_place(place: FolderObjects, tmp_path: Path) -> None:
    store = machine(place)
    write(store, "a")
    store.push(RUN)
    other = SyncedStore(objects=FolderObjects(tmp_path / "other"), work=store.work)
    with pytest.raises(StorageError, match=f"is the working folder of a run in {place.root}, not in {tmp_path}/other"):
        other.pull(RUN)


@pytest.mark.parametrize("path", ["../x", "a/../../x", "/etc/x", "a//b", "a\\b", "C:/x", "a\nb", "", ".", "x" * 256])
def test_no_path_of_a_snapshot_leads_out(place: FolderObjects, path: str) -> None:
    forge(place, path, f"{RUN}/files/x.bin")
    with pytest.raises(StorageError, match="the snapshot of run ci names"):
        machine(place).pull(RUN)


@pytest.mark.parametrize("key", ["../x", "other/files/x", "ci/files/../../x", "/ci/files/x"])
def test_no_key_of_a_snapshot_leads_out(place: FolderObjects, key: str) -> None:
    forge(place, "x", key)
    with pytest.raises(StorageError, match="the snapshot of run ci names"):
        machine(place).pull(RUN)


def test_nothing_is_written_through_a_link(place: FolderObjects, tmp_path: Path) -> None:
    store = machine(place)
    write(store, "out/x", b"content")
    store.push(RUN)
    other = machine(place, "second")
    (tmp_path / "outside").mkdir()
    (other.run_folder(RUN) / "out").symlink_to(tmp_path / "outside")
    with pytest.raises(StorageError, match="link"):
        other.pull(RUN)
    assert list((tmp_path / "outside").iterdir()) == []


@given(st.text())
def test_a_path_without_a_problem_stays_in_its_folder(path: str) -> None:
    if path_problem(path) is None:
        assert os.path.normpath(f"/folder/{path}") == f"/folder/{path}"


def forge(place: FolderObjects, path: str, key: str) -> None:
    """Put a snapshot there whose checksum is right and whose content is not."""
    files = {path: StoredFile(size=1, sha256="0" * 64, key=key)}
    snapshot = Snapshot(run=RUN, generation=1, written="", writer="w", host="h", files=files)
    place.put(snapshots.snapshot_key(RUN, 1), snapshots.encode(snapshot))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EDQUOT, errno.EIO])
def test_a_place_that_cannot_be_written_loses_nothing(
    place: FolderObjects, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    store = machine(place)
    write(store, "a", b"1")
    store.push(RUN)
    write(store, "a", b"22")
    write(store, "b", b"333")
    fsync = os.fsync

    def full(descriptor: int) -> None:
        if str(place.root) in os.readlink(f"/proc/self/fd/{descriptor}"):
            raise OSError(number, os.strerror(number))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(StorageError, match=r"^store\.root: "):
        store.push(RUN)
    monkeypatch.undo()
    reader = machine(place, "reader")
    reader.pull(RUN)
    assert read(reader.run_folder(RUN)) == {"a": b"1"}
    assert not list(place.root.rglob("*.tmp"))
    assert store.push(RUN).files == 2


def test_a_full_working_disk_stops_a_pull_and_the_next_goes_on(
    place: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine(place)
    write(store, "a", b"1")
    store.push(RUN)
    other = machine(place, "second")
    other.run_folder(RUN)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(pull_module.os, "fsync", full)
    with pytest.raises(StorageError, match=r"store\.work: no space left on the disk"):
        pull_module.pull(place, RUN, recall(other.work / RUN), print)
    monkeypatch.undo()
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {"a": b"1"}


def test_too_little_space_is_said_before_anything_is_fetched(
    place: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine(place)
    write(store, "a", b"x" * 1000)
    store.push(RUN)
    monkeypatch.setattr("bitnet_storage.backends.local.free_bytes", lambda root, setting: 999)
    with pytest.raises(StorageError, match=r"store\.work: 0\.00 GB are to be pulled"):
        machine(place, "second").pull(RUN)


def test_a_file_that_changes_while_it_is_sent_is_not_stored_as_something_else(
    place: FolderObjects, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = machine(place)
    file = write(store, "big", b"x" * 9_000_000)
    put = FolderObjects.put

    def slow(self: FolderObjects, key: str, source: Path | bytes) -> None:
        if isinstance(source, Path):
            with source.open("ab") as out:
                out.write(b"more")
        put(self, key, source)

    monkeypatch.setattr(FolderObjects, "put", slow)
    with pytest.raises(StorageError, match="was changed while it was pushed"):
        store.push(RUN)
    assert store.runs() == []
    monkeypatch.undo()
    store.push(RUN)
    assert store.runs()[0].files["big"].size == file.stat().st_size


def test_a_later_format_is_not_misread(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "a")
    store.push(RUN)
    path = place.root / snapshots.snapshot_key(RUN, 1)
    value = json.loads(path.read_text())
    del value["sha256"]
    value["format"] = 2
    path.write_text(json.dumps({**value, "sha256": snapshots._checksum(value)}))
    with pytest.raises(StorageError, match="was pushed by a later version of bitnet-storage  → upgrade it here"):
        machine(place, "second").pull(RUN)


def test_long_names_are_shortened_in_the_place_only(place: FolderObjects) -> None:
    store = machine(place)
    name = "ü" * 120 + ".safetensors"
    write(store, name, b"weights")
    store.push(RUN)
    other = machine(place, "second")
    other.pull(RUN)
    assert read(other.run_folder(RUN)) == {name: b"weights"}


def test_one_file_is_read_without_a_pull_and_checked(place: FolderObjects) -> None:
    store = machine(place)
    write(store, "reports/report.md", b"# Fine")
    store.push(RUN)
    other = machine(place, "second")
    assert isinstance(other, ReadableStore)
    snapshot = other.snapshot(RUN)
    assert snapshot is not None
    assert other.read(snapshot, "reports/report.md") == b"# Fine"
    assert not other.work.exists(), "nothing was pulled"
    with pytest.raises(KeyError):
        other.read(snapshot, "reports/nothing.md")
    only_object(place, "report.*.md").write_bytes(b"# Fake")
    with pytest.raises(StorageError, match="is damaged: its sha256 is not the one that was pushed"):
        other.read(snapshot, "reports/report.md")
