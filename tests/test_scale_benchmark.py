"""`benchmarks.scale` at toy size: each part runs to its end and counts what it should."""

from pathlib import Path

import pytest

from benchmarks import scale


def test_positions_are_written_once_and_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scale, "PER_FILE", 1_000)
    shards = scale.write_positions(tmp_path, 2_500)
    assert len(list(shards.iterdir())) == 3
    before = {path.name: path.stat().st_mtime_ns for path in shards.iterdir()}
    scale.write_positions(tmp_path, 2_500)
    assert {path.name: path.stat().st_mtime_ns for path in shards.iterdir()} == before
    found = scale.started(shards)
    assert found["documents"] == -(-2_500 // scale.DOCUMENT)
    assert found["shard_bytes"] == sum(path.stat().st_size for path in shards.iterdir())


@pytest.mark.slow
def test_workers_collect_everything_once(tmp_path: Path) -> None:
    found = scale.collection(tmp_path, requests=24, workers=(1, 2))
    assert [row["completions"] for row in found["collection"]["rows"]] == [24, 24]
    assert [row["most_at_once"] for row in found["collection"]["rows"]] == [2, 4]
    assert found["collection_efficiency"] > 0


@pytest.mark.slow
def test_workers_that_are_dealt_leases_collect_everything_once(tmp_path: Path) -> None:
    found = scale.leases(tmp_path, requests=24, workers=(1, 2), kinds=("local",))
    rows = found["leases"]["rows"]
    assert [row["completions"] for row in rows] == [24, 24]
    assert [row["most_at_once"] for row in rows] == [2, 4]
    assert all(0 < row["first_ready_seconds"] <= row["all_ready_seconds"] for row in rows)
    assert all(row["shards_seconds"] > 0 for row in rows)
    assert found["leases_efficiency"]["local"] > 0
