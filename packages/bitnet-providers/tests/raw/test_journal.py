"""The journal survives what a kill leaves behind."""

import asyncio
import re
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bitnet_providers.contract import ProviderError
from bitnet_providers.raw.journal import FRAME, MAGIC, GroupCommit, JournalWriter, in_order, read_journal
from bitnet_providers.raw.write_shard import row_batch


def row(name: str, sample_idx: int = 0) -> dict[str, Any]:
    return {
        "prompt_idx": 0,
        "sample_idx": sample_idx,
        "request_sha256": name,
        "source_id": "p",
        "kind": "sample",
        "format": None,
        "messages": "[]",
        "text": b"hello",
        "prompt_ids": None,
        "token_ids": None,
        "token_bytes": [b"hello"],
        "token_logprobs": np.array([-1.0], np.float32),
        "candidate_counts": np.array([0], np.int32),
        "candidate_ids": None,
        "candidate_bytes": [],
        "candidate_logprobs": np.array([], np.float32),
        "log_z": None,
        "entropy": None,
        "finish_reason": "stop",
        "model": "m",
        "prompt_tokens": 1,
        "latency_s": 0.1,
        "usage": None,
        "repairs": None,
    }


def write(journal: JournalWriter, rows: list[dict[str, Any]]) -> None:
    journal.append([row_batch(each) for each in rows])


def test_rows_are_there_before_the_journal_is_closed(tmp_path: Path) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a"), row("b")])
        write(journal, [row("c")])
        assert sorted(read_journal(tmp_path).rows) == [("a", 0), ("b", 0), ("c", 0)]


def test_a_second_process_adds_a_file_and_the_first_answer_counts(tmp_path: Path) -> None:
    for text in (b"first", b"second"):
        with JournalWriter(tmp_path) as journal:
            write(journal, [row("a") | {"text": text}])
    names = [path.name for path in sorted(tmp_path.iterdir())]
    assert [re.fullmatch(r"journal-(\d{3})-[0-9a-f]{8}\.bin", name)[1] for name in names] == ["000", "001"]
    kept = read_journal(tmp_path).rows[("a", 0)]
    assert kept.batch.column("text")[kept.index].as_py() == b"first"


def test_the_thousandth_file_comes_behind_the_one_before(tmp_path: Path) -> None:
    """Three digits don't hold it: by name it stood first, and its answer counted."""
    for number in range(999):
        (tmp_path / f"journal-{number:03d}-00000000.bin").touch()
    for text in (b"first", b"second"):
        with JournalWriter(tmp_path) as journal:
            write(journal, [row("a") | {"text": text}])
    assert [path.name[:12] for path in in_order(tmp_path.iterdir())][-3:] == [
        "journal-998-", "journal-999-", "journal-1000",
    ]  # fmt: skip
    kept = read_journal(tmp_path).rows[("a", 0)]
    assert kept.batch.column("text")[kept.index].as_py() == b"first"


def test_nothing_asked_leaves_no_file(tmp_path: Path) -> None:
    with JournalWriter(tmp_path / "raw") as journal:
        write(journal, [])
    assert not (tmp_path / "raw").exists()
    assert read_journal(tmp_path / "raw").rows == {}


@settings(max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_torn_file_gives_what_was_whole(tmp_path: Path, data: st.DataObject) -> None:
    """Cut anywhere, or cut and filled with zeros as file systems do after a power cut: the whole frames come back."""
    for old in tmp_path.iterdir():
        old.unlink()
    ends = []
    with JournalWriter(tmp_path) as journal:
        for name in "abc":
            write(journal, [row(name)])
            (path,) = tmp_path.iterdir()
            ends.append(path.stat().st_size)
    whole = path.read_bytes()
    cut = data.draw(st.integers(8, len(whole)))
    if data.draw(st.booleans()):
        torn = whole[:cut] + b"\0" * (len(whole) - cut)
        ends = [max((n for n in range(end) if whole[n]), default=0) + 1 for end in ends]  # zeros are not missed
    else:
        torn = whole[:cut]
    path.write_bytes(torn)
    assert list(read_journal(tmp_path).rows) == [(name, 0) for name, end in zip("abc", ends, strict=True) if end <= cut]


@pytest.mark.parametrize("content", [b"", b"bitn"])
def test_a_file_that_ends_before_it_began(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "journal-000.bin").write_bytes(content)
    assert read_journal(tmp_path).rows == {}


def test_a_file_of_another_version_is_not_skipped_in_silence(tmp_path: Path) -> None:
    path = tmp_path / "journal-000.bin"
    path.write_bytes(b"bitnetJ9 and more")
    with pytest.raises(ProviderError) as caught:
        read_journal(tmp_path)
    assert caught.value.why == f"{path} was not written by this version of bitnet-providers"
    assert caught.value.fix == "move it out of the folder"


def test_after_a_failed_write_rows_go_to_a_new_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a")])
        with monkeypatch.context() as patch:

            def full(_: int) -> None:
                raise OSError(28, "No space left on device")

            patch.setattr("os.fsync", full)
            with pytest.raises(OSError, match="No space left"):
                write(journal, [row("b")])
        write(journal, [row("c")])
    assert {("a", 0), ("c", 0)} <= set(read_journal(tmp_path).rows)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.slow
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_byte_costs_one_completion(tmp_path: Path, data: st.DataObject) -> None:
    """Wherever it lies (mark, length, digest, payload): that frame is counted, and those around it come back."""
    for old in tmp_path.iterdir():
        old.unlink()
    ends = []
    with JournalWriter(tmp_path) as journal:
        for name in "abc":
            write(journal, [row(name)])
            (path,) = tmp_path.iterdir()
            ends.append(path.stat().st_size)
    content = bytearray(path.read_bytes())
    at = data.draw(st.integers(len(MAGIC), len(content) - 1))
    content[at] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    hit = next(index for index, end in enumerate(ends) if at < end)
    found = read_journal(tmp_path)
    assert list(found.rows) == [(name, 0) for index, name in enumerate("abc") if index != hit]
    assert found.damaged == 1


def test_damage_takes_one_of_the_completions_that_were_written_together(tmp_path: Path) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a") | {"text": b"a first text"}, row("b") | {"text": b"another text"}, row("c")])
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"another text", b"anither text"))
    found = read_journal(tmp_path)
    assert (list(found.rows), found.damaged) == ([("a", 0), ("c", 0)], 1)


def test_a_frame_mark_in_a_text_is_no_frame(tmp_path: Path) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a") | {"text": FRAME * 3}, row("b")])
    assert read_journal(tmp_path).damaged == 0
    assert list(read_journal(tmp_path).rows) == [("a", 0), ("b", 0)]


@pytest.mark.parametrize(("kept", "damaged"), [(0, 0), (30, 1), (300, 1)])
def test_zeros_behind_the_last_frame_are_no_damage_and_a_torn_frame_is(tmp_path: Path, kept: int, damaged: int) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a")])
        (path,) = tmp_path.iterdir()
        end = path.stat().st_size
        write(journal, [row("b")])
    whole = path.read_bytes()
    path.write_bytes(whole[: end + kept] + b"\0" * 200_000)
    found = read_journal(tmp_path)
    assert (list(found.rows), found.damaged) == ([("a", 0)], damaged)


def test_a_damaged_beginning_takes_no_completion(tmp_path: Path) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a"), row("b")])
    (path,) = tmp_path.iterdir()
    path.write_bytes(b"bitnetJ2" + path.read_bytes()[len(MAGIC) :])
    found = read_journal(tmp_path)
    assert (list(found.rows), found.damaged) == ([("a", 0), ("b", 0)], 1)


def test_a_length_that_is_damaged_hides_nothing_behind_it(tmp_path: Path) -> None:
    """As long as the rest of a file of 40 MB: it is looked through, not taken into memory."""
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a"), row("b") | {"text": b"x" * 40_000_000}, row("c")])
    (path,) = tmp_path.iterdir()
    content = bytearray(path.read_bytes())
    at = len(MAGIC) + len(FRAME)
    content[at : at + 8] = (len(content) - at - 40).to_bytes(8, "little")
    path.write_bytes(content)
    found = read_journal(tmp_path)
    assert (list(found.rows), found.damaged) == ([("b", 0), ("c", 0)], 1)


def test_what_is_damaged_after_it_was_found_is_told(tmp_path: Path) -> None:
    with JournalWriter(tmp_path) as journal:
        write(journal, [row("a"), row("b")])
    found = read_journal(tmp_path)
    (path,) = tmp_path.iterdir()
    path.write_bytes(path.read_bytes().replace(b"hello", b"hullo"))
    with pytest.raises(ProviderError, match=r"a completion \(at byte [\d,]+\) has been damaged since this run began"):
        found.rows["b", 0]


def test_keys_that_begin_alike_are_told_apart(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The index is sorted by half of an id; several keys may share that half."""

    def alike(keys: Any) -> np.ndarray[Any, Any]:
        return np.array([[7, ord(name[0])] for name, _ in keys], np.uint64).reshape(-1, 2)

    monkeypatch.setattr("bitnet_providers.raw.journal.key_ids", alike)
    with JournalWriter(tmp_path) as journal:
        write(journal, [row(name) | {"text": name.encode()} for name in "cabcd"])
    rows = read_journal(tmp_path).rows
    assert list(rows) == [("c", 0), ("a", 0), ("b", 0), ("d", 0)]
    assert [rows[name, 0].batch.column("text")[0].as_py() for name in "abcd"] == [b"a", b"b", b"c", b"d"]
    assert ("e", 0) not in rows
    assert ("A", 0) not in rows


class Disk:
    """Stands for journal and ledger; a `busy` one writes when it is `free`, and it fails when told to."""

    def __init__(self, busy: bool = False, fail: bool = False) -> None:
        self.fail = fail
        self.begun, self.free = threading.Event(), threading.Event()
        if not busy:
            self.free.set()
        self.groups: list[list[Any]] = []
        self.synced = 0

    def append(self, rows: list[Any]) -> None:
        self.begun.set()
        assert self.free.wait(100)
        if self.fail:
            raise OSError(28, "No space left on device")
        if rows:
            self.groups.append(rows)

    def sync(self) -> None:
        self.synced += 1

    @property
    def rows(self) -> list[int]:
        return [row["n"] for group in self.groups for row in group]


def commit(disk: Disk, on_kept: Any = lambda completions, tokens: None) -> GroupCommit:
    return GroupCommit(disk, disk.sync, on_kept)  # type: ignore[arg-type]


def test_what_comes_while_the_disk_is_busy_goes_together() -> None:
    disk, kept = Disk(busy=True), []

    async def main() -> None:
        keeper = commit(disk, lambda completions, tokens: kept.append((completions, tokens)))
        async with asyncio.TaskGroup() as group:
            group.create_task(keeper.run())
            async with asyncio.TaskGroup() as requests:
                requests.create_task(keeper.put({"n": 0}, 2))
                await asyncio.to_thread(disk.begun.wait)
                for n in range(1, 100):
                    requests.create_task(keeper.put({"n": n}, 2))
                await asyncio.sleep(0)  # each has handed over
                disk.free.set()
            keeper.end()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == list(range(100))
    assert len(disk.groups) == 2
    assert sum(completions for completions, _ in kept) == 100
    assert sum(tokens for _, tokens in kept) == 200


def test_who_hands_over_waits_until_the_disk_has_it() -> None:
    """So a kill takes no more than there are requests under way."""
    disk = Disk()

    async def main() -> None:
        keeper = commit(disk)
        waiting = [asyncio.create_task(keeper.put({"n": n}, 1)) for n in range(8)]
        for _ in range(20):
            await asyncio.sleep(0)
        assert not any(task.done() for task in waiting)
        assert disk.rows == []
        keeper.end()
        await keeper.run()
        assert disk.rows == list(range(8))
        await asyncio.gather(*waiting)
        keeper.close()

    asyncio.run(main())


def test_cancelled_in_the_middle_of_a_write_nothing_is_lost_or_written_twice() -> None:
    disk = Disk(busy=True)

    async def main() -> None:
        keeper = commit(disk)
        run = asyncio.create_task(keeper.run())
        waiting = [asyncio.create_task(keeper.put({"n": 0}, 1))]
        await asyncio.to_thread(disk.begun.wait)
        waiting.append(asyncio.create_task(keeper.put({"n": 1}, 1)))
        await asyncio.sleep(0)
        for task in (run, *waiting):
            task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await run
        disk.free.set()
        keeper.close()

    asyncio.run(main())
    assert disk.rows == [0, 1]
    assert disk.synced >= 1


def test_a_full_disk_is_told_by_run_and_not_by_close() -> None:
    async def main() -> None:
        keeper = commit(Disk(fail=True))
        waiting = asyncio.create_task(keeper.put({"n": 0}, 1))
        await asyncio.sleep(0)
        with pytest.raises(OSError, match="No space left"):
            await keeper.run()
        keeper.close()
        waiting.cancel()

    asyncio.run(main())
